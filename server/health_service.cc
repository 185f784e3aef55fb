#include "server/health_service.h"

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/log.h"

namespace spanpool {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// How often to look whether a watcher is gone: a synchronous call is not told.
constexpr absl::Duration kLookInterval = absl::Seconds(1);

}  // namespace

void HealthService::SetServing(const std::string& service) {
  RankedMutexLock lock(&mu_);
  services_.insert(service);
}

void HealthService::Stop() {
  RankedMutexLock lock(&mu_);
  stopped_ = true;
}

HealthService::Status HealthService::StatusOf(const std::string& service) const {
  if (!services_.contains(service)) return HealthCheckResponse::SERVICE_UNKNOWN;
  return stopped_ ? HealthCheckResponse::NOT_SERVING : HealthCheckResponse::SERVING;
}

grpc::Status HealthService::Check(grpc::ServerContext*, const HealthCheckRequest* request,
                                  HealthCheckResponse* response) {
  RankedMutexLock lock(&mu_);
  const Status status = StatusOf(request->service());
  if (status == HealthCheckResponse::SERVICE_UNKNOWN) {
    return grpc::Status(
        grpc::StatusCode::NOT_FOUND,
        absl::StrCat("there is no service \"", Printable(request->service()), "\" here"));
  }
  response->set_status(status);
  return grpc::Status::OK;
}

grpc::Status HealthService::Watch(grpc::ServerContext* context, const HealthCheckRequest* request,
                                  grpc::ServerWriter<HealthCheckResponse>* writer) {
  {
    RankedMutexLock lock(&mu_);
    if (watchers_ == kMaxWatchers) {
      return grpc::Status(
          grpc::StatusCode::RESOURCE_EXHAUSTED,
          absl::StrCat("at most ", kMaxWatchers, " callers may watch at a time; ask with Check"));
    }
    ++watchers_;
  }
  const absl::Cleanup leave = [this] {
    RankedMutexLock lock(&mu_);
    --watchers_;
  };
  const std::string& service = request->service();
  HealthCheckResponse told;
  const auto news = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {  // the lock is held
    return StatusOf(service) != told.status() || stopped_;
  };
  while (!context->IsCancelled()) {
    bool stopped = false;
    Status status;
    {
      RankedMutexLock lock(&mu_);
      mu_.AwaitWithDeadline(absl::Condition(&news), absl::Now() + kLookInterval);
      stopped = stopped_;
      status = StatusOf(service);
    }
    if (status != told.status()) {  // at first it is UNKNOWN, which nothing is
      told.set_status(status);
      if (!writer->Write(told)) break;
    }
    if (stopped) {
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the daemon is stopping");
    }
  }
  return grpc::Status::CANCELLED;
}

}  // namespace spanpool

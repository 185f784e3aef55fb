// gRPC's standard health service: who serves, and who watches that.
//
// gRPC brings one of its own, but that one is served by threads which poll the daemon's
// connections beside the one thread that serves Exchange, and so take events away from it: a
// message then passes through three threads instead of one (bench/README.md, "Suite refill").
//
// Thread-safe.

#ifndef SPANPOOL_SERVER_HEALTH_SERVICE_H_
#define SPANPOOL_SERVER_HEALTH_SERVICE_H_

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "allocator/lock_rank.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/sync_stream.h"
#include "spanpool/health.grpc.pb.h"

namespace spanpool {

class HealthService final : public grpc::health::v1::Health::Service {
 public:
  // Each takes up a thread while it lasts.
  static constexpr int kMaxWatchers = 4;

  // `service` serves from now on, until Stop; "" is the daemon as a whole.
  void SetServing(const std::string& service) ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing serves any more. Watchers are told so, and their calls end with UNAVAILABLE.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  //   NOT_FOUND  nobody has heard of that service
  grpc::Status Check(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override;
  // Says how the service is, then every change of it, until the caller cancels.
  //   RESOURCE_EXHAUSTED  too many watch; ask with Check
  grpc::Status Watch(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::ServerWriter<grpc::health::v1::HealthCheckResponse>* writer) override;

 private:
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  Status StatusOf(const std::string& service) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  RankedMutex mu_{LockRank::kLeaf};
  absl::flat_hash_set<std::string> services_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  int watchers_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_HEALTH_SERVICE_H_

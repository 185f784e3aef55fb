#include "server/admin_service.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "server/grpc_listener.h"
#include "server/log.h"
#include "server/session.h"

namespace spanpool {
namespace {

void ToProto(const Pool& pool, v1::PoolStatus* out) {
  const PoolStats stats = pool.stats();
  out->set_name(pool.name());
  out->set_incarnation(pool.incarnation());
  out->set_limit_bytes(stats.heap.limit_bytes);
  out->set_reserved_bytes(stats.heap.reserved_bytes);
  out->set_on_loan_bytes(stats.heap.on_loan_bytes);
  out->set_in_lists_bytes(stats.heap.in_lists_bytes);
  out->set_free_bytes(stats.heap.free_bytes);
  out->set_scavenged_bytes(stats.heap.scavenged_bytes);
  out->set_live_listed_blocks(stats.heap.live_listed_blocks);
  out->set_metadata_bytes(stats.heap.metadata_bytes);
  out->set_table_bytes(stats.table_bytes);
  out->set_sessions(stats.sessions);
  out->set_sessions_attached_total(stats.sessions_attached_total);
  out->set_sessions_reaped_total(stats.sessions_reaped_total);
  out->set_exchange_messages_total(stats.exchange_messages_total);
  out->set_grants_total(stats.grants_total);
  out->set_returns_total(stats.returns_total);
  out->set_quarantined_bytes(stats.quarantined_bytes);
  out->set_suspect_blocks(stats.suspect_blocks);
  out->set_refusals_total(stats.refusals_total);
  out->set_lies_total(stats.lies_total);
  out->set_evictions_total(stats.evictions_total);
}

constexpr absl::Duration kDefaultWait = absl::Seconds(1);
constexpr absl::Duration kLongestWait = absl::Minutes(1);

grpc::Status NoPool(const std::string& name) {
  return grpc::Status(grpc::StatusCode::NOT_FOUND,
                      absl::StrCat("there is no pool \"", Printable(name), "\""));
}

grpc::Status Denied() {
  return grpc::Status(grpc::StatusCode::PERMISSION_DENIED,
                      "administration is for root, the daemon's own uid, and those whom every pool "
                      "allows ADMIN access");
}

}  // namespace

class AdminService::Call {
 public:
  explicit Call(AdminService* service) : service_(service) {
    RankedMutexLock lock(&service_->mu_);
    ++service_->calls_;
  }
  ~Call() {
    RankedMutexLock lock(&service_->mu_);
    --service_->calls_;
  }

 private:
  AdminService* const service_;
};

void AdminService::AwaitIdle(absl::Time deadline) {
  RankedMutexLock lock(&mu_);
  mu_.AwaitWithDeadline(absl::Condition(
                            +[](int* calls) { return *calls == 0; }, &calls_),
                        deadline);
}

std::vector<Pool*> AdminService::PoolsOf(const std::string& name) const {
  if (name.empty()) return pools_;
  std::vector<Pool*> found;
  std::copy_if(pools_.begin(), pools_.end(), std::back_inserter(found),
               [&](const Pool* pool) { return pool->name() == name; });
  return found;
}

grpc::Status AdminService::GetStatus(grpc::ServerContext* context,
                                     const v1::GetStatusRequest* request,
                                     v1::GetStatusResponse* response) {
  if (!GrpcListener::IsAdministrator(context->peer())) return Denied();
  const Call call(this);
  response->set_version(kVersion);
  response->set_pid(getpid());
  response->set_restart_safe(store_ != nullptr && store_->restart_safe());
  response->set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - started_));
  const std::vector<Pool*> pools = PoolsOf(request->pool());
  if (pools.empty()) return NoPool(request->pool());
  for (const Pool* pool : pools) ToProto(*pool, response->add_pools());
  return grpc::Status::OK;
}

grpc::Status AdminService::Trim(grpc::ServerContext* context, const v1::TrimRequest* request,
                                v1::TrimResponse* response) {
  if (!GrpcListener::IsAdministrator(context->peer())) return Denied();
  const Call call(this);
  const std::vector<Pool*> pools = PoolsOf(request->pool());
  if (pools.empty()) return NoPool(request->pool());
  const absl::Duration wait =
      request->wait_ms() == 0 ? kDefaultWait : absl::Milliseconds(request->wait_ms());
  if (wait > kLongestWait) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                        absl::StrCat("wait_ms is ", request->wait_ms(), "; expected at most ",
                                     absl::ToInt64Milliseconds(kLongestWait)));
  }
  const std::vector<Recaller::Outcome> outcomes = recaller_->Recall(pools, absl::Now() + wait);
  for (size_t i = 0; i < pools.size(); ++i) {
    const Recaller::Outcome& outcome = outcomes[i];
    v1::PoolTrim* out = response->add_pools();
    out->set_name(pools[i]->name());
    out->set_recalled_bytes(outcome.recalled_bytes);
    out->set_released_bytes(pools[i]->Trim());
    out->set_free_bytes(pools[i]->heap().stats().free_bytes);
    out->set_sessions_asked(outcome.asked);
    out->set_sessions_answered(outcome.answered);
    out->set_slowest_answer_ms(absl::ToDoubleMilliseconds(outcome.slowest));
    for (const std::shared_ptr<Session>& session : outcome.silent) {
      v1::SilentSession* silent = out->add_silent();
      silent->set_session(session->id());
      silent->set_pid(session->peer().pid);
      silent->set_uid(session->peer().uid);
      silent->set_on_loan_bytes(session->loan_bytes());
    }
  }
  return grpc::Status::OK;
}

}  // namespace spanpool

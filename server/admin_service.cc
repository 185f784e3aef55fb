#include "server/admin_service.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/log.h"

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

}  // namespace

grpc::Status AdminService::GetStatus(grpc::ServerContext*, const v1::GetStatusRequest* request,
                                     v1::GetStatusResponse* response) {
  response->set_version(kVersion);
  response->set_pid(getpid());
  response->set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - started_));
  for (const Pool* pool : pools_) {
    if (request->pool().empty() || request->pool() == pool->name()) {
      ToProto(*pool, response->add_pools());
    }
  }
  if (response->pools().empty()) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND,
                        absl::StrCat("there is no pool \"", Printable(request->pool()), "\""));
  }
  return grpc::Status::OK;
}

grpc::Status DeniedAdminService::GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                                           v1::GetStatusResponse*) {
  return grpc::Status(grpc::StatusCode::PERMISSION_DENIED,
                      "administration is for root, the daemon's own uid, and those whom every pool "
                      "allows ADMIN access");
}

}  // namespace spanpool

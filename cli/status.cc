#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/target.h"
#include "grpcpp/client_context.h"
#include "spanpool/v1/admin.grpc.pb.h"

namespace spanpool::cli {
namespace {

constexpr std::chrono::seconds kTimeout(5);

// Names as in admin.proto.
nlohmann::ordered_json ToJson(const v1::PoolStatus& pool) {
  return {
      {"name", pool.name()},
      {"incarnation", pool.incarnation()},
      {"limit_bytes", pool.limit_bytes()},
      {"reserved_bytes", pool.reserved_bytes()},
      {"on_loan_bytes", pool.on_loan_bytes()},
      {"in_lists_bytes", pool.in_lists_bytes()},
      {"free_bytes", pool.free_bytes()},
      {"scavenged_bytes", pool.scavenged_bytes()},
      {"live_listed_blocks", pool.live_listed_blocks()},
      {"metadata_bytes", pool.metadata_bytes()},
      {"table_bytes", pool.table_bytes()},
      {"sessions", pool.sessions()},
      {"sessions_attached_total", pool.sessions_attached_total()},
      {"sessions_reaped_total", pool.sessions_reaped_total()},
      {"exchange_messages_total", pool.exchange_messages_total()},
      {"grants_total", pool.grants_total()},
      {"returns_total", pool.returns_total()},
      {"quarantined_bytes", pool.quarantined_bytes()},
      {"suspect_blocks", pool.suspect_blocks()},
      {"refusals_total", pool.refusals_total()},
      {"lies_total", pool.lies_total()},
      {"evictions_total", pool.evictions_total()},
  };
}

}  // namespace

std::string RenderStatus(const v1::GetStatusResponse& response, const Options& options) {
  if (options.json) {
    nlohmann::ordered_json json = {
        {"version", response.version()},
        {"pid", response.pid()},
        {"uptime_seconds", response.uptime_seconds()},
        {"run_dir", options.run_dir},
        {"restart_safe", response.restart_safe()},
        {"pools", nlohmann::ordered_json::array()},
    };
    for (const v1::PoolStatus& pool : response.pools()) json["pools"].push_back(ToJson(pool));
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  std::vector<std::vector<std::string>> memory = {{"POOL", "LIMIT", "ON LOAN", "SHARED", "FREE",
                                                   "SCAVENGED", "RESERVED", "QUARANTINED",
                                                   "SESSIONS"}};
  std::vector<std::vector<std::string>> counts = {{"POOL", "GRANTS", "RETURNS", "MESSAGES",
                                                   "REFUSALS", "REAPED", "EVICTED", "SUSPECT",
                                                   "LIES"}};
  for (const v1::PoolStatus& pool : response.pools()) {
    memory.push_back({pool.name(), HumanBytes(pool.limit_bytes()), HumanBytes(pool.on_loan_bytes()),
                      HumanBytes(pool.in_lists_bytes()), HumanBytes(pool.free_bytes()),
                      HumanBytes(pool.scavenged_bytes()), HumanBytes(pool.reserved_bytes()),
                      HumanBytes(pool.quarantined_bytes()), absl::StrCat(pool.sessions())});
    counts.push_back(
        {pool.name(), absl::StrCat(pool.grants_total()), absl::StrCat(pool.returns_total()),
         absl::StrCat(pool.exchange_messages_total()), absl::StrCat(pool.refusals_total()),
         absl::StrCat(pool.sessions_reaped_total()), absl::StrCat(pool.evictions_total()),
         absl::StrCat(pool.suspect_blocks()), absl::StrCat(pool.lies_total())});
  }
  return absl::StrCat("spanpoold ", response.version(), ", pid ", response.pid(), ", up ",
                      HumanSeconds(response.uptime_seconds()), ", ", options.run_dir, ", ",
                      response.restart_safe() ? "restart-safe" : "not restart-safe", "\n\n",
                      Table(memory), "\n", Table(counts));
}

absl::StatusOr<std::string> Status(const Options& options) {
  auto channel = Connect(options.run_dir);
  if (!channel.ok()) return channel.status();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  v1::GetStatusRequest request;
  request.set_pool(options.pool);
  v1::GetStatusResponse response;
  const grpc::Status status =
      v1::Admin::NewStub(*std::move(channel))->GetStatus(&context, request, &response);
  if (!status.ok()) return FromGrpc(status, options.run_dir);
  return RenderStatus(response, options);
}

}  // namespace spanpool::cli

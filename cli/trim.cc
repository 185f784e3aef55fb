#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/target.h"
#include "grpcpp/client_context.h"
#include "spanpool/v1/admin.grpc.pb.h"

namespace spanpool::cli {
namespace {

// Beyond what it waits for sessions: giving memory back takes the daemon 0.1 s for each GiB or so.
constexpr std::chrono::seconds kTimeout(60);

// Names as in admin.proto.
nlohmann::ordered_json ToJson(const v1::PoolTrim& pool) {
  nlohmann::ordered_json silent = nlohmann::ordered_json::array();
  for (const v1::SilentSession& session : pool.silent()) {
    silent.push_back({{"session", session.session()},
                      {"pid", session.pid()},
                      {"uid", session.uid()},
                      {"on_loan_bytes", session.on_loan_bytes()}});
  }
  return {
      {"name", pool.name()},
      {"recalled_bytes", pool.recalled_bytes()},
      {"released_bytes", pool.released_bytes()},
      {"free_bytes", pool.free_bytes()},
      {"sessions_asked", pool.sessions_asked()},
      {"sessions_answered", pool.sessions_answered()},
      {"slowest_answer_ms", pool.slowest_answer_ms()},
      {"silent", std::move(silent)},
  };
}

}  // namespace

std::string RenderTrim(const v1::TrimResponse& response, const Options& options) {
  if (options.json) {
    nlohmann::ordered_json json = {{"pools", nlohmann::ordered_json::array()}};
    for (const v1::PoolTrim& pool : response.pools()) json["pools"].push_back(ToJson(pool));
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  std::vector<std::vector<std::string>> rows = {
      {"POOL", "RECALLED", "RELEASED", "STILL FREE", "ASKED", "ANSWERED", "SLOWEST"}};
  std::string silent;
  for (const v1::PoolTrim& pool : response.pools()) {
    rows.push_back({pool.name(), HumanBytes(pool.recalled_bytes()),
                    HumanBytes(pool.released_bytes()), HumanBytes(pool.free_bytes()),
                    absl::StrCat(pool.sessions_asked()), absl::StrCat(pool.sessions_answered()),
                    pool.sessions_answered() == 0
                        ? "-"
                        : absl::StrFormat("%.1f ms", pool.slowest_answer_ms())});
    for (const v1::SilentSession& session : pool.silent()) {
      absl::StrAppend(&silent, "pool ", pool.name(), ": session ", session.session(), " (pid ",
                      session.pid(), ", uid ", session.uid(), ") did not answer and holds ",
                      HumanBytes(session.on_loan_bytes()), "; is its process stopped?\n");
    }
  }
  return absl::StrCat(Table(rows), silent.empty() ? "" : "\n", silent);
}

absl::StatusOr<std::string> Trim(const Options& options) {
  auto channel = Connect(options.run_dir);
  if (!channel.ok()) return channel.status();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout +
                       std::chrono::milliseconds(options.wait_ms));
  v1::TrimRequest request;
  request.set_pool(options.pool);
  request.set_wait_ms(options.wait_ms);
  v1::TrimResponse response;
  const grpc::Status status =
      v1::Admin::NewStub(*std::move(channel))->Trim(&context, request, &response);
  if (!status.ok()) return FromGrpc(status, options.run_dir);
  return RenderTrim(response, options);
}

}  // namespace spanpool::cli

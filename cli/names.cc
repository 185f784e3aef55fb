#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/target.h"
#include "grpcpp/client_context.h"
#include "spanpool/handle.h"
#include "spanpool/v1/admin.grpc.pb.h"
#include "spanpool/v1/pool.grpc.pb.h"

namespace spanpool::cli {
namespace {

constexpr std::chrono::seconds kTimeout(5);

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
}

std::string HandleText(const v1::BlockHandle& block) {
  return Handle{{block.low(), block.high()}}.ToString();
}

// Names as in pool.proto; the handle as people pass it on.
nlohmann::ordered_json ToJson(const v1::NamedBlock& block) {
  return {
      {"name", block.name()},       {"block", HandleText(block.block())},
      {"version", block.version()}, {"outlives_session", block.outlives_session()},
      {"session", block.session()}, {"pid", block.pid()},
      {"uid", block.uid()},
  };
}

// Every page.
absl::StatusOr<v1::ListNamesResponse> ListNames(v1::Pool::Stub& pool, const Options& options,
                                                const std::string& pool_name) {
  v1::ListNamesResponse names;
  v1::ListNamesRequest request;
  request.set_pool(pool_name);
  request.set_prefix(options.name);
  for (;;) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ListNamesResponse page;
    const grpc::Status status = pool.ListNames(&context, request, &page);
    if (!status.ok()) return FromGrpc(status, options.run_dir);
    names.mutable_names()->MergeFrom(page.names());
    if (!page.more() || page.names().empty()) return names;
    request.set_after(page.names().rbegin()->name());
  }
}

}  // namespace

std::string RenderNames(const std::vector<PoolNames>& pools, const Options& options) {
  if (options.json) {
    nlohmann::ordered_json json = {{"pools", nlohmann::ordered_json::array()}};
    for (const auto& [pool, names] : pools) {
      nlohmann::ordered_json blocks = nlohmann::ordered_json::array();
      for (const v1::NamedBlock& block : names.names()) blocks.push_back(ToJson(block));
      json["pools"].push_back({{"name", pool}, {"names", std::move(blocks)}});
    }
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  std::vector<std::vector<std::string>> rows = {
      {"NAME", "POOL", "SESSION", "PID", "UID", "GOES WITH IT", "BLOCK"}};
  for (const auto& [pool, names] : pools) {
    for (const v1::NamedBlock& block : names.names()) {
      rows.push_back({block.name(), pool, absl::StrCat(block.session()), absl::StrCat(block.pid()),
                      absl::StrCat(block.uid()), block.outlives_session() ? "no" : "yes",
                      HandleText(block.block())});
    }
  }
  return Table(rows);
}

absl::StatusOr<std::string> Names(const Options& options) {
  auto channel = Connect(options.run_dir);
  if (!channel.ok()) return channel.status();
  grpc::ClientContext context;
  SetDeadline(context);
  v1::GetStatusRequest request;
  request.set_pool(options.pool);
  v1::GetStatusResponse response;
  const grpc::Status status = v1::Admin::NewStub(*channel)->GetStatus(&context, request, &response);
  if (!status.ok()) return FromGrpc(status, options.run_dir);
  const std::unique_ptr<v1::Pool::Stub> stub = v1::Pool::NewStub(*channel);
  std::vector<PoolNames> pools;
  for (const v1::PoolStatus& pool : response.pools()) {
    absl::StatusOr<v1::ListNamesResponse> names = ListNames(*stub, options, pool.name());
    if (!names.ok()) return names.status();
    pools.emplace_back(pool.name(), *std::move(names));
  }
  return RenderNames(pools, options);
}

absl::StatusOr<std::string> RemoveName(const Options& options) {
  auto channel = Connect(options.run_dir);
  if (!channel.ok()) return channel.status();
  grpc::ClientContext context;
  SetDeadline(context);
  v1::UnpublishRequest request;
  request.set_name(options.name);
  request.set_pool(options.pool.empty() ? "default" : options.pool);
  v1::UnpublishResponse response;
  const grpc::Status status =
      v1::Pool::NewStub(*std::move(channel))->Unpublish(&context, request, &response);
  if (!status.ok()) return FromGrpc(status, options.run_dir);
  return "";
}

}  // namespace spanpool::cli

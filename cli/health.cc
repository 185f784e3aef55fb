#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/target.h"
#include "grpcpp/client_context.h"
#include "spanpool/health.grpc.pb.h"

namespace spanpool::cli {
namespace {

constexpr std::chrono::seconds kTimeout(5);

}  // namespace

absl::StatusOr<std::string> Health(const Options& options) {
  auto channel = Connect(options.run_dir);
  if (!channel.ok()) return channel.status();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  grpc::health::v1::HealthCheckRequest request;
  if (!options.pool.empty()) request.set_service(absl::StrCat("pool/", options.pool));
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status =
      grpc::health::v1::Health::NewStub(*std::move(channel))->Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    return absl::NotFoundError(absl::StrCat("there is no pool \"", options.pool, "\""));
  }
  if (!status.ok()) return FromGrpc(status, options.run_dir);
  const std::string name =
      grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
  if (response.status() != grpc::health::v1::HealthCheckResponse::SERVING) {
    return absl::UnavailableError(
        absl::StrCat("the daemon of ", options.run_dir, " says ", name, "; it is stopping"));
  }
  return options.json ? nlohmann::json{{"status", name}}.dump() + "\n" : name + "\n";
}

}  // namespace spanpool::cli

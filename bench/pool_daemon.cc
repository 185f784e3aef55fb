#include "bench/pool_daemon.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/child.h"

namespace spanpool::bench {
namespace {

std::string ConfigOf(const PoolDaemon::Options& options) {
  std::string pool = "name: \"default\"";
  if (options.limit_bytes != 0) absl::StrAppend(&pool, " limit_bytes: ", options.limit_bytes);
  if (options.reserve_bytes) absl::StrAppend(&pool, " reserve_bytes: ", *options.reserve_bytes);
  if (!options.arena_kind.empty()) absl::StrAppend(&pool, " arena_kind: ", options.arena_kind);
  return absl::StrCat("pool { ", pool, " }\n");
}

}  // namespace

absl::StatusOr<std::unique_ptr<PoolDaemon>> PoolDaemon::Start(const Options& options) {
  std::string run_dir = testing::TemporaryDirectory();
  const std::string config = run_dir + "/config.textproto";
  std::ofstream(config) << ConfigOf(options);
  std::vector<std::string> arguments = {BuiltPath("server/spanpoold"), "--run_dir", run_dir,
                                        "--config", config};
  arguments.insert(arguments.end(), options.flags.begin(), options.flags.end());
  // Owns the directory from here on.
  std::unique_ptr<PoolDaemon> daemon(
      new PoolDaemon(std::move(run_dir), std::make_unique<testing::Process>(arguments)));
  if (daemon->process_->ReadLine() != "READY") {
    return absl::AbortedError(
        absl::StrCat("the daemon did not start: ", LastLine(daemon->process_->standard_error())));
  }
  const absl::StatusOr<v1::GetStatusResponse> status = daemon->GetStatus();
  if (!status.ok()) return absl::AbortedError(status.status().message());
  daemon->pid_ = static_cast<pid_t>(status->pid());
  return daemon;
}

PoolDaemon::PoolDaemon(std::string run_dir, std::unique_ptr<testing::Process> process)
    : run_dir_(std::move(run_dir)),
      process_(std::move(process)),
      admin_(v1::Admin::NewStub(grpc::CreateChannel("unix:" + run_dir_ + "/grpc.sock",
                                                    grpc::InsecureChannelCredentials()))) {}

PoolDaemon::~PoolDaemon() {
  // The second signal insists; a keeper that were merely killed would leave its worker.
  process_->Signal(SIGTERM);
  process_->Signal(SIGINT);
  process_->Wait();
  std::error_code ignored;
  std::filesystem::remove_all(run_dir_, ignored);
}

absl::StatusOr<v1::GetStatusResponse> PoolDaemon::GetStatus() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::GetStatusRequest request;
  request.set_pool("default");
  v1::GetStatusResponse response;
  const grpc::Status status = admin_->GetStatus(&context, request, &response);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  return response;
}

absl::StatusOr<v1::PoolStatus> PoolDaemon::Status() {
  const absl::StatusOr<v1::GetStatusResponse> response = GetStatus();
  if (!response.ok()) return response.status();
  if (response->pools_size() != 1) return absl::InternalError("GetStatus has no pool default");
  return response->pools(0);
}

}  // namespace spanpool::bench

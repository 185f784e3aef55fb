#include "tests/support/daemon.h"

#include <grpcpp/grpcpp.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace spanpool::testing {

Daemon::Daemon() : Daemon(Options()) {}

Daemon::Daemon(const Options& options) : run_dir_(TemporaryDirectory()) {
  const std::string path = run_dir_ + "/config.textproto";
  std::vector<std::string> arguments;
  if (options.audited) {
    std::ofstream(path) << options.config << "run_dir: \"" << run_dir_ << "\"\n";
    arguments = {Runfile("server/audited_daemon_main"), path};
    if (options.kept) arguments.emplace_back("keeper");
  } else {
    arguments = {Runfile("server/spanpoold"), "--run_dir", run_dir_,
                 options.kept ? "--fd_store=keeper" : "--fd_store=none"};
    arguments.insert(arguments.end(), options.flags.begin(), options.flags.end());
    if (!options.config.empty()) {
      std::ofstream(path) << options.config;
      arguments.insert(arguments.end(), {"--config", path});
    }
  }
  process_ = std::make_unique<Process>(arguments);
  if (const auto line = process_->ReadLine(); line != "READY") {
    std::fprintf(stderr, "the daemon did not start: %s\n", process_->standard_error().c_str());
    std::abort();
  }
  // A worker that is killed before it has greeted is no reason to wait a second for the next.
  grpc::ChannelArguments channel;
  channel.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 10);
  channel.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10);
  channel.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  admin_ = v1::Admin::NewStub(grpc::CreateCustomChannel(
      "unix:" + run_dir_ + "/grpc.sock", grpc::InsecureChannelCredentials(), channel));
}

Daemon::~Daemon() {
  // The first asks it to end, the second insists; a keeper that were merely killed would leave its
  // worker.
  process_->Signal(SIGTERM);
  process_->Signal(SIGINT);
  process_->Wait();
  process_.reset();
  std::filesystem::remove_all(run_dir_);
}

v1::GetStatusResponse Daemon::Status(const std::string& pool) {
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(60);
  v1::GetStatusRequest request;
  request.set_pool(pool);
  for (;;) {
    grpc::ClientContext context;
    context.set_deadline(deadline);
    context.set_wait_for_ready(true);
    v1::GetStatusResponse response;
    const grpc::Status status = admin_->GetStatus(&context, request, &response);
    if (status.ok()) return response;
    // A worker that is killed in the middle of the call answers nothing; the next one will.
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE &&
        std::chrono::system_clock::now() < deadline) {
      poll(nullptr, 0, 1);
      continue;
    }
    std::fprintf(stderr, "GetStatus: %s\n%s\n", status.error_message().c_str(),
                 process_->standard_error().c_str());
    std::abort();
  }
}

v1::PoolStatus Daemon::PoolStatus(const std::string& pool) { return Status(pool).pools(0); }

pid_t Daemon::worker_pid() { return static_cast<pid_t>(Status().pid()); }

uint64_t Daemon::MemoryBytes(const std::string& pool) {
  uint64_t bytes = 0;
  const std::string name = "/memfd:spanpool." + pool + ".";
  const std::string directory = "/proc/" + std::to_string(worker_pid()) + "/fd";
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    if (gone || target.rfind(name, 0) != 0 || target.find(".data") == std::string::npos) continue;
    struct stat file;
    if (stat(entry.path().c_str(), &file) == 0)
      bytes += static_cast<uint64_t>(file.st_blocks) * 512;
  }
  return bytes;
}

bool Daemon::Eventually(const std::function<bool(const v1::PoolStatus&)>& condition,
                        const std::string& pool) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition(PoolStatus(pool))) {
    if (std::chrono::steady_clock::now() > deadline) {
      std::fprintf(stderr, "never came to be; the pool is\n%s",
                   PoolStatus(pool).DebugString().c_str());
      return false;
    }
    poll(nullptr, 0, 5);
  }
  return true;
}

bool Daemon::EventuallyReaped(uint64_t sessions) {
  return Eventually(
      [sessions](const auto& status) { return status.sessions_reaped_total() == sessions; });
}

bool Daemon::EventuallyEmpty(const std::string& pool) {
  return Eventually(
      [](const v1::PoolStatus& status) {
        return status.sessions() == 0 && status.on_loan_bytes() == 0 &&
               status.in_lists_bytes() == 0;
      },
      pool);
}

bool Daemon::EventuallySound(const std::string& pool) {
  return EventuallyOk(pool.empty() ? "audit" : "audit " + pool);
}

bool Daemon::EventuallyBalanced(const std::string& pool) { return EventuallyOk("books " + pool); }

bool Daemon::EventuallyOk(const std::string& command) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (;;) {
    process_->WriteLine(command);
    const std::string findings = process_->ReadLine().value_or("the daemon is gone");
    if (findings == "ok") return true;
    if (std::chrono::steady_clock::now() > deadline) {
      std::fprintf(stderr, "the audit: %s\n%s", findings.c_str(),
                   process_->standard_error().c_str());
      return false;
    }
    poll(nullptr, 0, 5);
  }
}

uint64_t Daemon::Recounts() {
  process_->WriteLine("recounts");
  return std::stoull(process_->ReadLine().value_or("0"));
}

}  // namespace spanpool::testing

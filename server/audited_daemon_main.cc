// A daemon that looks at its own pools when a test tells it to: one line of input, one of output.
//
//   audited_daemon_main CONFIG_FILE [keeper]
//
// With a keeper it is started again when it is killed, at once however often, and the next line is
// for its successor.
//
//   audit [POOL]  "ok", or what does not add up, as server/pool_audit.h has it, in that pool or all
//   books POOL    the same, but not of what clients can write
//   recounts      how many recounts there were

#include <signal.h>
#include <systemd/sd-daemon.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "server/config.h"
#include "server/daemon.h"
#include "server/keeper.h"
#include "server/log.h"
#include "server/notify_fd_store.h"
#include "server/pool.h"
#include "server/pool_audit.h"

namespace {

std::string Answer(spanpool::Daemon& daemon, const std::string& command) {
  if (command == "recounts") {
    uint64_t recounts = 0;
    for (const auto& pool : daemon.pools()) recounts += pool->stats().recounts_total;
    return std::to_string(recounts);
  }
  const std::pair<std::string, std::string> words =
      absl::StrSplit(command, absl::MaxSplits(' ', 1));
  const auto depth =
      words.first == "books" ? spanpool::AuditDepth::kBooks : spanpool::AuditDepth::kAll;
  std::vector<std::string> findings;
  for (const auto& pool : daemon.pools()) {
    if (!words.second.empty() && pool->name() != words.second) continue;
    for (std::string& finding : spanpool::AuditPool(*pool, depth)) {
      findings.push_back(std::move(finding));
    }
  }
  return findings.empty() ? "ok" : absl::StrJoin(findings, " | ");
}

}  // namespace

int main(int argc, char** argv) {
  const bool wants_keeper = argc == 3 && argv[2] == std::string("keeper");
  const bool is_worker = std::getenv(spanpool::kKeeperVariable) != nullptr;
  if (wants_keeper && !is_worker) {
    return spanpool::RunKeeper({.program = std::filesystem::read_symlink("/proc/self/exe"),
                                .arguments = {argv, argv + argc},
                                .longest_delay = absl::ZeroDuration()});
  }
  // They end it; a keeper leaves them blocked.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  absl::StatusOr<spanpool::DaemonConfig> config =
      spanpool::ReadConfig(argc == 2 || wants_keeper ? argv[1] : "");
  if (!config.ok()) {
    std::cerr << config.status() << std::endl;
    return 2;
  }
  if (absl::Status status = spanpool::SetUpLog(config->log_format, config->log_level);
      !status.ok()) {
    std::cerr << status << std::endl;
    return 2;
  }
  spanpool::KeptFds kept;
  std::unique_ptr<spanpool::NotifyFdStore> store;
  if (is_worker) {
    kept = spanpool::TakeKeptFds();
    auto connected =
        spanpool::NotifyFdStore::Connect(spanpool::NotifyFdStore::FromEnvironment(), kept);
    if (!connected.ok()) {
      std::cerr << connected.status() << std::endl;
      return 1;
    }
    store = *std::move(connected);
  }
  absl::StatusOr<std::unique_ptr<spanpool::Daemon>> daemon =
      spanpool::Daemon::Start(*std::move(config), store.get(), std::move(kept));
  if (!daemon.ok()) {
    std::cerr << daemon.status() << std::endl;
    return absl::IsDataLoss(daemon.status()) ? spanpool::kExitRefused : 1;
  }
  if (is_worker) {
    sd_notify(0, "READY=1");
  } else {
    std::cout << "READY" << std::endl;
  }
  for (std::string command; std::getline(std::cin, command);) {
    std::cout << Answer(**daemon, command) << std::endl;
  }
  return 0;
}

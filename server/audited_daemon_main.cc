// A daemon that looks at its own pools when a test tells it to: one line of input, one of output.
//
//   audited_daemon_main CONFIG_FILE
//
//   audit [POOL]  "ok", or what does not add up, as server/pool_audit.h has it, in that pool or all
//   books POOL    the same, but not of what clients can write
//   recounts      how many recounts there were

#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/config.h"
#include "server/daemon.h"
#include "server/log.h"
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
  absl::StatusOr<spanpool::DaemonConfig> config = spanpool::ReadConfig(argc == 2 ? argv[1] : "");
  if (!config.ok()) {
    std::cerr << config.status() << std::endl;
    return 2;
  }
  if (absl::Status status = spanpool::SetUpLog(config->log_format, config->log_level);
      !status.ok()) {
    std::cerr << status << std::endl;
    return 2;
  }
  absl::StatusOr<std::unique_ptr<spanpool::Daemon>> daemon =
      spanpool::Daemon::Start(*std::move(config));
  if (!daemon.ok()) {
    std::cerr << daemon.status() << std::endl;
    return 1;
  }
  std::cout << "READY" << std::endl;
  for (std::string command; std::getline(std::cin, command);) {
    std::cout << Answer(**daemon, command) << std::endl;
  }
  return 0;
}

// spanpoold: the daemon's command line.
//
// Exit status: 0 after SIGTERM or SIGINT, 1 if it could not serve, 2 for wrong usage.

#include <systemd/sd-daemon.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "server/admin_service.h"
#include "server/config.h"
#include "server/daemon.h"
#include "server/log.h"

namespace spanpool {
namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

int Fail(int code, const std::string& message) {
  std::fprintf(stderr, "spanpoold: %s\n", message.c_str());
  return code;
}

int Main(int argc, char** argv) {
  CLI::App app("spanpoold: lends shared memory to processes of this machine", "spanpoold");
  std::string config_path, run_dir, limit;
  app.add_option("--config", config_path, "configuration, protobuf text format")
      ->type_name("FILE.textproto");
  app.add_option("--run_dir", run_dir,
                 "where the sockets live; default $SPANPOOL_RUN_DIR, /run/spanpool for root, "
                 "$XDG_RUNTIME_DIR/spanpool")
      ->type_name("DIR");
  app.add_option("--limit", limit, "most memory the pool lends; default 25 % of what is available")
      ->type_name("BYTES[KiB|MiB|GiB|TiB]");
  app.set_version_flag("--version", std::string("spanpoold ") + kVersion);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return Fail(kWrongUsage, std::string(error.what()) + "; see --help");
  }

  DaemonConfig config;
  if (app.count("--config") != 0) {
    absl::StatusOr<DaemonConfig> read = ReadConfig(config_path);
    if (!read.ok()) return Fail(kFailed, std::string(read.status().message()));
    config = *std::move(read);
  }
  if (app.count("--run_dir") != 0) {
    if (run_dir.empty()) return Fail(kWrongUsage, "--run_dir is empty; expected a folder's path");
    config.run_dir = run_dir;
  }
  if (app.count("--limit") != 0) {
    const absl::StatusOr<uint64_t> bytes = ParseBytes(limit);
    if (!bytes.ok()) return Fail(kWrongUsage, "--limit: " + std::string(bytes.status().message()));
    if (*bytes < kMinPoolBytes || *bytes > kMaxPoolBytes) {
      return Fail(kWrongUsage, "--limit: " + limit + " is out of range; expected 1MiB to 16TiB");
    }
    if (config.pools.size() > 1) {
      return Fail(kWrongUsage,
                  "--limit: the configuration has several pools; set limit_bytes of each there");
    }
    if (config.pools.empty()) config.pools.emplace_back();
    PoolConfig& pool = config.pools[0];
    if (!IsLimitOf(pool.arena_kind, *bytes)) {
      return Fail(kWrongUsage, "--limit: " + limit +
                                   " is no multiple of 2MiB, and the pool is of "
                                   "huge pages (arena_kind HUGETLB)");
    }
    pool.limit_bytes = *bytes;
    if (pool.reserve_bytes && *pool.reserve_bytes > *bytes) pool.reserve_bytes = *bytes;
  }
  if (const absl::Status status = SetUpLog(config.log_format, config.log_level); !status.ok()) {
    return Fail(kFailed, std::string(status.message()));
  }

  // Blocked before any thread starts, so that they come to this thread's sigwait alone.
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  sigset_t signals = stop_signals;
  sigaddset(&signals, SIGHUP);
  sigaddset(&signals, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(std::move(config));
  if (!daemon.ok()) return Fail(kFailed, std::string(daemon.status().message()));
  std::puts("READY");
  std::fflush(stdout);
  sd_notify(0, "READY=1");  // does nothing unless systemd started us

  int signal_number = 0;
  for (;;) {
    sigwait(&signals, &signal_number);
    if (sigismember(&stop_signals, signal_number) == 1) break;
    // Operators send these to daemons out of habit; that must not cost the pool its memory.
    Log().info("{}: ignored, nothing can be reloaded or replaced while the daemon runs",
               signal_number == SIGHUP ? "SIGHUP" : "SIGUSR2");
  }
  Log().info("{}: draining", signal_number == SIGTERM ? "SIGTERM" : "SIGINT");
  sd_notify(0, "STOPPING=1");
  // A second one ends it at once.
  pthread_sigmask(SIG_UNBLOCK, &stop_signals, nullptr);
  (*daemon)->Stop();
  return 0;
}

}  // namespace
}  // namespace spanpool

int main(int argc, char** argv) { return spanpool::Main(argc, argv); }

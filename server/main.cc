// spanpoold: the daemon's command line.
//
// The same program is keeper and worker: it starts as the keeper (keeper.h), which executes it
// again as the worker, with $SPANPOOL_KEEPER set. With --fd_store=systemd or =none it is the worker
// at once.
//
// Exit status: 0 after SIGTERM or SIGINT, 1 if it could not serve, 2 for wrong usage; of a worker
// that is to be followed by another, those of keeper.h.

#include <poll.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/layout/packet.h"
#include "server/admin_service.h"
#include "server/config.h"
#include "server/daemon.h"
#include "server/keeper.h"
#include "server/log.h"
#include "server/notify_fd_store.h"

namespace spanpool {
namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

int Fail(int code, const std::string& message) {
  std::fprintf(stderr, "spanpoold: %s\n", message.c_str());
  return code;
}

bool IsSet(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && *value != '\0' && std::string(value) != "0";
}

// systemd says from version 254 on that it would keep descriptors.
std::string DefaultFdStore() {
  return IsSet("NOTIFY_SOCKET") && IsSet("FDSTORE") ? "systemd" : "keeper";
}

// What this program was started as: of several versions behind a link, that is the link.
std::string OwnPath() {
  const auto* const path = reinterpret_cast<const char*>(getauxval(AT_EXECFN));
  std::error_code error;
  std::filesystem::path found;
  if (path != nullptr) found = std::filesystem::absolute(path, error);
  // By a descriptor, perhaps.
  const bool usable = !error && std::filesystem::exists(found, error) &&
                      found.string().rfind("/proc/", 0) != 0 &&
                      found.string().rfind("/dev/", 0) != 0;
  return usable ? found.string() : std::filesystem::read_symlink("/proc/self/exe", error).string();
}

// Waits for a signal that ends the daemon, and returns it.
int AwaitEnd(const sigset_t& signals, const NotifyFdStore* store) {
  const layout::UniqueFd pending(signalfd(-1, &signals, SFD_CLOEXEC));
  std::array<pollfd, 2> waiting = {
      {{.fd = pending.get(), .events = POLLIN, .revents = 0},
       {.fd = store == nullptr ? -1 : store->hang_up(), .events = POLLIN, .revents = 0}}};
  for (;;) {
    if (poll(waiting.data(), waiting.size(), -1) < 0) continue;
    if (waiting[1].revents != 0) {
      waiting[1].fd = -1;
      Log().error(
          "the keeper was killed: serving goes on, but nobody would restart this process, and its "
          "end would be the pools' end; restart the daemon in a quiet moment");
    }
    signalfd_siginfo signal;
    if (waiting[0].revents == 0 || read(pending.get(), &signal, sizeof(signal)) != sizeof(signal)) {
      continue;
    }
    switch (static_cast<int>(signal.ssi_signo)) {
      case SIGHUP:
        // Operators send it to daemons out of habit; that must not cost the pool its memory.
        Log().info("SIGHUP: ignored, nothing can be reloaded while the daemon runs");
        break;
      case SIGUSR2:
        if (store != nullptr && store->restart_safe()) return SIGUSR2;
        Log().info("SIGUSR2: ignored, nobody would start another and hand it what this one has");
        break;
      default:
        return static_cast<int>(signal.ssi_signo);
    }
  }
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
  std::string fd_store = DefaultFdStore();
  app.add_option("--fd_store", fd_store,
                 "who keeps the pools' memory while the daemon is restarted: keeper (a parent "
                 "process of its own), systemd (as FileDescriptorStoreMax= of the unit allows), "
                 "none; default keeper, or systemd if it says that it would")
      ->type_name("WHO")
      ->check(CLI::IsMember({"keeper", "systemd", "none"}));
  app.set_version_flag("--version", std::string("spanpoold ") + kVersion);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return Fail(kWrongUsage, std::string(error.what()) + "; see --help");
  }

  const bool is_worker = std::getenv(kKeeperVariable) != nullptr;
  if (fd_store == "keeper" && !is_worker) {
    return RunKeeper({.program = OwnPath(), .arguments = {argv, argv + argc}});
  }
  if (is_worker) prctl(PR_SET_NAME, "spanpoold");  // its keeper runs it by a descriptor

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

  const bool log_in_json = config.log_format == LogFormat::kJson;
  KeptFds kept;
  std::unique_ptr<NotifyFdStore> store;
  if (fd_store != "none") {
    kept = TakeKeptFds();
    auto connected = NotifyFdStore::Connect(NotifyFdStore::FromEnvironment(), kept);
    if (!connected.ok()) {
      return Fail(kFailed,
                  "--fd_store=" + fd_store + ": " + std::string(connected.status().message()));
    }
    store = *std::move(connected);
  }
  unsetenv(kKeeperVariable);

  absl::StatusOr<std::unique_ptr<Daemon>> daemon =
      Daemon::Start(std::move(config), store.get(), std::move(kept));
  if (!daemon.ok()) {
    return Fail(absl::IsDataLoss(daemon.status()) ? kExitRefused : kFailed,
                std::string(daemon.status().message()));
  }
  if (is_worker) {
    sd_notify(0, log_in_json ? absl::StrCat("READY=1\n", kLogInJson).c_str() : "READY=1");
  } else {
    std::puts("READY");
    std::fflush(stdout);
    sd_notify(0, "READY=1");  // does nothing unless a service manager started us
  }

  const int signal_number = AwaitEnd(signals, store.get());
  if (signal_number == SIGUSR2) {
    Log().info("SIGUSR2: making room for a successor");
    // As if it were killed: a successor finds everything in any case.
    std::_Exit(kExitForSuccessor);
  }
  Log().info("{}: draining", signal_number == SIGTERM ? "SIGTERM" : "SIGINT");
  sd_notify(0, "STOPPING=1");
  // A second one ends it at once. Of a worker its keeper sees to that: who signals both means one.
  if (!is_worker || !store->restart_safe()) {
    pthread_sigmask(SIG_UNBLOCK, &stop_signals, nullptr);
  }
  (*daemon)->Stop();
  return 0;
}

}  // namespace
}  // namespace spanpool

int main(int argc, char** argv) { return spanpool::Main(argc, argv); }

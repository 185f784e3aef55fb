// Suite `recovery`: what it takes to get back what a killed process held.
//
//   client_kill_BLOCKSxSIZE  a client that holds BLOCKS shared blocks of SIZE bytes is killed
//
//   death_ms          from kill(2) until a pidfd says that the process is dead: the kernel's part.
//                     Nothing may be taken back before
//   reclaim_ms        from when the daemon's pidfd said so until the last byte was free, by the
//                     daemon's own clock; it says so in its log
//   whole_ms          from kill(2) until the log said that, by the clock on the wall: no wait of
//                     anybody's is left out
//   others_p99_ratio  another client allocates all the time: the 99th percentile of what an
//                     allocation takes over 2 s around the kill, over that of 2 s before
//   lost_blocks       blocks that are still in use afterwards, and nobody's
//
//   server_kill_GIB   the worker is killed while four clients hold GIB GiB of shared blocks of 4
//   KiB
//                     and allocate all the time
//   upgrade_GIB       likewise, and the keeper is told to start the worker anew (SIGUSR2)
//
//   outage_ms           the longest that a client which needs the daemon for each of its blocks had
//                       to wait for one, from the kill until the new worker had granted some
//   failed_allocations  of the four clients, which have stock
//   lost_blocks         blocks that do not hold any more what was written into them

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/child.h"
#include "bench/harness.h"
#include "bench/pool_daemon.h"
#include "spanpool/spanpool.h"
#include "tests/support/process.h"

namespace spanpool::bench {
namespace {

constexpr uint64_t kBlocks = 100'000;
constexpr uint64_t kBlockBytes = 4096;
constexpr uint64_t kPoolBytes = uint64_t{1} << 30;
constexpr int kWorkers = 4;
// Longer than all that a session keeps idle, so that each is asked for anew.
constexpr uint64_t kProbeBytes = uint64_t{72} << 20;

// A client that allocates and lets go, all the time, and notes how long each allocation takes.
class Bystander {
 public:
  explicit Bystander(std::unique_ptr<Session> session)
      : session_(std::move(session)), thread_([this] { Run(); }) {}
  ~Bystander() {
    stop_.store(true);
    thread_.join();
  }
  Bystander(const Bystander&) = delete;
  Bystander& operator=(const Bystander&) = delete;

  // From now on, until Percentile99.
  void Begin() {
    measured_.store(0);
    measuring_.store(true);
  }
  // Nanoseconds, of all allocations since Begin.
  double Percentile99() {
    measuring_.store(false);
    while (noting_.load()) std::this_thread::yield();
    const size_t n = std::min(measured_.load(), ns_.size());
    if (n == 0) return 0;
    const auto at = ns_.begin() + static_cast<ptrdiff_t>(n * 99 / 100);
    std::nth_element(ns_.begin(), at, ns_.begin() + static_cast<ptrdiff_t>(n));
    return *at;
  }
  // An allocation that failed, or 0.
  uint64_t failures() const { return failures_.load(); }
  uint64_t bytes_on_loan() const { return session_->stats().bytes_on_loan; }

 private:
  void Run() {
    std::mt19937 random(1);
    std::array<Buffer, 256> live;
    while (!stop_.load(std::memory_order_relaxed)) {
      Buffer& buffer = live[random() % live.size()];
      const size_t bytes = size_t{64} << random() % 9;  // to 16 KiB
      buffer = Buffer();
      const double start = NowNs(TimeOf::kWall);
      absl::StatusOr<Buffer> got = session_->Allocate(bytes);
      const double took = NowNs(TimeOf::kWall) - start;
      if (got.ok()) {
        buffer = *std::move(got);
      } else {
        failures_.fetch_add(1);
      }
      noting_.store(true);
      if (measuring_.load()) {
        const size_t n = measured_.load();
        if (n < ns_.size()) ns_[n] = took;
        measured_.store(n + 1);
      }
      noting_.store(false);
    }
  }

  const std::unique_ptr<Session> session_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> measuring_{false};
  std::atomic<bool> noting_{false};
  std::atomic<size_t> measured_{0};
  std::atomic<uint64_t> failures_{0};
  std::vector<double> ns_ = std::vector<double>(size_t{1} << 24);
  std::thread thread_;  // last: it uses the rest
};

// Milliseconds from kill(2) until the kernel says that the process is dead.
absl::StatusOr<double> KillAndAwait(pid_t pid) {
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (pidfd < 0) return absl::ErrnoToStatus(errno, "pidfd_open");
  const double start = NowNs(TimeOf::kWall);
  kill(pid, SIGKILL);
  pollfd wait{pidfd, POLLIN, 0};
  while (poll(&wait, 1, 10'000) < 0 && errno == EINTR) {
  }
  const double ms = (NowNs(TimeOf::kWall) - start) / 1e6;
  close(pidfd);
  if (wait.revents == 0) return absl::DeadlineExceededError("a killed process did not die");
  return ms;
}

// A case with a daemon and clients of its own, which work all the time: so only one is at work.
class Case {
 public:
  Case() = default;
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
  virtual ~Case() = default;

 protected:
  // Ends what another case has running.
  void BeginRound() {
    if (at_work_ != this && at_work_ != nullptr) at_work_->End();
    at_work_ = this;
  }
  virtual void End() = 0;

 private:
  static inline Case* at_work_ = nullptr;
};

class ClientKill final : public Case {
 public:
  explicit ClientKill(absl::Duration window) : window_(window) {}

  absl::StatusOr<Metrics> Round() {
    BeginRound();
    if (absl::Status status = Start(); !status.ok()) return status;
    testing::Process holder(
        {BuiltPath("bench/recovery_holder"), absl::StrCat(kBlocks), absl::StrCat(kBlockBytes)},
        {.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon_->target()}}});
    const std::string ready = holder.ReadLine().value_or("it ended, or hangs");
    if (ready != "READY") return absl::AbortedError(absl::StrCat("recovery_holder: ", ready));

    bystander_->Begin();
    absl::SleepFor(window_);
    const double before = bystander_->Percentile99();
    bystander_->Begin();
    absl::SleepFor(window_ / 2);
    const absl::Time killed = absl::Now();
    const absl::StatusOr<double> death_ms = KillAndAwait(holder.pid());
    if (!death_ms.ok()) return death_ms.status();
    absl::SleepFor(window_ / 2);
    const double around = bystander_->Percentile99();
    if (bystander_->failures() != 0) {
      return absl::AbortedError("an allocation of another client failed");
    }

    const absl::StatusOr<Reclaimed> reclaimed = AwaitReclaimed(holder.pid());
    if (!reclaimed.ok()) return reclaimed.status();
    const absl::StatusOr<double> lost = LostBlocks();
    if (!lost.ok()) return lost.status();
    return Metrics{{"death_ms", "ms", *death_ms},
                   {"reclaim_ms", "ms", reclaimed->ms},
                   {"whole_ms", "ms", absl::ToDoubleMilliseconds(reclaimed->at - killed)},
                   {"others_p99_ratio", "", before == 0 ? 0 : around / before},
                   {"lost_blocks", "blocks", *lost}};
  }

 private:
  void End() override {
    bystander_.reset();
    daemon_.reset();
  }

  absl::Status Start() {
    if (daemon_ != nullptr) return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon =
        PoolDaemon::Start({.limit_bytes = kPoolBytes});
    if (!daemon.ok()) return daemon.status();
    absl::StatusOr<std::unique_ptr<Session>> session =
        Session::Attach({.target = (*daemon)->target()});
    if (!session.ok()) return session.status();
    daemon_ = *std::move(daemon);
    bystander_ = std::make_unique<Bystander>(*std::move(session));
    return absl::OkStatus();
  }

  struct Reclaimed {
    double ms = 0;  // since the daemon knew of the death
    absl::Time at;
  };
  // What the daemon's log says of the process: "DATE TIME … (pid PID, …) … came back in MS ms".
  absl::StatusOr<Reclaimed> AwaitReclaimed(pid_t pid) {
    const std::string process = absl::StrCat("(pid ", pid, ",");
    for (int tries = 0; tries < 1000; ++tries) {
      const std::string log = daemon_->Log();
      const size_t line = log.rfind(process);
      constexpr std::string_view kIn = "came back in ";
      const size_t in = line == std::string::npos ? line : log.find(kIn, line);
      if (in != std::string::npos && log.find('\n', in) != std::string::npos) {
        constexpr std::string_view kTime = "2026-01-31 23:59:59.999";
        Reclaimed reclaimed;
        const size_t number = in + kIn.size();
        const std::string text = log.substr(number, log.find(' ', number) - number);
        // `line` is not 0: the time stands before it.
        const std::string time = log.substr(log.rfind('\n', line) + 1, kTime.size());
        std::string error;
        if (absl::SimpleAtod(text, &reclaimed.ms) &&
            absl::ParseTime("%Y-%m-%d %H:%M:%E*S", time, absl::LocalTimeZone(), &reclaimed.at,
                            &error)) {
          return reclaimed;
        }
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    return absl::NotFoundError("the daemon's log does not say how long it took");
  }

  absl::StatusOr<double> LostBlocks() {
    double lost = 0;
    // What the bystander has on loan changes meanwhile: ask until both agree.
    for (int tries = 0; tries < 200; ++tries) {
      const uint64_t others = bystander_->bytes_on_loan();
      const absl::StatusOr<v1::PoolStatus> status = daemon_->Status();
      if (!status.ok()) return status.status();
      const uint64_t in_use = status->on_loan_bytes() + status->in_lists_bytes();
      lost = in_use <= others ? 0 : static_cast<double>(in_use - others) / kBlockBytes;
      if (lost == 0) break;
      absl::SleepFor(absl::Milliseconds(10));
    }
    return lost;
  }

  const absl::Duration window_;
  std::unique_ptr<PoolDaemon> daemon_;
  std::unique_ptr<Bystander> bystander_;  // after the daemon: it ends first
};

// The daemon's own death, or its upgrade.
class ServerRestart final : public Case {
 public:
  // `pause`: between a start of the worker and its end.
  ServerRestart(uint64_t gib, bool upgrade, absl::Duration pause)
      : gib_(gib), upgrade_(upgrade), pause_(pause) {}

  absl::StatusOr<Metrics> Round() {
    BeginRound();
    if (absl::Status status = Start(); !status.ok()) return status;
    const absl::StatusOr<Tally> before = CountAll();
    if (!before.ok()) return before.status();
    absl::SleepFor(pause_);
    const absl::StatusOr<pid_t> found = daemon_->FindPid();
    if (!found.ok()) return found.status();
    const pid_t old_worker = *found;

    // Some grants before, so that the connection is warm; then until the new worker has granted
    // one.
    absl::Time last;
    absl::Duration outage;
    bool restarted = false;
    for (int grants = -kGrantsBefore; !restarted; ++grants) {
      if (grants == 0) {
        last = absl::Now();
        outage = absl::ZeroDuration();
        if (kill(upgrade_ ? daemon_->keeper_pid() : old_worker, upgrade_ ? SIGUSR2 : SIGKILL) !=
            0) {
          return absl::ErrnoToStatus(errno, "kill");
        }
      }
      if (grants >= 0) {
        const absl::StatusOr<pid_t> worker = daemon_->FindPid();
        if (!worker.ok()) return worker.status();
        restarted = *worker != 0 && *worker != old_worker;
      }
      const absl::StatusOr<Buffer> block =
          prober_->Allocate(kProbeBytes, {.timeout = absl::Seconds(5)});
      if (!block.ok()) return block.status();
      const absl::Time now = absl::Now();
      outage = std::max(outage, now - last);
      last = now;
      if (grants == kMostGrants) return absl::DeadlineExceededError("no new worker was started");
    }
    const absl::StatusOr<Tally> after = CountAll();
    if (!after.ok()) return after.status();
    return Metrics{{"outage_ms", "ms", absl::ToDoubleMilliseconds(outage)},
                   {"failed_allocations", "allocations", after->failed - before->failed},
                   {"lost_blocks", "blocks", after->lost}};
  }

 private:
  static constexpr int kGrantsBefore = 20;
  static constexpr int kMostGrants = 1'000'000;

  struct Tally {
    double failed = 0;
    double lost = 0;
  };

  void End() override {
    prober_.reset();
    workers_.clear();
    daemon_.reset();
  }

  absl::Status Start() {
    if (daemon_ != nullptr) return absl::OkStatus();
    workers_.clear();  // of a try that failed
    const uint64_t live = gib_ << 30;
    const uint64_t limit = live + live / 8 + (uint64_t{512} << 20);
    absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon =
        PoolDaemon::Start({.limit_bytes = limit, .reserve_bytes = limit});
    if (!daemon.ok()) return daemon.status();
    for (int i = 0; i < kWorkers; ++i) {
      workers_.push_back(std::make_unique<testing::Process>(
          std::vector<std::string>{BuiltPath("bench/recovery_holder"),
                                   absl::StrCat(live / kWorkers / kBlockBytes),
                                   absl::StrCat(kBlockBytes), "work"},
          testing::Process::Options{.uid = 0,
                                    .environment = {{"SPANPOOL_TARGET", (*daemon)->target()}}}));
    }
    for (const auto& worker : workers_) {
      const std::string ready = worker->ReadLine().value_or("it ended, or hangs");
      if (ready != "READY") return absl::AbortedError(absl::StrCat("recovery_holder: ", ready));
    }
    absl::StatusOr<std::unique_ptr<Session>> session =
        Session::Attach({.target = (*daemon)->target()});
    if (!session.ok()) return session.status();
    daemon_ = *std::move(daemon);
    prober_ = *std::move(session);
    return absl::OkStatus();
  }

  absl::StatusOr<Tally> CountAll() {
    Tally tally;
    for (const auto& worker : workers_) worker->WriteLine("count");
    for (const auto& worker : workers_) {
      const std::string line = worker->ReadLine().value_or("it ended, or hangs");
      const std::pair<std::string, std::string> numbers = absl::StrSplit(line, ' ');
      double failed = 0;
      double lost = 0;
      if (!absl::SimpleAtod(numbers.first, &failed) || !absl::SimpleAtod(numbers.second, &lost)) {
        return absl::AbortedError(absl::StrCat("recovery_holder: ", line));
      }
      tally.failed += failed;
      tally.lost += lost;
    }
    return tally;
  }

  const uint64_t gib_;
  const bool upgrade_;
  const absl::Duration pause_;
  std::unique_ptr<PoolDaemon> daemon_;
  std::vector<std::unique_ptr<testing::Process>> workers_;
  std::unique_ptr<Session> prober_;
};

void Fill(Suite& suite, const std::vector<std::string>&) {
  const auto kill =
      std::make_shared<ClientKill>(suite.quick() ? absl::Milliseconds(200) : absl::Seconds(2));
  suite.Add(absl::StrCat("client_kill_", kBlocks, "x", kBlockBytes), "spanpool",
            [kill] { return kill->Round(); });
  // The keeper starts a worker later that has served for less than 10 s.
  const absl::Duration pause = suite.quick() ? absl::ZeroDuration() : absl::Milliseconds(10'500);
  for (const uint64_t gib : {uint64_t{1}, uint64_t{8}}) {
    const auto killed = std::make_shared<ServerRestart>(gib, /*upgrade=*/false, pause);
    suite.Add(absl::StrCat("server_kill_", gib), "spanpool", [killed] { return killed->Round(); });
  }
  const auto upgraded = std::make_shared<ServerRestart>(1, /*upgrade=*/true, absl::ZeroDuration());
  suite.Add("upgrade_1", "spanpool", [upgraded] { return upgraded->Round(); });
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "recovery", spanpool::bench::Fill);
}

// Suite `handoff`: a block goes from one process to another, in several systems
// (handoff/two_sides.h).
//
//   SIZE           process A allocates, writes 8 bytes at both ends, shares, sends the handle
//   through
//                  a spinning ring; process B opens, reads, lets go
//   share_release  one process allocates a block, shares it and lets it go
//
// ns_per_message is wall time; rpcs_per_million what the daemon was asked while it was measured,
// per million messages. Of share_release it is processor time of the one thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "bench/child.h"
#include "bench/handoff/huge_pages.h"
#include "bench/harness.h"
#include "bench/pool_daemon.h"
#include "bench/probe.h"
#include "bench/program.h"
#include "tests/support/process.h"

namespace spanpool::bench {
namespace {

constexpr size_t kSizes[] = {64, 4096, 65536, 1048576};
constexpr char kShareRelease[] = "share_release";
constexpr uint64_t kHugePages = 256;
// What is under way at the largest size, several times over.
constexpr uint64_t kPoolBytes = uint64_t{1} << 30;

struct System {
  const char* name;
  const char* program;
  const char* argument = "";
  bool needs_pool = false;
  bool needs_huge_pages = false;
};

constexpr System kSystems[] = {
    {"spanpool", "spanpool_program", "share", /*needs_pool=*/true},
    {"spanpool_send", "spanpool_program", "send", /*needs_pool=*/true},
    {"spanpool_channel", "spanpool_program", "channel", /*needs_pool=*/true},
    {"ring_floor", "floor_program", "ring"},
    {"protocol_floor", "floor_program", "protocol"},
    {"dpdk", "dpdk_program", "", /*needs_pool=*/false, /*needs_huge_pages=*/true},
    {"boost_interprocess", "boost_program"},
    {"unix_socket_copy", "socket_program"},
};

// What the programs of a suite share; each part is made when it is first needed.
class Surroundings {
 public:
  absl::StatusOr<PoolDaemon*> Daemon() {
    if (daemon_ == nullptr) {
      absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon =
          PoolDaemon::Start({.limit_bytes = kPoolBytes});
      if (!daemon.ok()) return daemon.status();
      daemon_ = *std::move(daemon);
    }
    return daemon_.get();
  }
  absl::StatusOr<std::string> HugePagesFolder() {
    if (huge_pages_ == nullptr) {
      absl::StatusOr<std::unique_ptr<HugePages>> pages = HugePages::Reserve(kHugePages);
      if (!pages.ok()) return pages.status();
      huge_pages_ = *std::move(pages);
    }
    return huge_pages_->folder();
  }

 private:
  std::unique_ptr<PoolDaemon> daemon_;
  std::unique_ptr<HugePages> huge_pages_;
};

class SystemProgram {
 public:
  SystemProgram(const System& system, std::string argument, std::shared_ptr<Surroundings> around)
      : system_(system), argument_(std::move(argument)), around_(std::move(around)) {}

  absl::StatusOr<Metrics> Measure(size_t bytes, absl::Duration time) {
    if (absl::Status status = Start(); !status.ok()) return status;
    const absl::StatusOr<std::string> ready =
        Ask(absl::StrCat(bytes, " ", absl::ToInt64Milliseconds(time)));
    if (!ready.ok()) return ready.status();
    const absl::StatusOr<uint64_t> before = Requests();
    const absl::StatusOr<std::string> answer = Ask("GO");
    const absl::StatusOr<uint64_t> after = Requests();
    for (const absl::Status& status : {before.status(), answer.status(), after.status()}) {
      if (!status.ok()) return status;
    }
    const std::vector<std::string> words = absl::StrSplit(*answer, ' ');
    uint64_t messages = 0;
    double ns = 0;
    if (words.size() != 2 || !absl::SimpleAtoi(words[0], &messages) || messages == 0 ||
        !absl::SimpleAtod(words[1], &ns)) {
      return absl::InternalError(absl::StrCat(system_.program, " answered \"", *answer, "\""));
    }
    Metrics metrics = {{"ns_per_message", "ns", ns}};
    if (system_.needs_pool) {
      metrics.push_back(
          {"rpcs_per_million", "",
           static_cast<double>(*after - *before) * 1e6 / static_cast<double>(messages)});
    }
    return metrics;
  }

  absl::StatusOr<Metrics> MeasureShareRelease(size_t bytes, absl::Duration time) {
    if (absl::Status status = Start(); !status.ok()) return status;
    const absl::StatusOr<std::string> answer =
        Ask(absl::StrCat(kShareRelease, " ", bytes, " ", absl::ToInt64Milliseconds(time)));
    if (!answer.ok()) return answer.status();
    double ns = 0;
    if (!absl::SimpleAtod(*answer, &ns)) {
      return absl::InternalError(absl::StrCat(system_.program, " answered \"", *answer, "\""));
    }
    return Metrics{{"ns_per_message", "ns", ns}};
  }

 private:
  absl::Status Start() {
    if (program_ != nullptr) return absl::OkStatus();
    testing::Process::Options options;
    if (system_.needs_pool) {
      const absl::StatusOr<PoolDaemon*> daemon = around_->Daemon();
      if (!daemon.ok()) return daemon.status();
      options.environment.emplace_back("SPANPOOL_TARGET", (*daemon)->target());
    }
    if (system_.needs_huge_pages) {
      const absl::StatusOr<std::string> folder = around_->HugePagesFolder();
      if (!folder.ok()) return folder.status();
      options.environment.emplace_back("SPANPOOL_BENCH_HUGE_DIR", *folder);
    }
    std::vector<std::string> arguments = {
        BuiltPath(absl::StrCat("bench/handoff/", system_.program))};
    if (!argument_.empty()) arguments.push_back(argument_);
    program_ = std::make_unique<Program>(arguments, options);
    const absl::Status ready = program_->Ready();
    if (!ready.ok()) program_.reset();
    return ready;
  }

  absl::StatusOr<std::string> Ask(const std::string& command) {
    absl::StatusOr<std::string> answer = program_->Ask(command);
    // The next case starts it anew.
    if (absl::IsAborted(answer.status())) program_.reset();
    return answer;
  }

  // What the daemon was ever asked by clients; 0 for systems without one.
  absl::StatusOr<uint64_t> Requests() {
    if (!system_.needs_pool) return uint64_t{0};
    const absl::StatusOr<PoolDaemon*> daemon = around_->Daemon();
    if (!daemon.ok()) return daemon.status();
    const absl::StatusOr<v1::PoolStatus> status = (*daemon)->Status();
    if (!status.ok()) return status.status();
    return status->exchange_messages_total();
  }

  const System& system_;
  const std::string argument_;
  const std::shared_ptr<Surroundings> around_;
  std::unique_ptr<Program> program_;
};

void Fill(Suite& suite, const std::vector<std::string>&) {
  const auto around = std::make_shared<Surroundings>();
  const absl::Duration time = suite.round_time();
  for (const System& system : kSystems) {
    const auto program = std::make_shared<SystemProgram>(system, system.argument, around);
    for (const size_t bytes : kSizes) {
      suite.Add(absl::StrCat(bytes), system.name, [=] { return program->Measure(bytes, time); });
    }
  }
  for (const size_t bytes : kSizes) {
    AddProbes(suite, absl::StrCat(bytes), {"cas_pair", "core_round_trip"});
  }
  const auto program = std::make_shared<SystemProgram>(kSystems[0], kShareRelease, around);
  suite.Add(kShareRelease, "spanpool",
            [=] { return program->MeasureShareRelease(kSizes[0], time); });
  AddProbes(suite, kShareRelease, {"cas_pair", "additions_16"});
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "handoff", spanpool::bench::Fill);
}

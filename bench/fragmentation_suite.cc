// Suite `fragmentation`: real programs' allocations, replayed against several allocators.
//
//   fragmentation_suite [FLAGS] --traces DIR [--series FILE]
//
// DIR holds uncompressed traces, NAME.trace; each is a case. Each round is a process of its own
// (bench/trace/replay.cc), so that systems are measured alike, from nothing. With --series, the
// course of memory over each trace is written, too: {case: {system: [[event, live bytes,
// footprint], ...]}}.
//
//   peak_over_live  most memory ever taken from the system / most bytes ever in use by the program
//   external_waste  of the memory held when most bytes are in use, the part in no live block
//   ns_per_op       time of the replay on the wall, per call of malloc or free
//   again_ns_per_op the same when the process replays the trace a second time
//   cpu_ns_per_op   the first time, in processor time of all that takes part, a daemon included
//
// Memory and time are taken in processes of their own. The daemon that memory is counted with is as
// new as the process, and has no reserve; the one that time is measured with has been there before,
// as it would be.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/child.h"
#include "bench/harness.h"
#include "bench/pool_daemon.h"
#include "nlohmann/json.hpp"

namespace spanpool::bench {
namespace {

struct System {
  const char* name;
  const char* allocator;     // the replay's
  const char* library = "";  // put in malloc's place
  const char* package = "";

  bool spanpool() const { return std::string_view(allocator) == "spanpool"; }
};

constexpr System kSystems[] = {
    {"spanpool", "spanpool"},
    {"size_class", "size_class"},
    {"linear", "linear"},
    {"free_list", "free_list"},
    {"jemalloc", "malloc", "libjemalloc.so.2", "libjemalloc2"},
    {"tcmalloc", "malloc", "libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"},
    {"mimalloc", "malloc", "libmimalloc.so.2", "libmimalloc2.0"},
    {"glibc", "malloc"},
};
// Time alone: how much of it is the replay's own.
constexpr System kReplayAlone = {"replay_alone", "none"};

// The same on every machine, and room for every trace.
constexpr uint64_t kPoolBytes = uint64_t{2} << 30;
constexpr char kQuickEvents[] = "200000";
constexpr char kTinyEvents[] = "20000";

class Replays {
 public:
  Replays(const System& system, std::string trace, const char* events)
      : system_(system), trace_(std::move(trace)), events_(events) {}

  // Memory, if `series` is not null; then time.
  absl::StatusOr<Metrics> Round(nlohmann::json* series) {
    Metrics metrics;
    if (series != nullptr) {
      absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon = Daemon({.reserve_bytes = 0});
      if (!daemon.ok()) return daemon.status();
      const absl::StatusOr<nlohmann::json> replay = Run(daemon->get(), {});
      if (!replay.ok()) return replay.status();
      *series = replay->at("series");
      const double peak_live = replay->at("peak_live_bytes");
      const double footprint = replay->at("footprint_at_peak_live");
      const double usable = replay->at("usable_at_peak_live");
      metrics = {
          {"peak_over_live", "ratio", replay->at("peak_footprint").get<double>() / peak_live},
          {"external_waste", "fraction", std::max(0.0, 1 - usable / footprint)}};
    }
    if (daemon_ == nullptr) {
      absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon = Daemon({});
      if (!daemon.ok()) return daemon.status();
      daemon_ = *std::move(daemon);
    }
    const absl::StatusOr<nlohmann::json> replay = Run(daemon_.get(), {"--time"});
    if (!replay.ok()) return replay.status();
    for (const char* metric : {"ns_per_op", "again_ns_per_op", "cpu_ns_per_op"}) {
      metrics.push_back({metric, "ns", replay->at(metric).get<double>()});
    }
    return metrics;
  }

 private:
  // Null for systems that have none.
  absl::StatusOr<std::unique_ptr<PoolDaemon>> Daemon(PoolDaemon::Options options) const {
    if (!system_.spanpool()) return nullptr;
    options.limit_bytes = kPoolBytes;
    return PoolDaemon::Start(options);
  }

  absl::StatusOr<nlohmann::json> Run(const PoolDaemon* daemon,
                                     const std::vector<std::string>& flags) const {
    const char* const program =
        system_.spanpool() ? "bench/trace/replay_spanpool_program" : "bench/trace/replay_program";
    std::vector<std::string> command = {BuiltPath(program), "--allocator", system_.allocator};
    command.insert(command.end(), flags.begin(), flags.end());
    if (*events_ != 0) command.insert(command.end(), {"--events", events_});
    command.push_back(trace_);
    std::vector<std::string> environment;
    if (*system_.library != 0) {
      const absl::StatusOr<std::string> library = FindLibrary(system_.library, system_.package);
      if (!library.ok()) return library.status();
      environment.push_back("LD_PRELOAD=" + *library);
    }
    if (daemon != nullptr) {
      environment.push_back("SPANPOOL_TARGET=" + daemon->target());
      environment.push_back("SPANPOOL_BENCH_DAEMON=" + std::to_string(daemon->pid()));
    }
    const absl::StatusOr<std::string> output = RunChild(command, environment);
    if (!output.ok()) return output.status();
    nlohmann::json replay = nlohmann::json::parse(*output, nullptr, /*allow_exceptions=*/false);
    if (replay.is_discarded()) return absl::InternalError("the replay printed no JSON");
    return replay;
  }

  const System& system_;
  const std::string trace_;
  const char* const events_;  // how many; empty = all
  std::unique_ptr<PoolDaemon> daemon_;
};

int Main(int argc, char** argv) {
  std::string series_path;
  // Kept by the rounds, which run after `fill` has returned.
  const auto series = std::make_shared<nlohmann::json>(nlohmann::json::object());
  const int status = SuiteMain(
      argc, argv, "fragmentation", [&](Suite& suite, const std::vector<std::string>& arguments) {
        std::string traces;
        for (size_t i = 0; i + 1 < arguments.size(); i += 2) {
          if (arguments[i] == "--traces") traces = arguments[i + 1];
          if (arguments[i] == "--series") series_path = arguments[i + 1];
        }
        std::vector<std::filesystem::path> paths;
        std::error_code error;
        for (const auto& entry : std::filesystem::directory_iterator(traces, error)) {
          if (entry.path().extension() == ".trace") paths.push_back(entry.path());
        }
        std::sort(paths.begin(), paths.end());
        if (paths.empty()) std::cerr << "fragmentation: no traces in '" << traces << "'\n";
        for (const std::filesystem::path& path : paths) {
          const std::string case_name = path.stem();
          const char* const events = suite.tiny() ? kTinyEvents : suite.quick() ? kQuickEvents : "";
          for (const System& system : kSystems) {
            const auto replays = std::make_shared<Replays>(system, path, events);
            suite.Add(case_name, system.name, [replays, series, case_name, &system] {
              return replays->Round(&(*series)[case_name][system.name]);
            });
          }
          const auto alone = std::make_shared<Replays>(kReplayAlone, path, events);
          suite.Add(case_name, kReplayAlone.name, [alone] { return alone->Round(nullptr); });
        }
      });
  if (status != 0 || series_path.empty()) return status;
  std::ofstream file(series_path);
  file << series->dump() << "\n";
  return file ? 0 : 1;
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) { return spanpool::bench::Main(argc, argv); }

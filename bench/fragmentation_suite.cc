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
//   ns_per_event    time of the replay, not counting the times memory is looked at

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/child.h"
#include "bench/harness.h"
#include "nlohmann/json.hpp"

namespace spanpool::bench {
namespace {

struct System {
  std::string name;
  std::string allocator;  // replay's
  std::string library;    // put in malloc's place
  std::string package;
};

const System kSystems[] = {
    {"size_class", "size_class", "", ""},
    {"linear", "linear", "", ""},
    {"free_list", "free_list", "", ""},
    {"jemalloc", "malloc", "libjemalloc.so.2", "libjemalloc2"},
    {"tcmalloc", "malloc", "libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"},
};

absl::StatusOr<Metrics> Replay(const std::vector<std::string>& command,
                               const std::vector<std::string>& environment,
                               nlohmann::json* series) {
  const absl::StatusOr<std::string> output = RunChild(command, environment);
  if (!output.ok()) return output.status();
  const nlohmann::json replay = nlohmann::json::parse(*output, nullptr, /*allow_exceptions=*/false);
  if (replay.is_discarded()) return absl::InternalError("replay printed no JSON");
  *series = replay["series"];
  const double peak_live = replay["peak_live_bytes"];
  const double footprint = replay["footprint_at_peak_live"];
  const double usable = replay["usable_at_peak_live"];
  return Metrics{{"peak_over_live", "ratio", replay["peak_footprint"].get<double>() / peak_live},
                 {"external_waste", "fraction", std::max(0.0, 1 - usable / footprint)},
                 {"ns_per_event", "ns", replay["ns_per_event"].get<double>()}};
}

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
          for (const System& system : kSystems) {
            std::vector<std::string> environment;
            if (!system.library.empty()) {
              const auto library = FindLibrary(system.library, system.package);
              if (!library.ok()) {
                suite.Absent(case_name, system.name, std::string(library.status().message()));
                continue;
              }
              environment.push_back("LD_PRELOAD=" + *library);
            }
            std::vector<std::string> command = {BuiltPath("bench/trace/replay"), "--allocator",
                                                system.allocator};
            if (suite.quick()) command.insert(command.end(), {"--events", "200000"});
            command.push_back(path);
            suite.Add(case_name, system.name,
                      [command, environment, series, case_name, name = system.name] {
                        return Replay(command, environment, &(*series)[case_name][name]);
                      });
          }
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

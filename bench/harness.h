// How this folder measures: cases, systems, rounds, medians.
//
// A suite is a program. It has cases; in each case several systems do the same work, and one of
// them is spanpool. A *round* is one measurement of one system. Rounds of the systems of a case
// alternate, in an order that turns around each time, so that whatever else the machine does
// meanwhile falls on all of them; ratios then hold where absolute figures do not. A round may yield
// several metrics. What is reported is the median over the rounds, with the least and the greatest.
//
// A system that cannot take part is reported as absent, with the reason; so is one whose round
// fails.
//
// Every suite program takes the same flags (SuiteMain) and writes JSON:
//   {"results": [{"suite", "case", "system", "metric", "value", "min", "max", "n", "unit"}],
//    "absent": [{"suite", "case", "system", "why"}]}
// `bench/run` builds the programs, runs them and puts their outputs together.

#ifndef SPANPOOL_BENCH_HARNESS_H_
#define SPANPOOL_BENCH_HARNESS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

namespace spanpool::bench {

struct Metric {
  std::string name;  // "ns_per_pair"
  std::string unit;  // "ns"
  double value;
};
using Metrics = std::vector<Metric>;

// Measures once. Everything that is not to be measured (setting up, warming up) is done before, or
// in the first call, whose metrics are thrown away.
using Round = std::function<absl::StatusOr<Metrics>()>;

struct SuiteOptions {
  int rounds = 9;
  // For a quick look: as many rounds, but of less work. Suites decide what that is.
  bool quick = false;
  // Quick, and as little work as shows that every part of the suite works; the first call is kept.
  // Its figures say nothing.
  bool tiny = false;
  // Only cases whose name holds this.
  std::string filter;
};

class Suite {
 public:
  Suite(std::string name, SuiteOptions options);

  bool quick() const { return options_.quick; }
  bool tiny() const { return options_.tiny; }
  // How long a timed round should take.
  absl::Duration round_time() const;

  // Adds a system to a case. Cases run in the order they were first named in.
  void Add(const std::string& case_name, const std::string& system, Round round);
  void Absent(const std::string& case_name, const std::string& system, const std::string& why);

  // Runs all rounds; says on stderr what it is doing. Returns the JSON above.
  nlohmann::json Run();

 private:
  struct System {
    std::string name;
    Round round;
    std::vector<Metrics> rounds;
    bool failed = false;
  };
  struct Case {
    std::string name;
    std::vector<System> systems;
  };

  void RunCase(Case& c);
  void Measure(const Case& c, System& system, bool keep);

  const std::string name_;
  const SuiteOptions options_;
  std::vector<Case> cases_;
  nlohmann::json results_ = nlohmann::json::array();
  nlohmann::json absent_ = nlohmann::json::array();
};

// Which time is meant.
enum class TimeOf {
  kThread,  // while this thread runs: what else a busy machine does is not counted. For work of one
            // thread that never waits
  kWall,    // all of it: for what waits, or uses other threads
};
double NowNs(TimeOf what);

// Times something that is done n times, for about `time`: first finds out how often that is, then
// measures that often in each call. Nanoseconds for one.
class Timer {
 public:
  // Times `operations(n)`.
  Timer(absl::Duration time, TimeOf what, std::function<void(int64_t)> operations);
  // Of something that knows itself which part of it counts: `ns_of(n)` says how long it took.
  Timer(absl::Duration time, std::function<double(int64_t)> ns_of);

  double NsPerOperation();

 private:
  const absl::Duration time_;
  const std::function<double(int64_t)> ns_of_;
  int64_t n_ = 0;
};

// A round that is one figure of a Timer.
Round TimedRound(std::string metric, absl::Duration time, TimeOf what,
                 std::function<void(int64_t)> operations);

// The whole of a suite program's main: `fill` adds the cases.
// Flags: --quick, --tiny (one round), --rounds N, --case TEXT, --out FILE (default: standard
// output), and what `fill` finds in `arguments` (all that is left).
int SuiteMain(int argc, char** argv, const std::string& name,
              const std::function<void(Suite&, const std::vector<std::string>& arguments)>& fill);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_HARNESS_H_

#include "bench/harness.h"

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>

#include "absl/status/status.h"

namespace spanpool::bench {

Suite::Suite(std::string name, SuiteOptions options)
    : name_(std::move(name)), options_(std::move(options)) {}

absl::Duration Suite::round_time() const {
  return absl::Milliseconds(options_.tiny ? 1 : options_.quick ? 10 : 60);
}

void Suite::Add(const std::string& case_name, const std::string& system, Round round) {
  if (case_name.find(options_.filter) == std::string::npos) return;
  auto it = std::find_if(cases_.begin(), cases_.end(),
                         [&case_name](const Case& c) { return c.name == case_name; });
  if (it == cases_.end()) it = cases_.insert(it, Case{.name = case_name, .systems = {}});
  it->systems.push_back(System{.name = system, .round = std::move(round), .rounds = {}});
}

void Suite::Absent(const std::string& case_name, const std::string& system,
                   const std::string& why) {
  if (case_name.find(options_.filter) == std::string::npos) return;
  std::cerr << name_ << " " << case_name << ": no " << system << ": " << why << "\n";
  absent_.push_back({{"suite", name_}, {"case", case_name}, {"system", system}, {"why", why}});
}

nlohmann::json Suite::Run() {
  for (Case& c : cases_) RunCase(c);
  return {{"results", results_}, {"absent", absent_}};
}

void Suite::RunCase(Case& c) {
  std::cerr << name_ << " " << c.name << " ..." << std::flush;
  if (!options_.tiny) {
    for (System& system : c.systems) Measure(c, system, /*keep=*/false);
  }
  for (int round = 0; round < options_.rounds; ++round) {
    for (size_t i = 0; i < c.systems.size(); ++i) {
      Measure(c, c.systems[round % 2 == 0 ? i : c.systems.size() - 1 - i], /*keep=*/true);
    }
  }
  std::cerr << " done\n";
  for (const System& system : c.systems) {
    if (system.failed) continue;
    // Metrics in the order of the round, which is the order a reader expects.
    for (size_t m = 0; m < system.rounds.front().size(); ++m) {
      std::vector<double> values;
      for (const Metrics& metrics : system.rounds) values.push_back(metrics[m].value);
      std::sort(values.begin(), values.end());
      const size_t n = values.size();
      const double median = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
      const Metric& metric = system.rounds.front()[m];
      results_.push_back({{"suite", name_},
                          {"case", c.name},
                          {"system", system.name},
                          {"metric", metric.name},
                          {"value", median},
                          {"min", values.front()},
                          {"max", values.back()},
                          {"n", n},
                          {"unit", metric.unit}});
    }
  }
}

void Suite::Measure(const Case& c, System& system, bool keep) {
  if (system.failed) return;
  absl::StatusOr<Metrics> metrics = system.round();
  if (metrics.ok() && keep && !system.rounds.empty() &&
      metrics->size() != system.rounds.front().size()) {
    metrics = absl::InternalError("its rounds do not agree on their metrics");
  }
  if (!metrics.ok()) {
    system.failed = true;
    std::cerr << "\n";
    Absent(c.name, system.name, std::string(metrics.status().message()));
  } else if (keep) {
    system.rounds.push_back(*std::move(metrics));
  }
}

double NowNs(TimeOf what) {
  timespec now{};
  clock_gettime(what == TimeOf::kThread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

Timer::Timer(absl::Duration time, TimeOf what, std::function<void(int64_t)> operations)
    : Timer(time, [what, operations = std::move(operations)](int64_t n) {
        const double start = NowNs(what);
        operations(n);
        return NowNs(what) - start;
      }) {}

Timer::Timer(absl::Duration time, std::function<double(int64_t)> ns_of)
    : time_(time), ns_of_(std::move(ns_of)) {}

double Timer::NsPerOperation() {
  if (n_ == 0) {
    const double wanted = absl::ToDoubleNanoseconds(time_);
    n_ = 1;
    // Short runs say little of how long a long one takes; so approach it.
    for (double ns = ns_of_(n_); ns < wanted / 2; ns = ns_of_(n_)) {
      const double factor = std::clamp(wanted / std::max(ns, 1.0), 2.0, 16.0);
      n_ = static_cast<int64_t>(static_cast<double>(n_) * factor);
    }
  }
  return ns_of_(n_) / static_cast<double>(n_);
}

Round TimedRound(std::string metric, absl::Duration time, TimeOf what,
                 std::function<void(int64_t)> operations) {
  return [metric = std::move(metric),
          timer = std::make_shared<Timer>(time, what,
                                          std::move(operations))]() -> absl::StatusOr<Metrics> {
    return Metrics{{metric, "ns", timer->NsPerOperation()}};
  };
}

int SuiteMain(int argc, char** argv, const std::string& name,
              const std::function<void(Suite&, const std::vector<std::string>& arguments)>& fill) {
  SuiteOptions options;
  std::string out;
  std::vector<std::string> rest;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--tiny") {
      options.quick = options.tiny = true;
      options.rounds = 1;
    } else if (argument == "--rounds" && has_value) {
      options.rounds = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--case" && has_value) {
      options.filter = argv[++i];
    } else if (argument == "--out" && has_value) {
      out = argv[++i];
    } else {
      rest.push_back(argument);
    }
  }
  Suite suite(name, options);
  fill(suite, rest);
  const std::string json = suite.Run().dump() + "\n";
  if (out.empty()) {
    std::cout << json;
    return 0;
  }
  std::ofstream file(out);
  file << json;
  file.close();
  if (!file) {
    std::cerr << name << ": cannot write " << out << "\n";
    return 1;
  }
  return 0;
}

}  // namespace spanpool::bench

// Latencies of calls: taken back to back or after idleness, reported by percentile.

#ifndef SPANPOOL_BENCH_LATENCY_H_
#define SPANPOOL_BENCH_LATENCY_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/harness.h"

namespace spanpool::bench {

// Not thread-safe.
class Latencies {
 public:
  void Add(double ns) { ns_.push_back(ns); }
  void AddAll(const Latencies& other);
  size_t count() const { return ns_.size(); }

  // p50, p90, p99 and max, in microseconds. A percentile is the least latency that so many per cent
  // of all do not exceed. Requires at least one.
  Metrics ToMetrics() const;

 private:
  std::vector<double> ns_;
};

// What is timed: one call there and back.
using Call = std::function<absl::Status()>;

// Calls `count` times, one after the other. The first error ends it.
absl::StatusOr<Latencies> TimeBackToBack(const Call& call, size_t count);

struct Idleness {
  absl::Duration least = absl::Milliseconds(900);
  absl::Duration most = absl::Milliseconds(2300);
};

// How suites use it: so many sessions at once, and so often each.
inline constexpr size_t kIdleCallers = 64;
inline constexpr size_t kIdleRepeats = 2;
// The same for a quick look.
inline constexpr size_t kQuickIdleCallers = 8;
inline constexpr Idleness kQuickIdleness = {.least = absl::Milliseconds(900),
                                            .most = absl::Milliseconds(1300)};

// Each of `callers`, in a thread of its own, sleeps for a random while and then calls once,
// `repeats` times over; all their latencies go into one pool. The random numbers are those of
// `seed`, so that systems that are compared sleep alike.
absl::StatusOr<Latencies> TimeAfterIdle(const std::vector<Call>& callers, size_t repeats,
                                        const Idleness& idleness, uint64_t seed);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_LATENCY_H_

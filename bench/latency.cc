#include "bench/latency.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"

namespace spanpool::bench {

void Latencies::AddAll(const Latencies& other) {
  ns_.insert(ns_.end(), other.ns_.begin(), other.ns_.end());
}

Metrics Latencies::ToMetrics() const {
  std::vector<double> sorted = ns_;
  std::sort(sorted.begin(), sorted.end());
  const auto percentile = [&sorted](double p) {
    const auto rank = static_cast<size_t>(std::ceil(p / 100 * static_cast<double>(sorted.size())));
    return sorted[std::max<size_t>(rank, 1) - 1] / 1000;
  };
  return {{"p50", "us", percentile(50)},
          {"p90", "us", percentile(90)},
          {"p99", "us", percentile(99)},
          {"max", "us", percentile(100)}};
}

absl::StatusOr<Latencies> TimeBackToBack(const Call& call, size_t count) {
  Latencies latencies;
  for (size_t i = 0; i < count; ++i) {
    const double start = NowNs(TimeOf::kWall);
    if (absl::Status status = call(); !status.ok()) return status;
    latencies.Add(NowNs(TimeOf::kWall) - start);
  }
  return latencies;
}

absl::StatusOr<Latencies> TimeAfterIdle(const std::vector<Call>& callers, size_t repeats,
                                        const Idleness& idleness, uint64_t seed) {
  std::vector<absl::StatusOr<Latencies>> results(callers.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < callers.size(); ++i) {
    threads.emplace_back([&, i] {
      std::seed_seq seeds{seed, static_cast<uint64_t>(i)};
      std::mt19937_64 random(seeds);
      std::uniform_real_distribution<double> idle_ms(absl::ToDoubleMilliseconds(idleness.least),
                                                     absl::ToDoubleMilliseconds(idleness.most));
      Latencies latencies;
      for (size_t repeat = 0; repeat < repeats; ++repeat) {
        absl::SleepFor(absl::Milliseconds(idle_ms(random)));
        absl::StatusOr<Latencies> one = TimeBackToBack(callers[i], 1);
        if (!one.ok()) {
          results[i] = one.status();
          return;
        }
        latencies.AddAll(*one);
      }
      results[i] = std::move(latencies);
    });
  }
  for (std::thread& thread : threads) thread.join();
  Latencies pool;
  for (const absl::StatusOr<Latencies>& result : results) {
    if (!result.ok()) return result.status();
    pool.AddAll(*result);
  }
  return pool;
}

}  // namespace spanpool::bench

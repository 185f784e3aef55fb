#include "bench/latency.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"

namespace spanpool::bench {
namespace {

double ValueOf(const Metrics& metrics, const std::string& name) {
  for (const Metric& metric : metrics) {
    if (metric.name == name) return metric.value;
  }
  ADD_FAILURE() << "no metric " << name;
  return 0;
}

TEST(Latencies, APercentileIsTheLeastThatSoManyDoNotExceed) {
  Latencies latencies;
  for (int us = 200; us > 0; --us) latencies.Add(us * 1000.0);
  const Metrics metrics = latencies.ToMetrics();
  EXPECT_EQ(ValueOf(metrics, "p50"), 100);
  EXPECT_EQ(ValueOf(metrics, "p90"), 180);
  EXPECT_EQ(ValueOf(metrics, "p99"), 198);
  EXPECT_EQ(ValueOf(metrics, "max"), 200);
}

TEST(Latencies, OfOneCallEveryPercentileIsIt) {
  Latencies latencies;
  latencies.Add(7000);
  for (const Metric& metric : latencies.ToMetrics()) EXPECT_EQ(metric.value, 7) << metric.name;
}

TEST(TimeBackToBack, TimesEachCallAndEndsWithTheFirstError) {
  int calls = 0;
  const auto fail_third = [&calls] {
    return ++calls == 3 ? absl::AbortedError("third") : absl::OkStatus();
  };
  EXPECT_EQ(TimeBackToBack(fail_third, 9).status(), absl::AbortedError("third"));
  EXPECT_EQ(calls, 3);
  const auto latencies = TimeBackToBack(fail_third, 9);
  ASSERT_TRUE(latencies.ok()) << latencies.status();
  EXPECT_EQ(latencies->count(), 9u);
}

TEST(TimeAfterIdle, EachCallerSleepsBeforeEachCallAndAllCallsAreInOnePool) {
  constexpr absl::Duration kIdle = absl::Milliseconds(20);
  std::atomic<int> calls{0};
  const Call call = [&calls] {
    ++calls;
    return absl::OkStatus();
  };
  const absl::Time start = absl::Now();
  const auto latencies =
      TimeAfterIdle(std::vector<Call>(3, call), 2, {.least = kIdle, .most = 2 * kIdle}, 1);
  ASSERT_TRUE(latencies.ok()) << latencies.status();
  EXPECT_GE(absl::Now() - start, 2 * kIdle);
  EXPECT_EQ(calls, 6);
  EXPECT_EQ(latencies->count(), 6u);
}

TEST(TimeAfterIdle, AnErrorOfAnyCallerIsTheResult) {
  const Call good = [] { return absl::OkStatus(); };
  const Call bad = [] { return absl::AbortedError("no"); };
  EXPECT_EQ(TimeAfterIdle({good, bad}, 1, {absl::ZeroDuration(), absl::ZeroDuration()}, 1).status(),
            absl::AbortedError("no"));
}

}  // namespace
}  // namespace spanpool::bench

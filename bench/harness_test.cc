#include "bench/harness.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace spanpool::bench {
namespace {

SuiteOptions WithRounds(int rounds) {
  SuiteOptions options;
  options.rounds = rounds;
  return options;
}

// A round that yields 0, 1, 2, … and notes its name.
Round Counting(std::string name, std::vector<std::string>* log) {
  return [name = std::move(name), log, i = 0]() mutable -> absl::StatusOr<Metrics> {
    log->push_back(name);
    return Metrics{{"count", "1", static_cast<double>(i++)}};
  };
}

TEST(Suite, ReportsMedianLeastAndGreatestWithoutTheFirstCall) {
  Suite suite("s", WithRounds(9));
  std::vector<std::string> log;
  suite.Add("c", "x", Counting("x", &log));
  const nlohmann::json json = suite.Run();
  const nlohmann::json want = {{"suite", "s"},      {"case", "c"},  {"system", "x"},
                               {"metric", "count"}, {"value", 5.0}, {"min", 1.0},
                               {"max", 9.0},        {"n", 9},       {"unit", "1"}};
  EXPECT_EQ(json["results"], nlohmann::json::array({want}));
  EXPECT_TRUE(json["absent"].empty());
}

TEST(Suite, AnEvenNumberOfRoundsHasItsMedianBetweenTheMiddleTwo) {
  Suite suite("s", WithRounds(4));
  std::vector<std::string> log;
  suite.Add("c", "x", Counting("x", &log));
  EXPECT_EQ(suite.Run()["results"][0]["value"], 2.5);
}

TEST(Suite, RoundsOfTheSystemsOfACaseAlternateAndTurnAround) {
  Suite suite("s", WithRounds(3));
  std::vector<std::string> log;
  for (const std::string name : {"a", "b", "c"}) suite.Add("case", name, Counting(name, &log));
  suite.Run();
  std::string order;
  for (const std::string& name : log) order += name;
  EXPECT_EQ(order,
            "abc"
            "abc"
            "cba"
            "abc");
}

TEST(Suite, ASystemWhoseRoundFailsIsAbsentWithTheReason) {
  Suite suite("s", WithRounds(3));
  std::vector<std::string> log;
  suite.Add("c", "good", Counting("good", &log));
  int calls = 0;
  suite.Add("c", "bad", [&calls]() -> absl::StatusOr<Metrics> {
    if (++calls < 3) return Metrics{{"m", "1", 1.0}};
    return absl::UnavailableError("it broke");
  });
  suite.Absent("c", "never", "not here");
  const nlohmann::json json = suite.Run();
  EXPECT_EQ(json["results"].size(), 1u);
  EXPECT_EQ(calls, 3) << "and is not asked again";
  ASSERT_EQ(json["absent"].size(), 2u);
  EXPECT_EQ(json["absent"][0]["system"], "never");
  EXPECT_EQ(json["absent"][1]["system"], "bad");
  EXPECT_EQ(json["absent"][1]["why"], "it broke");
}

TEST(Suite, AFilterLeavesOutOtherCases) {
  Suite suite("s", {.rounds = 1, .quick = false, .filter = "keep"});
  std::vector<std::string> log;
  suite.Add("drop", "x", Counting("drop", &log));
  suite.Add("keep_this", "x", Counting("keep", &log));
  suite.Absent("drop", "y", "no");
  const nlohmann::json json = suite.Run();
  EXPECT_EQ(json["results"].size(), 1u);
  EXPECT_TRUE(json["absent"].empty());
}

TEST(Timer, FindsOutHowOftenAndThenMeasuresThat) {
  std::vector<int64_t> counts;
  Timer timer(absl::Microseconds(200), TimeOf::kWall, [&counts](int64_t n) {
    counts.push_back(n);
    std::atomic<int64_t> done{0};
    for (int64_t i = 0; i < n; ++i) done.fetch_add(1);
  });
  EXPECT_GT(timer.NsPerOperation(), 0);
  EXPECT_GT(counts.back(), 1);
  const size_t calls = counts.size();
  timer.NsPerOperation();
  EXPECT_EQ(counts.size(), calls + 1);
  EXPECT_EQ(counts[calls], counts[calls - 1]);
}

}  // namespace
}  // namespace spanpool::bench

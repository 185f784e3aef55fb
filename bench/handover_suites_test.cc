// The suites handoff and recovery run, and say what they are there to say. What the figures are is
// not this test's business, but for those that are no times: nothing may be lost.

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/child.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace spanpool::bench {
namespace {

using Figure = std::tuple<std::string, std::string, std::string>;  // case, system, metric

std::map<Figure, double> Figures(const std::string& suite, const std::string& of_case) {
  const absl::StatusOr<std::string> output = RunChild(
      {BuiltPath("bench/" + suite + "_suite"), "--quick", "--rounds", "1", "--case", of_case});
  EXPECT_TRUE(output.ok()) << output.status();
  std::map<Figure, double> figures;
  if (!output.ok()) return figures;
  const auto report = nlohmann::json::parse(*output);
  for (const auto& absent : report["absent"]) {
    // Whether there are huge pages, DPDK and Boost is the machine's business, ours is not.
    EXPECT_FALSE(absent["system"].get<std::string>().starts_with("spanpool")) << absent;
  }
  for (const auto& result : report["results"]) {
    const Figure figure(result["case"].get<std::string>(), result["system"].get<std::string>(),
                        result["metric"].get<std::string>());
    figures[figure] = result["value"].get<double>();
  }
  return figures;
}

TEST(HandoverSuites, HandoffMeasuresEveryWayOfOursAndTheFloors) {
  const std::map<Figure, double> figures = Figures("handoff", "64");
  for (const std::string system : {"spanpool", "spanpool_send", "spanpool_channel", "ring_floor",
                                   "protocol_floor", "unix_socket_copy"}) {
    const auto found = figures.find({"64", system, "ns_per_message"});
    ASSERT_NE(found, figures.end()) << system;
    EXPECT_GT(found->second, 0) << system;
  }
  EXPECT_TRUE(figures.contains({"64", "spanpool", "rpcs_per_million"}));
  EXPECT_TRUE(figures.contains({"64", "probe", "cas_pair"}));
}

TEST(HandoverSuites, AKilledClientLeavesNothingBehind) {
  const std::map<Figure, double> figures = Figures("recovery", "client_kill");
  const auto of = [&figures](const std::string& metric) {
    const auto found = figures.find({"client_kill_100000x4096", "spanpool", metric});
    return found == figures.end() ? -1 : found->second;
  };
  EXPECT_GT(of("death_ms"), 0);
  EXPECT_GT(of("reclaim_ms"), 0);
  EXPECT_GT(of("whole_ms"), 0);
  EXPECT_GT(of("others_p99_ratio"), 0);
  EXPECT_EQ(of("lost_blocks"), 0);
}

}  // namespace
}  // namespace spanpool::bench

// Every suite runs, and says what it is there to say. What the figures are is not this test's
// business, but for those that are no times: nothing may be lost.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/child.h"
#include "bench/trace/trace_format.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace spanpool::bench {
namespace {

using Figure = std::tuple<std::string, std::string, std::string>;  // case, system, metric

class Report {
 public:
  // Runs `suite` with as little work as shows that it works; only cases whose name holds `of_case`.
  explicit Report(const std::string& suite, const std::string& of_case = "",
                  const std::vector<std::string>& more = {}) {
    std::vector<std::string> command = {BuiltPath("bench/" + suite + "_suite"), "--tiny", "--case",
                                        of_case};
    command.insert(command.end(), more.begin(), more.end());
    const absl::StatusOr<std::string> output = RunChild(command);
    EXPECT_TRUE(output.ok()) << output.status();
    if (!output.ok()) return;
    const auto report = nlohmann::json::parse(*output);
    for (const auto& absent : report["absent"]) {
      // Whether there are huge pages, valgrind, DPDK and Boost is the machine's business, ours is
      // not.
      if (absent["case"].get<std::string>().starts_with("instructions")) continue;
      if (absent["system"].get<std::string>().ends_with("_hugetlb")) continue;
      EXPECT_FALSE(absent["system"].get<std::string>().starts_with("spanpool")) << absent;
    }
    for (const auto& result : report["results"]) {
      const Figure figure(result["case"].get<std::string>(), result["system"].get<std::string>(),
                          result["metric"].get<std::string>());
      figures_[figure] = result["value"].get<double>();
    }
  }

  bool Has(const std::string& of_case, const std::string& system, const std::string& metric) const {
    return figures_.contains({of_case, system, metric});
  }
  // -1 if there is no such figure.
  double Value(const std::string& of_case, const std::string& system,
               const std::string& metric) const {
    const auto found = figures_.find({of_case, system, metric});
    return found == figures_.end() ? -1 : found->second;
  }

 private:
  std::map<Figure, double> figures_;
};

// A trace of a few thousand blocks: of most sizes, freed in another order, some never.
void WriteTrace(const std::string& path) {
  std::vector<unsigned char> events(20'000 * kMaxEventBytes);
  unsigned char* end = events.data();
  std::vector<uint64_t> live;
  std::mt19937_64 random(1);
  uint64_t ids = 0;
  for (int i = 0; i < 10'000; ++i) {
    end = PutEvent({TraceEvent::Kind::kAlloc, 1 + random() % (uint64_t{1} << random() % 18)}, ids,
                   end);
    live.push_back(ids++);
    if (live.size() < 500) continue;
    std::swap(live[random() % live.size()], live.back());
    end = PutEvent({TraceEvent::Kind::kFree, live.back()}, ids, end);
    live.pop_back();
  }
  TraceHeader header;
  std::memcpy(header.magic, kTraceMagic, sizeof(header.magic));
  header.event_bytes = static_cast<uint64_t>(end - events.data());
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header), sizeof(header));
  file.write(reinterpret_cast<const char*>(events.data()),
             static_cast<std::streamsize>(header.event_bytes));
}

TEST(SuitesTest, Fragmentation) {
  const std::string folder = std::getenv("TEST_TMPDIR");
  WriteTrace(folder + "/made_up.trace");
  const Report report("fragmentation", "", {"--traces", folder});
  for (const std::string system : {"spanpool", "size_class", "linear", "free_list", "glibc"}) {
    EXPECT_GE(report.Value("made_up", system, "peak_over_live"), 1) << system;
    EXPECT_GE(report.Value("made_up", system, "external_waste"), 0) << system;
    EXPECT_GT(report.Value("made_up", system, "ns_per_op"), 0) << system;
  }
  EXPECT_GT(report.Value("made_up", "replay_alone", "ns_per_op"), 0);
}

TEST(SuitesTest, Heap) {
  const Report report("heap");
  EXPECT_GT(report.Value("span_lend_return_8k", "spanpool", "ns_per_pair"), 0);
  EXPECT_GT(report.Value("page_cached", "spanpool", "ns_per_op"), 0);
  EXPECT_GT(report.Value("lend_2_threads", "spanpool", "speedup"), 0);
  EXPECT_GT(report.Value("lend_2_threads", "probe", "speedup"), 0);
  EXPECT_GT(report.Value("fresh_arena", "spanpool", "ms"), 0);
  EXPECT_GT(report.Value("metadata", "spanpool", "fraction"), 0);
}

TEST(SuitesTest, Alloc) {
  const Report report("alloc");
  for (const std::string pattern : {"pair_", "churn256_"}) {
    for (const int bytes : {64, 256, 1024, 4096, 32768, 65536, 1048576}) {
      for (const std::string system : {"spanpool", "glibc"}) {
        EXPECT_GT(report.Value(absl::StrCat(pattern, bytes), system, "ns_per_pair"), 0)
            << pattern << bytes << " of " << system;
      }
    }
  }
  EXPECT_GT(report.Value("pair_64", "probe", "additions_16"), 0);
}

TEST(SuitesTest, Threads) {
  const Report report("threads");
  for (const std::string pattern : {"local_2_", "cross_2_"}) {
    for (const int bytes : {64, 4096, 65536}) {
      EXPECT_GT(report.Value(absl::StrCat(pattern, bytes), "spanpool", "ns_per_pair"), 0)
          << pattern << bytes;
    }
  }
}

TEST(SuitesTest, Refill) {
  const Report report("refill");
  for (const std::string of_case : {"stream", "after_idle"}) {
    for (const std::string system : {"spanpool", "grpc_floor"}) {
      EXPECT_GT(report.Value(of_case, system, "p50"), 0) << of_case << " of " << system;
      EXPECT_GT(report.Value(of_case, system, "p99"), 0) << of_case << " of " << system;
    }
  }
}

TEST(SuitesTest, GrpcApis) {
  const Report report("grpc_apis", "stream");
  EXPECT_GT(report.Value("stream", "sync", "p50"), 0);
  EXPECT_GT(report.Value("stream", "completion_queue", "p50"), 0);
}

TEST(SuitesTest, Steady) {
  const Report report("steady");
  for (const std::string of_case : {"churn", "cross_threads", "frames_1048576"}) {
    EXPECT_TRUE(report.Has(of_case, "spanpool", "messages")) << of_case;
  }
}

TEST(SuitesTest, Growth) {
  const Report report("growth");
  for (const std::string of_case :
       {"reserved_65536", "reserved_1048576", "beyond_65536", "beyond_1048576"}) {
    for (const std::string system :
         {"spanpool", "memset_warm", "memfd_first_touch", "memfd_populate_fill"}) {
      EXPECT_GT(report.Value(of_case, system, "gb_per_s"), 0) << of_case << " of " << system;
    }
    EXPECT_GE(report.Value(of_case, "spanpool", "p99"), 0) << of_case;
  }
}

TEST(SuitesTest, Handoff) {
  const Report report("handoff", "64");
  for (const std::string system : {"spanpool", "spanpool_send", "spanpool_channel", "ring_floor",
                                   "protocol_floor", "unix_socket_copy"}) {
    EXPECT_GT(report.Value("64", system, "ns_per_message"), 0) << system;
  }
  EXPECT_TRUE(report.Has("64", "spanpool", "rpcs_per_million"));
  EXPECT_TRUE(report.Has("64", "probe", "cas_pair"));
}

TEST(SuitesTest, RecoveryAndAKilledClientLeavesNothingBehind) {
  const Report report("recovery", "client_kill");
  const auto of = [&report](const std::string& metric) {
    return report.Value("client_kill_100000x4096", "spanpool", metric);
  };
  EXPECT_GT(of("death_ms"), 0);
  EXPECT_GT(of("reclaim_ms"), 0);
  EXPECT_GT(of("whole_ms"), 0);
  EXPECT_GT(of("others_p99_ratio"), 0);
  EXPECT_EQ(of("lost_blocks"), 0);
}

TEST(SuitesTest, RecoveryAndAKilledOrUpgradedDaemonLosesNothing) {
  for (const std::string of_case : {"server_kill_1", "upgrade_1"}) {
    const Report report("recovery", of_case);
    EXPECT_GT(report.Value(of_case, "spanpool", "outage_ms"), 0) << of_case;
    EXPECT_EQ(report.Value(of_case, "spanpool", "failed_allocations"), 0) << of_case;
    EXPECT_EQ(report.Value(of_case, "spanpool", "lost_blocks"), 0) << of_case;
  }
}

TEST(SuitesTest, Payload) {
  const Report report("payload");
  for (const std::string bytes : {"65536", "1048576", "16777216", "67108864"}) {
    EXPECT_GT(report.Value(bytes, "spanpool", "gb_per_s"), 0) << bytes;
    EXPECT_GT(report.Value(bytes, "grpc_bytes_field", "gb_per_s"), 0) << bytes;
  }
}

}  // namespace
}  // namespace spanpool::bench

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/child.h"
#include "bench/trace/trace_format.h"

namespace spanpool::bench {
namespace {

using Kind = TraceEvent::Kind;

// Runs the program under the recorder; the events of its trace.
class Record : public testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "the recorder takes malloc's place, and so does the sanitizer";
#endif
  }

  void Run(const std::vector<std::string>& variables = {}) {
    const std::filesystem::path folder =
        std::filesystem::path(testing::TempDir()) /
        testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    std::vector<std::string> environment = {"LD_PRELOAD=bench/trace/librecord.so",
                                            "SPANPOOL_TRACE=" + (folder / "t").string()};
    environment.insert(environment.end(), variables.begin(), variables.end());
    const auto output = RunChild({"bench/trace/recorded_program"}, environment);
    ASSERT_TRUE(output.ok()) << output.status();
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      files.push_back(entry.path());
    }
    ASSERT_EQ(files.size(), 1u) << "one process, one trace";
    EXPECT_TRUE(files[0].filename().string().starts_with("t.recorded_pro")) << files[0];
    std::ifstream file(files[0], std::ios::binary);
    trace_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    TraceHeader header;
    ASSERT_GE(trace_.size(), sizeof(header));
    std::memcpy(&header, trace_.data(), sizeof(header));
    ASSERT_EQ(std::string(header.magic, 8), kTraceMagic);
    ASSERT_LE(header.event_bytes, trace_.size() - sizeof(header));
    TraceReader reader(reinterpret_cast<const unsigned char*>(trace_.data()) + sizeof(header),
                       header.event_bytes);
    for (TraceEvent event; reader.Next(&event);) {
      if (event.kind != Kind::kFree) bytes_of_.push_back(event.value);
      events_.push_back(event);
    }
    EXPECT_FALSE(reader.broken());
  }

  // Where `bytes` are allocated, and where that block is freed; events_.size() if never.
  size_t Allocated(uint64_t bytes, Kind kind = Kind::kAlloc) const {
    return Position([&](const TraceEvent& e) { return e.kind == kind && e.value == bytes; });
  }
  size_t Freed(uint64_t bytes) const {
    return Position(
        [&](const TraceEvent& e) { return e.kind == Kind::kFree && bytes_of_[e.value] == bytes; });
  }

  template <typename F>
  size_t Position(F f) const {
    return static_cast<size_t>(std::find_if(events_.begin(), events_.end(), f) - events_.begin());
  }

  std::string trace_;
  std::vector<TraceEvent> events_;
  std::vector<uint64_t> bytes_of_;
};

TEST_F(Record, EveryCallIsThereInItsOrder) {
  Run();
  const std::vector<size_t> order = {
      Allocated(10'001),  Allocated(3 * 10'002), Freed(10'001),
      Allocated(100'003), Freed(3 * 10'002),     Allocated(10'004, Kind::kAlignedAlloc),
      Freed(10'004),      Allocated(70'001),     Allocated(10'005)};
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end())) << testing::PrintToString(order);
  EXPECT_LT(order.back(), events_.size());
  EXPECT_EQ(events_[order[5]].alignment_log2, 12);
  EXPECT_EQ(Freed(100'003), events_.size()) << "it was never freed";
}

TEST_F(Record, FourThreadsLoseNoEvent) {
  Run();
  EXPECT_EQ(std::count(bytes_of_.begin(), bytes_of_.end(), 70'001u), 4000);
  EXPECT_EQ(std::count_if(events_.begin(), events_.end(),
                          [this](const TraceEvent& e) {
                            return e.kind == Kind::kFree && bytes_of_[e.value] == 70'001;
                          }),
            4000);
}

TEST_F(Record, AForkedChildIsLeftOut) {
  Run();
  EXPECT_EQ(Allocated(66'666), events_.size());
}

TEST_F(Record, ALimitEndsTheTraceAndNotTheProgram) {
  Run({"SPANPOOL_TRACE_EVENTS=100"});
  EXPECT_EQ(events_.size(), 100u);
}

}  // namespace
}  // namespace spanpool::bench

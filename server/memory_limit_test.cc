#include "server/memory_limit.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace spanpool {
namespace {

constexpr uint64_t kMib = 1 << 20;

class MemoryLimitTest : public testing::Test {
 protected:
  MemoryLimitTest()
      : root_(std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
    Write("proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable:    1024000 kB\n");
  }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  absl::StatusOr<uint64_t> Available() { return MemoryLimit(root_.string()).AvailableBytes(); }

  MemoryLimit::HugePages HugePages() { return MemoryLimit(root_.string()).AvailableHugePages(); }

  const std::filesystem::path root_;
};

TEST_F(MemoryLimitTest, WithoutCgroupsTheMachineDecides) {
  EXPECT_EQ(Available().value(), 1000 * kMib);
}

TEST_F(MemoryLimitTest, VersionTwoLeavesItsLimitLessWhatIsUsedAndNotReclaimable) {
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("sys/fs/cgroup/a/b/memory.max", "524288000\n");      // 500 MiB
  Write("sys/fs/cgroup/a/b/memory.current", "104857600\n");  // 100 MiB
  Write("sys/fs/cgroup/a/b/memory.stat", "anon 1\ninactive_file 52428800\n");
  EXPECT_EQ(Available().value(), 450 * kMib);
}

TEST_F(MemoryLimitTest, AnAncestorMayBeTighter) {
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("sys/fs/cgroup/a/b/memory.max", "max\n");
  Write("sys/fs/cgroup/a/b/memory.current", "0\n");
  Write("sys/fs/cgroup/a/memory.max", "209715200\n");
  Write("sys/fs/cgroup/a/memory.current", "0\n");
  EXPECT_EQ(Available().value(), 200 * kMib);
}

TEST_F(MemoryLimitTest, VersionOneIsReadInItsOwnHierarchy) {
  Write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n");
  Write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "314572800\n");
  Write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "104857600\n");
  Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n");
  EXPECT_EQ(Available().value(), 200 * kMib);
}

TEST_F(MemoryLimitTest, InAContainerWhosePathIsNotVisibleTheMountItselfCounts) {
  Write("proc/self/cgroup", "0::/docker/deadbeef\n");
  Write("sys/fs/cgroup/memory.max", "104857600\n");
  Write("sys/fs/cgroup/memory.current", "0\n");
  EXPECT_EQ(Available().value(), 100 * kMib);
}

TEST_F(MemoryLimitTest, UsageAboveTheLimitLeavesNothing) {
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/memory.max", "100\n");
  Write("sys/fs/cgroup/memory.current", "200\n");
  EXPECT_EQ(Available().value(), 0u);
}

TEST_F(MemoryLimitTest, WithoutMeminfoItSaysWhatIsMissing) {
  Write("proc/meminfo", "MemTotal: 1 kB\n");
  EXPECT_EQ(Available().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(MemoryLimitTest, HugePagesCountUnlessTheyArePromised) {
  EXPECT_EQ(HugePages().set_aside, 0u);  // a kernel without
  EXPECT_EQ(HugePages().free, 0u);
  const std::string folder = "sys/kernel/mm/hugepages/hugepages-2048kB/";
  Write(folder + "nr_hugepages", "20\n");
  Write(folder + "free_hugepages", "10\n");
  Write(folder + "resv_hugepages", "3\n");
  EXPECT_EQ(HugePages().set_aside, 20u);
  EXPECT_EQ(HugePages().free, 7u);
  EXPECT_EQ(HugePages().allowed, std::nullopt);
  Write(folder + "resv_hugepages", "11\n");
  EXPECT_EQ(HugePages().free, 0u);
}

TEST_F(MemoryLimitTest, TheCgroupMayAllowFewerHugePagesThanAreFree) {
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("sys/fs/cgroup/a/b/hugetlb.2MB.max", "max\n");
  Write("sys/fs/cgroup/a/b/hugetlb.2MB.current", "0\n");
  EXPECT_EQ(HugePages().allowed, std::nullopt);
  Write("sys/fs/cgroup/a/hugetlb.2MB.max", "20971520\n");     // 10
  Write("sys/fs/cgroup/a/hugetlb.2MB.current", "4194304\n");  // 2
  EXPECT_EQ(HugePages().allowed, 8u);
  // What limits other memory is not asked.
  Write("sys/fs/cgroup/a/memory.max", "2097152\n");
  Write("sys/fs/cgroup/a/memory.current", "0\n");
  EXPECT_EQ(HugePages().allowed, 8u);
  EXPECT_EQ(Available().value(), 2 * kMib);
}

TEST_F(MemoryLimitTest, VersionOneLimitsHugePagesInAHierarchyOfItsOwn) {
  Write("proc/self/cgroup", "4:memory:/x\n3:hugetlb:/x\n0::/\n");
  Write("sys/fs/cgroup/hugetlb/x/hugetlb.2MB.limit_in_bytes", "9223372036852678656\n");
  Write("sys/fs/cgroup/hugetlb/x/hugetlb.2MB.usage_in_bytes", "0\n");
  EXPECT_EQ(HugePages().allowed, std::nullopt);
  Write("sys/fs/cgroup/hugetlb/x/hugetlb.2MB.limit_in_bytes", "6291456\n");
  EXPECT_EQ(HugePages().allowed, 3u);
  EXPECT_EQ(Available().value(), 1000 * kMib);
}

}  // namespace
}  // namespace spanpool

#include "server/huge_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>

#include "allocator/memfd_arena_source.h"

namespace spanpool {
namespace {

using ::testing::HasSubstr;

PoolConfig Pool(const std::string& name, uint64_t limit_bytes,
                MemfdArenaSource::Kind kind = MemfdArenaSource::Kind::kHugePages) {
  PoolConfig pool;
  pool.name = name;
  pool.limit_bytes = limit_bytes;
  pool.arena_kind = kind;
  return pool;
}

constexpr uint64_t kMib = uint64_t{1} << 20;

TEST(HugePages, PoolsOfOtherMemoryNeedNone) {
  EXPECT_TRUE(CheckHugePages({Pool("a", 64 * kMib, MemfdArenaSource::Kind::kPages)}, {}).ok());
}

TEST(HugePages, TheLimitsOfAllPoolsAreAddedUp) {
  const auto check = [](uint64_t free) {
    return CheckHugePages({Pool("a", 64 * kMib), Pool("b", 6 * kMib),
                           Pool("c", 999 * kMib, MemfdArenaSource::Kind::kPages)},
                          {.set_aside = 100, .free = free, .allowed = std::nullopt});
  };
  EXPECT_TRUE(check(35).ok());
  EXPECT_EQ(check(34).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(HugePages, TheRefusalSaysHowManyThereAreAndHowToHaveEnough) {
  const std::string message(CheckHugePages({Pool("frames", 1024 * kMib)},
                                           {.set_aside = 100, .free = 12, .allowed = std::nullopt})
                                .message());
  EXPECT_THAT(message, HasSubstr("pool frames needs 512 huge pages of 2 MiB"));
  EXPECT_THAT(message, HasSubstr("12 of the machine's 100 are free"));
  // 88 are in use by others, who keep theirs.
  EXPECT_THAT(message, HasSubstr("`sysctl vm.nr_hugepages=600`"));
  EXPECT_THAT(message, HasSubstr("hugepages=600 on the kernel's command line"));
  EXPECT_THAT(message, HasSubstr("on the host"));
}

TEST(HugePages, ALimitOfTheCgroupIsToldApart) {
  const std::string message(CheckHugePages({Pool("frames", 64 * kMib), Pool("events", 64 * kMib)},
                                           {.set_aside = 512, .free = 512, .allowed = 0})
                                .message());
  EXPECT_THAT(message, HasSubstr("pools frames, events need 64 huge pages"));
  EXPECT_THAT(message, HasSubstr("0 are left within the limit of this process's cgroup"));
  EXPECT_THAT(message, HasSubstr("hugetlb.2MB.max by 134217728 bytes"));
  EXPECT_THAT(message, HasSubstr("hugepages-2Mi: 128Mi"));
  EXPECT_TRUE(
      CheckHugePages({Pool("frames", 64 * kMib)}, {.set_aside = 512, .free = 512, .allowed = 32})
          .ok());
}

}  // namespace
}  // namespace spanpool

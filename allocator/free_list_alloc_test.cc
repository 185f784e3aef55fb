#include "allocator/free_list_alloc.h"

#include <gtest/gtest.h>

#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "allocator/failing_metadata_source.h"
#include "allocator/linear_alloc.h"

namespace spanpool {
namespace {

TEST(FreeListAlloc, TakesTheFirstBlockThatIsLongEnoughAndSplitsIt) {
  PersistentAlloc memory;
  FreeListAlloc list(&memory, 0, 1024);
  EXPECT_EQ(list.Alloc(100), 0u);
  EXPECT_EQ(list.Alloc(16), 112u);
  EXPECT_EQ(list.Alloc(100), 128u);
  EXPECT_TRUE(list.Free(0, 100));
  EXPECT_EQ(list.Alloc(200), 240u) << "the hole at 0 is too short";
  EXPECT_EQ(list.Alloc(40), 0u);
  EXPECT_EQ(list.Alloc(64), 48u) << "what was left of the hole";
  EXPECT_EQ(list.free_blocks(), 1u);
  list.CheckInvariants();
}

TEST(FreeListAlloc, FreedNeighboursBecomeOneBlockInEveryOrder) {
  for (const std::string order : {"012", "021", "102", "120", "201", "210"}) {
    PersistentAlloc memory;
    FreeListAlloc list(&memory, 160, 160 + 3 * 64);
    uint64_t blocks[3];
    for (uint64_t& block : blocks) block = *list.Alloc(64);
    EXPECT_EQ(list.free_blocks(), 0u);
    for (const char which : order) ASSERT_TRUE(list.Free(blocks[which - '0'], 64));
    list.CheckInvariants();
    EXPECT_EQ(list.free_blocks(), 1u) << order;
    EXPECT_EQ(list.largest_free(), 3u * 64) << order;
  }
}

TEST(FreeListAlloc, AnAlignedRequestLeavesWhatIsBeforeAndBehindInTheList) {
  PersistentAlloc memory;
  FreeListAlloc list(&memory, 16, 4096);
  EXPECT_EQ(list.Alloc(64, 1024), 1024u);
  EXPECT_EQ(list.free_blocks(), 2u);
  EXPECT_EQ(list.Alloc(16), 16u);
  EXPECT_FALSE(list.Alloc(64, 8192).has_value());
  EXPECT_TRUE(list.Free(1024, 64));
  EXPECT_EQ(list.free_blocks(), 1u);
  list.CheckInvariants();
}

TEST(FreeListAlloc, EmptyAndAbsurdRequests) {
  PersistentAlloc memory;
  FreeListAlloc list(&memory, 0, 64);
  EXPECT_FALSE(list.Alloc(UINT64_MAX).has_value());
  EXPECT_FALSE(list.Alloc(65).has_value());
  EXPECT_EQ(list.Alloc(0), 0u);
  EXPECT_EQ(list.Alloc(0), 16u) << "blocks of no bytes are distinct";
  list.CheckInvariants();
}

TEST(FreeListAlloc, AnExtensionJoinsAFreeEnd) {
  PersistentAlloc memory;
  FreeListAlloc list(&memory, 0, 64);
  EXPECT_EQ(list.Alloc(32), 0u);
  EXPECT_TRUE(list.Extend(128));
  EXPECT_EQ(list.free_blocks(), 1u);
  EXPECT_EQ(list.Alloc(96), 32u);
  EXPECT_TRUE(list.Extend(256));
  EXPECT_EQ(list.Alloc(128), 128u);
  list.CheckInvariants();
}

TEST(FreeListAlloc, EqualsAMapOfEveryGrainUnderRandomUse) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  constexpr uint64_t kBegin = 32 * FreeListAlloc::kGrain;
  constexpr size_t kGrains = 2000;
  PersistentAlloc memory;
  FreeListAlloc list(&memory, kBegin, kBegin + kGrains * FreeListAlloc::kGrain);
  std::vector<bool> used(kGrains);
  struct Block {
    uint64_t position;
    uint64_t bytes;
  };
  std::vector<Block> live;
  const auto grains = [](uint64_t bytes) { return bytes == 0 ? 1 : (bytes + 15) / 16; };
  for (int i = 0; i < 100'000; ++i) {
    if (random() % 100 < (i / 5000 % 2 == 0 ? 60u : 40u)) {
      const uint64_t bytes = random() % (random() % 8 == 0 ? 3000 : 200);
      const uint64_t alignment = random() % 4 == 0 ? uint64_t{1} << random() % 11 : 16;
      std::optional<uint64_t> want;
      for (size_t at = 0, run = 0; at < kGrains && !want.has_value(); ++at) {
        const uint64_t start_position = kBegin + at * 16;
        if (used[at] || (run == 0 && start_position % alignment != 0)) {
          run = 0;
        } else if (++run == grains(bytes)) {
          want = kBegin + (at + 1 - run) * 16;
        }
      }
      const auto got = list.Alloc(bytes, alignment);
      ASSERT_EQ(got, want) << bytes << " aligned " << alignment;
      if (!got.has_value()) continue;
      for (size_t g = 0; g < grains(bytes); ++g) used[(*got - kBegin) / 16 + g] = true;
      live.push_back({*got, bytes});
    } else if (!live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      const Block block = live.back();
      live.pop_back();
      ASSERT_TRUE(list.Free(block.position, block.bytes));
      for (size_t g = 0; g < grains(block.bytes); ++g) {
        used[(block.position - kBegin) / 16 + g] = false;
      }
    }
    if (i % 1000 == 0) {
      list.CheckInvariants();
      ASSERT_EQ(list.free_bytes(),
                16u * static_cast<uint64_t>(std::count(used.begin(), used.end(), false)));
    }
  }
}

TEST(FreeListAlloc, WhenItsListHasNoMemoryItSaysSoAndStaysSound) {
  FailingMetadataSource metadata(0);
  PersistentAlloc memory(&metadata);
  FreeListAlloc list(&memory, 0, 1 << 20);
  EXPECT_FALSE(list.Alloc(16).has_value());
  EXPECT_FALSE(list.Extend(1 << 21));
  list.CheckInvariants();
  metadata.Heal();
  EXPECT_TRUE(list.Extend(1 << 21));
  EXPECT_EQ(list.Alloc(16), 0u);
  list.CheckInvariants();
}

TEST(FreeListAllocDeathTest, FreeingWhatIsFreeOrOutsideIsABug) {
  PersistentAlloc memory;
  FreeListAlloc list(&memory, 64, 1024);
  ASSERT_EQ(list.Alloc(64), 64u);
  EXPECT_DEATH((void)list.Free(96, 64), "free");
  EXPECT_DEATH((void)list.Free(512, 16), "free");
  EXPECT_DEATH((void)list.Free(0, 16), "outside");
  EXPECT_DEATH((void)list.Free(1024, 16), "outside");
  EXPECT_DEATH((void)list.Free(64, UINT64_MAX), "check failed");
}

}  // namespace
}  // namespace spanpool

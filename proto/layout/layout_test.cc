#include <gtest/gtest.h>

#include <random>

#include "proto/layout/attach.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"

namespace spanpool::layout {
namespace {

TEST(BlockWord, TheLastReleaseSetsFreedAndCollectingStartsTheNextGeneration) {
  BlockWord word;
  EXPECT_TRUE(word.is_private());
  word = word.Shared();
  EXPECT_TRUE(word.is_shared());
  word = word.Acquired();
  EXPECT_EQ(word.refs(), 2u);
  word = word.Released();
  EXPECT_FALSE(word.freed());
  word = word.Released();
  EXPECT_TRUE(word.freed());
  EXPECT_EQ(word.refs(), 0u);
  word = word.Collected();
  EXPECT_TRUE(word.is_private());
  EXPECT_EQ(word.generation(), 1u);
}

TEST(BlockWord, RefsAtTheirMaximumDoNotSpillIntoTheEra) {
  BlockWord word(uint64_t{kMaxRefs} << 40);
  EXPECT_EQ(word.refs(), kMaxRefs);
  EXPECT_EQ(word.era(), 0u);
  EXPECT_EQ(word.Released().refs(), kMaxRefs - 1);
}

TEST(BlockTable, ABlockAtTheLargestGenerationIsNeverCollected) {
  SharedWord word(BlockWord(kMaxGeneration).Shared().Released().bits());
  EXPECT_FALSE(CollectBlock(word));
  word.store(BlockWord(kMaxGeneration - 1).Shared().Released().bits());
  EXPECT_TRUE(CollectBlock(word));
  EXPECT_EQ(BlockWord(word.load()).generation(), kMaxGeneration);
}

TEST(BlockTable, BlocksInUseOrFrozenAreNotCollected) {
  SharedWord word(BlockWord().Shared().bits());
  EXPECT_FALSE(CollectBlock(word));
  word.store(BlockWord().Shared().Released().bits() | uint64_t{1} << 63);
  EXPECT_FALSE(CollectBlock(word));
}

TEST(Slot, StateAndGranuleSurviveAWriteAndARead) {
  const Slot slot(SlotState::kReleasing, GranuleId(kMaxHandleGranules - 1));
  const Slot read(slot.bits());
  EXPECT_EQ(read.state(), SlotState::kReleasing);
  EXPECT_EQ(read.granule(), GranuleId(kMaxHandleGranules - 1));
  EXPECT_EQ(Slot().state(), SlotState::kFree);
}

TEST(HandleBits, EveryFieldSurvivesPackingForRandomHandles) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 100000; ++i) {
    HandleBits bits;
    bits.incarnation = static_cast<uint32_t>(random());
    bits.granule = GranuleId(random() % kMaxHandleGranules);
    bits.start = random() % 4 * 16;
    bits.length = random() % (kMaxHandleLength + 1);
    bits.generation = random() & kMaxGeneration;
    ASSERT_EQ(HandleBits::Unpack(bits.low(), bits.high()), bits);
  }
}

}  // namespace
}  // namespace spanpool::layout

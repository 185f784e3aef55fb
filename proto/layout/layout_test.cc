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

// Every transition, from words whose other fields hold something, changes exactly its own fields.
class BlockWordTransition : public testing::TestWithParam<uint32_t> {
 protected:
  static constexpr uint64_t kGeneration = 0x12'3456'789a;
  static constexpr uint32_t kEra = 0xb;
  uint32_t number() const { return GetParam(); }
  BlockWord Word(uint32_t refs, bool sent) const {
    return BlockWord(kGeneration | uint64_t{refs} << 40 | uint64_t{kEra} << 54 |
                     uint64_t{number()} << 58 | uint64_t{sent} << 61);
  }
  static void Expect(BlockWord word, uint64_t generation, uint32_t refs, uint32_t era,
                     uint32_t number, bool sent, bool freed, bool frozen) {
    EXPECT_EQ(word.generation(), generation);
    EXPECT_EQ(word.refs(), refs);
    EXPECT_EQ(word.era(), era);
    EXPECT_EQ(word.send_number(), number);
    EXPECT_EQ(word.sent(), sent);
    EXPECT_EQ(word.freed(), freed);
    EXPECT_EQ(word.frozen(), frozen);
  }
};

INSTANTIATE_TEST_SUITE_P(EverySendNumber, BlockWordTransition, testing::Range(0u, kSendNumbers));

TEST_P(BlockWordTransition, ShareAndOpenCountUp) {
  Expect(Word(0, false).Shared(), kGeneration, 1, kEra, number(), false, false, false);
  Expect(Word(1, true).Acquired(), kGeneration, 2, kEra, number(), true, false, false);
  Expect(Word(kMaxRefs - 1, false).Acquired(), kGeneration, kMaxRefs, kEra, number(), false, false,
         false);
}

TEST_P(BlockWordTransition, ReleaseCountsDown) {
  Expect(Word(2, true).Released(), kGeneration, 1, kEra, number(), true, false, false);
  Expect(Word(1, false).Released(), kGeneration, 0, kEra, number(), false, true, false);
  Expect(Word(kMaxRefs, false).Released(), kGeneration, kMaxRefs - 1, kEra, number(), false, false,
         false);
}

TEST_P(BlockWordTransition, CollectKeepsTheEraAlone) {
  Expect(Word(1, false).Released().Collected(), kGeneration + 1, 0, kEra, 0, false, false, false);
  Expect(Word(1, true).Released().Collected(), kGeneration + 1, 0, kEra, 0, false, false, false);
  EXPECT_TRUE(Word(1, false).Released().Collected().is_private());
}

TEST_P(BlockWordTransition, SendTakesTheNextNumber) {
  const uint32_t next = (number() + 1) % kSendNumbers;
  EXPECT_EQ(Word(3, false).next_send_number(), next);
  Expect(Word(3, false).Sent(), kGeneration, 3, kEra, next, true, false, false);
  Expect(Word(0, false).Shared().Sent(), kGeneration, 1, kEra, next, true, false, false);
  EXPECT_TRUE(Word(3, false).Sent().IsUnderWay(next));
  EXPECT_FALSE(Word(3, false).Sent().IsUnderWay(number()));
  EXPECT_FALSE(Word(3, false).Sent().Taken().IsUnderWay(next));
  Expect(Word(3, true).Taken(), kGeneration, 3, kEra, number(), false, false, false);
}

TEST_P(BlockWordTransition, ARecountKeepsGenerationAndSend) {
  Expect(Word(5, true).Frozen(), kGeneration, 5, kEra, number(), true, false, true);
  Expect(Word(5, true).Frozen().Recounted(2, 0), kGeneration, 2, 0, number(), true, false, false);
  Expect(Word(5, false).Frozen().Recounted(0, kEras - 1), kGeneration, 0, kEras - 1, number(),
         false, true, false);
  Expect(Word(5, false).Frozen().Recounted(kMaxRefs, 1), kGeneration, kMaxRefs, 1, number(), false,
         false, false);
}

TEST(BlockWord, OnlyAWordWithoutReferencesAndFlagsIsPrivate) {
  EXPECT_TRUE(BlockWord(uint64_t{0xf} << 54 | uint64_t{7} << 58 | kMaxGeneration).is_private());
  EXPECT_FALSE(BlockWord(uint64_t{1} << 40).is_private());
  EXPECT_FALSE(BlockWord(uint64_t{1} << 53).is_private());
  for (const int flag : {61, 62, 63}) EXPECT_FALSE(BlockWord(uint64_t{1} << flag).is_private());
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

TEST(Slot, TransitKeepsItsNumberAndVoidItsEra) {
  const GranuleId granule(kMaxHandleGranules - 1);
  for (uint32_t number = 0; number < kSendNumbers; ++number) {
    const Slot slot(Slot::Transit(granule, number).bits());
    EXPECT_EQ(slot.state(), SlotState::kTransit);
    EXPECT_EQ(slot.granule(), granule);
    EXPECT_EQ(slot.send_number(), number);
    EXPECT_FALSE(slot.noted());
  }
  EXPECT_TRUE(Slot::NotedTransit(granule).noted());
  EXPECT_EQ(Slot::NotedTransit(granule).granule(), granule);
  for (uint32_t era = 0; era < kEras; ++era) {
    const Slot slot(Slot::Void(granule, era).bits());
    EXPECT_EQ(slot.state(), SlotState::kVoid);
    EXPECT_EQ(slot.granule(), granule);
    EXPECT_EQ(slot.era(), era);
  }
}

TEST(Slot, HeldAndTransitCountAndIntentsAreInFlight) {
  for (const SlotState state : {SlotState::kFree, SlotState::kVoid}) {
    EXPECT_FALSE(Slot(state, GranuleId(1)).counts());
    EXPECT_FALSE(Slot(state, GranuleId(1)).in_flight());
  }
  for (const SlotState state : {SlotState::kHeld, SlotState::kTransit}) {
    EXPECT_TRUE(Slot(state, GranuleId(1)).counts());
    EXPECT_FALSE(Slot(state, GranuleId(1)).in_flight());
  }
  for (const SlotState state : {SlotState::kAcquiring, SlotState::kReleasing}) {
    EXPECT_FALSE(Slot(state, GranuleId(1)).counts());
    EXPECT_TRUE(Slot(state, GranuleId(1)).in_flight());
  }
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

#include "proto/layout/reference_protocol.h"

#include <gtest/gtest.h>

namespace spanpool::layout {
namespace {

constexpr GranuleId kGranule{77};
constexpr uint64_t kGeneration = 5;

uint64_t Shared(uint32_t refs, uint32_t era = 0) {
  return kGeneration | uint64_t{refs} << 40 | uint64_t{era} << 54;
}
BlockWord Now(const SharedWord& word) { return BlockWord(word.load()); }

struct ReferenceProtocolTest : testing::Test {
  SharedSlot slot{0};
  SharedWord word{Shared(1)};
  Slot SlotNow() const { return Slot(slot.load()); }
  OpenResult Open() { return OpenBlock(slot, word, kGranule, kGeneration, kMaxClientRefs).result; }
};

TEST_F(ReferenceProtocolTest, OpeningCountsUpAndHolds) {
  EXPECT_EQ(Open(), OpenResult::kOpened);
  EXPECT_EQ(Now(word).refs(), 2u);
  EXPECT_EQ(SlotNow(), Slot(SlotState::kHeld, kGranule));
}

TEST_F(ReferenceProtocolTest, OpeningTellsWhichWordItCountedUp) {
  word = BlockWord(Shared(3)).Sent().bits();
  const Opening opening = OpenBlock(slot, word, kGranule, kGeneration, kMaxClientRefs);
  EXPECT_TRUE(opening.counted.IsUnderWay(1));
  EXPECT_EQ(opening.counted.refs(), 3u);
  EXPECT_TRUE(Now(word).sent()) << "it is taken off in a step of its own";
}

TEST_F(ReferenceProtocolTest, WhatCannotBeOpenedLeavesWordAndSlotAlone) {
  for (const uint64_t bits :
       {uint64_t{0}, Shared(0), BlockWord(Shared(1)).Released().bits(), Shared(1) + 1}) {
    word = bits;
    EXPECT_EQ(Open(), OpenResult::kRefused) << std::hex << bits;
    EXPECT_EQ(word, bits);
    EXPECT_EQ(slot, 0u);
  }
  word = BlockWord(Shared(1)).Frozen().bits();
  EXPECT_EQ(Open(), OpenResult::kFrozen);
  word = Shared(kMaxClientRefs);
  EXPECT_EQ(Open(), OpenResult::kFull);
  EXPECT_EQ(word, Shared(kMaxClientRefs));
  word = Shared(kMaxClientRefs - 1);
  EXPECT_EQ(Open(), OpenResult::kOpened);
}

TEST_F(ReferenceProtocolTest, ReleasingCountsDownAndTheLastSetsFreed) {
  word = Shared(2);
  BeginRelease(slot, kGranule);
  EXPECT_EQ(SlotNow().state(), SlotState::kReleasing);
  EXPECT_EQ(ReleaseBlock(slot, word, kGranule), ReleaseResult::kLivesOn);
  EXPECT_EQ(word, Shared(1));
  EXPECT_EQ(ReleaseBlock(slot, word, kGranule), ReleaseResult::kFreed);
  EXPECT_TRUE(Now(word).freed());
  EXPECT_EQ(Now(word).refs(), 0u);
  FreeSlot(slot);
  EXPECT_EQ(slot, 0u);
}

TEST_F(ReferenceProtocolTest, AReleaseThatARecountLeftOutChangesNothing) {
  BeginRelease(slot, kGranule);
  slot = Slot::Void(kGranule, 3).bits();
  EXPECT_EQ(ReleaseBlock(slot, word, kGranule), ReleaseResult::kNone);
  EXPECT_EQ(word, Shared(1));
}

TEST_F(ReferenceProtocolTest, AReleaseOfAFrozenWordIsForLater) {
  BeginRelease(slot, kGranule);
  word = BlockWord(Shared(2)).Frozen().bits();
  EXPECT_EQ(ReleaseBlock(slot, word, kGranule), ReleaseResult::kFrozen);
  EXPECT_EQ(SlotNow().state(), SlotState::kReleasing);
  EXPECT_EQ(Now(word).refs(), 2u);
}

TEST_F(ReferenceProtocolTest, AWordWithoutReferencesIsNotCountedDown) {
  BeginRelease(slot, kGranule);
  for (const uint64_t bits : {Shared(0), BlockWord(Shared(1)).Released().bits()}) {
    word = bits;
    EXPECT_EQ(ReleaseBlock(slot, word, kGranule), ReleaseResult::kNone);
    EXPECT_EQ(word, bits);
  }
}

TEST_F(ReferenceProtocolTest, WhatWasSentIsTakenOnceAndUnderItsNumberOnly) {
  word = BlockWord(Shared(2)).Sent().bits();
  EXPECT_EQ(TakeSent(word, 0), TakeResult::kNotThere);
  EXPECT_EQ(TakeSent(word, 2), TakeResult::kNotThere);
  EXPECT_TRUE(Now(word).sent());
  EXPECT_EQ(TakeSent(word, 1), TakeResult::kTaken);
  EXPECT_FALSE(Now(word).sent());
  EXPECT_EQ(Now(word).refs(), 2u);
  EXPECT_EQ(Now(word).send_number(), 1u);
  EXPECT_EQ(TakeSent(word, 1), TakeResult::kNotThere);
  word = BlockWord(Shared(2)).Sent().Frozen().bits();
  EXPECT_EQ(TakeSent(word, 1), TakeResult::kFrozen);
}

}  // namespace
}  // namespace spanpool::layout

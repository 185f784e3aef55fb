#include "allocator/free_slots.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "allocator/size_classes.h"

namespace spanpool {
namespace {

TEST(FreeSlots, NoSpanIsFull) {
  FreeSlots none;
  EXPECT_FALSE(none.Next().has_value());
  EXPECT_FALSE(none.Next().has_value());
  EXPECT_EQ(none.taken(), 0u);
}

TEST(FreeSlots, AnEmptySpanOfEachClassGivesAllItsSlotsInOrder) {
  for (uint8_t c = 1; c < kNumSizeClasses; ++c) {
    const uint32_t blocks = BlocksPerSpan(SizeClass(c));
    const std::vector<uint64_t> bits((blocks + 63) / 64);
    FreeSlots slots(bits, blocks);
    for (uint32_t i = 0; i < blocks; ++i) {
      EXPECT_TRUE(slots.IsFree(i));
      ASSERT_EQ(slots.Next(), i);
      EXPECT_FALSE(slots.IsFree(i));
    }
    EXPECT_FALSE(slots.Next().has_value());
    EXPECT_EQ(slots.free_index(), blocks);
    EXPECT_EQ(slots.taken(), blocks);
  }
}

TEST(FreeSlots, WhatLiesPastTheLastBlockIsNotAsked) {
  for (const uint64_t garbage : {uint64_t{0}, UINT64_MAX}) {
    for (uint32_t blocks = 1; blocks <= 192; ++blocks) {
      std::vector<uint64_t> bits((blocks + 63) / 64);
      if (blocks % 64 != 0) bits.back() |= garbage << (blocks % 64);
      FreeSlots slots(bits, blocks);
      uint32_t count = 0;
      while (slots.Next().has_value()) ++count;
      ASSERT_EQ(count, blocks);
    }
  }
}

// At rest, what is allocated is the prefix below the free index and the bits set from there on.
TEST(FreeSlots, RandomBitmapsGiveExactlyTheirFreeSlotsAndTheCountsAgree) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const uint32_t blocks = static_cast<uint32_t>(1 + random() % kMaxBlocksPerSpan);
    std::vector<uint64_t> bits((blocks + 63) / 64);
    const int density = static_cast<int>(random() % 4);  // sparse to nearly full
    for (uint64_t& word : bits) {
      word = random();
      for (int i = 0; i < density; ++i) word |= random();
      if (random() % 4 == 0) word = UINT64_MAX;
    }
    uint32_t in_use = 0;
    for (uint32_t i = 0; i < blocks; ++i) in_use += bits[i / 64] >> (i % 64) & 1;
    FreeSlots slots(bits, blocks);
    for (uint32_t expected = 0;; ++expected) {
      while (expected < blocks && (bits[expected / 64] >> (expected % 64) & 1) != 0) ++expected;
      const std::optional<uint32_t> slot = slots.Next();
      if (expected >= blocks) {
        ASSERT_FALSE(slot.has_value());
        break;
      }
      ASSERT_EQ(slot, expected);
      uint32_t above = 0;
      for (uint32_t i = slots.free_index(); i < blocks; ++i) above += bits[i / 64] >> (i % 64) & 1;
      ASSERT_EQ(in_use + slots.taken(), slots.free_index() + above);
    }
    ASSERT_EQ(in_use + slots.taken(), blocks);
  }
}

}  // namespace
}  // namespace spanpool

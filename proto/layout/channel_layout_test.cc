#include "proto/layout/channel_layout.h"

#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "proto/layout/handle_bits.h"

namespace spanpool::layout {
namespace {

HandleBits Handle(uint64_t granule, uint64_t generation) {
  return {.incarnation = 0xfeedface,
          .granule = GranuleId(granule),
          .start = 48,
          .length = 0xabcd,
          .generation = generation};
}

TEST(ChannelEntry, AHandleSurvivesAnEntry) {
  for (const uint64_t granule : {uint64_t{0}, uint64_t{0x12'3456'789a}, kMaxHandleGranules - 1}) {
    for (const uint64_t generation : {uint64_t{0}, uint64_t{0xab'cdef'0123}, kMaxGeneration}) {
      for (const uint32_t turn : {0u, 1u, kTurnMask}) {
        const HandleBits handle = Handle(granule, generation);
        const ChannelEntry entry = ChannelEntry::Full(turn, handle);
        EXPECT_EQ(entry.state(), EntryState::kFull);
        EXPECT_EQ(entry.turn(), turn);
        EXPECT_EQ(entry.handle(handle.incarnation), handle);
      }
    }
  }
}

TEST(ChannelEntry, MemoryThatWasNeverWrittenIsEmptyInTurn0) {
  EXPECT_EQ(ChannelEntry(0, 0), ChannelEntry::Empty(0));
}

// What a note beside a slot relies on.
TEST(ChannelEntry, TheFirstHalfTellsStatesTurnsBlocksAndGenerationsApart) {
  const uint64_t mine = ChannelEntry::Full(7, Handle(1000, 5)).first();
  EXPECT_NE(ChannelEntry::Empty(7).first(), mine);
  EXPECT_NE(ChannelEntry::Empty(8).first(), mine);
  EXPECT_NE(ChannelEntry::Sealed(7).first(), mine);
  EXPECT_NE(ChannelEntry::Full(8, Handle(1000, 5)).first(), mine);
  EXPECT_NE(ChannelEntry::Full(7, Handle(1001, 5)).first(), mine);
  EXPECT_NE(ChannelEntry::Full(7, Handle(1000, 6)).first(), mine);
}

TEST(ChannelEntry, TurnsWrap) {
  EXPECT_EQ(ChannelEntry::Empty(kTurnMask + 1), ChannelEntry::Empty(0));
  EXPECT_EQ(ChannelEntry::Full(kTurnMask + 3, Handle(1, 1)).turn(), 2u);
}

TEST(SharedEntry, ExchangesOnlyWhatWasExpectedInBothHalves) {
  SharedEntry shared{};
  const ChannelEntry full = ChannelEntry::Full(0, Handle(77, 3));
  ChannelEntry expected = ChannelEntry::Empty(1);
  EXPECT_FALSE(shared.CompareExchange(expected, full));
  EXPECT_EQ(expected, ChannelEntry::Empty(0));
  EXPECT_TRUE(shared.CompareExchange(expected, full));
  EXPECT_EQ(shared.Load(), full);
  expected = ChannelEntry(full.first(), full.second() ^ 1);
  EXPECT_FALSE(shared.CompareExchange(expected, ChannelEntry::Empty(1)));
  EXPECT_EQ(expected, full);
  EXPECT_EQ(shared.Load(), full);
}

TEST(SharedEntry, ThreadsThatCountInBothHalvesLoseNothing) {
  constexpr uint64_t kEach = 20'000;
  SharedEntry shared{};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&shared] {
      for (uint64_t n = 0; n < kEach; ++n) {
        ChannelEntry seen = shared.Load();
        while (!shared.CompareExchange(seen, {seen.first() + 1, seen.second() - 1})) {
          ASSERT_EQ(seen.first(), -seen.second());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(shared.Load(), ChannelEntry(3 * kEach, -3 * kEach));
}

}  // namespace
}  // namespace spanpool::layout

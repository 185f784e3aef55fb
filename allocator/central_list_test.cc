#include "allocator/central_list.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <thread>
#include <vector>

#include "allocator/fake_block_states.h"
#include "allocator/faulty_arena_source.h"

namespace spanpool {
namespace {

constexpr SpanClass kClass = SpanClass(SizeClassFor(2048), /*noscan=*/true);  // four blocks

// One list over a heap of its own.
class CentralListTest : public testing::Test {
 protected:
  // A span on loan in which blocks 0 … live - 1 are referred to.
  Span* MakeSpan(uint32_t live) {
    Span* const span = *heap_.Allocate(kClass, PageCount(1), PageCount(1));
    for (uint32_t i = 0; i < live; ++i) states_.Refer(*span, i);
    return span;
  }
  void BeginCycle() {
    ActiveSweep::Token token = sweep_.Restart();
    ASSERT_TRUE(token);
    list_.BeginCycle();
    sweep_.Open(token);
  }
  // What a sweeper does.
  void SweepRest() {
    {
      const ActiveSweep::Token token = sweep_.Begin();
      while (list_.SweepOne(token, CentralList::kFull).pages > PageCount(0) ||
             list_.SweepOne(token, CentralList::kPartial).pages > PageCount(0)) {
      }
      sweep_.MarkDrained(token);
    }
    ASSERT_TRUE(sweep_.done());
  }
  void CheckInvariants() {
    list_.CheckInvariants();
    heap_.CheckInvariants();
  }

  FaultyArenaSource source_;
  FakeBlockStates states_;
  PageHeap heap_{{.limit_bytes = kArenaBytes, .reserve_bytes = 0, .max_arenas = 4},
                 &source_,
                 MetadataSource::System()};
  CentralList list_{kClass, &heap_, &states_, nullptr};
  ActiveSweep sweep_;
};

TEST_F(CentralListTest, AnEmptyListHasNothingToGrant) {
  EXPECT_EQ(list_.Take(&sweep_), nullptr);
  CheckInvariants();
}

TEST_F(CentralListTest, GrantsPartialSweptThenPartialUnsweptThenFullUnswept) {
  Span* const full = MakeSpan(4);
  Span* const unswept = MakeSpan(1);
  list_.Return(full);
  list_.Return(unswept);
  BeginCycle();
  Span* const swept = MakeSpan(1);
  list_.Return(swept);
  CheckInvariants();
  states_.Drop(full->first_page, 2);
  EXPECT_EQ(list_.Take(&sweep_), swept);
  EXPECT_EQ(list_.Take(&sweep_), unswept);
  EXPECT_EQ(list_.Take(&sweep_), full);
  EXPECT_EQ(full->in_use()[0], 0b1011u);
  EXPECT_EQ(list_.Take(&sweep_), nullptr);
  CheckInvariants();
}

TEST_F(CentralListTest, OldestFirst) {
  Span* const a = MakeSpan(1);
  Span* const b = MakeSpan(1);
  list_.Return(b);
  list_.Return(a);
  EXPECT_EQ(list_.Take(&sweep_), b);
  EXPECT_EQ(list_.Take(&sweep_), a);
}

TEST_F(CentralListTest, AGrantSweepsNoMoreThanAHundredSpans) {
  for (int i = 0; i < 150; ++i) list_.Return(MakeSpan(4));
  BeginCycle();
  const uint64_t before = states_.sweeps();
  EXPECT_EQ(list_.Take(&sweep_), nullptr);
  EXPECT_EQ(states_.sweeps() - before, 100u);
  EXPECT_EQ(list_.Take(&sweep_), nullptr);
  EXPECT_EQ(states_.sweeps() - before, 150u);
  CheckInvariants();
}

TEST_F(CentralListTest, ASweptSpanIsListedByWhatIsLeftOrFreed) {
  Span* const becomes_partial = MakeSpan(4);
  Span* const stays_full = MakeSpan(4);
  Span* const becomes_empty = MakeSpan(2);
  const PageId empty_page = becomes_empty->first_page;
  for (Span* span : {becomes_partial, stays_full, becomes_empty}) list_.Return(span);
  EXPECT_EQ(list_.listed_spans(), 3u);
  EXPECT_EQ(list_.live_blocks(), 10u);
  states_.Drop(becomes_partial->first_page, 0);
  states_.Drop(empty_page, 0);
  states_.Drop(empty_page, 1);
  BeginCycle();
  SweepRest();
  EXPECT_EQ(heap_.SpanOf(empty_page), nullptr);
  EXPECT_EQ(list_.listed_spans(), 2u);
  EXPECT_EQ(list_.live_blocks(), 7u);
  CheckInvariants();
  EXPECT_EQ(list_.Take(&sweep_), becomes_partial);
  EXPECT_EQ(list_.Take(&sweep_), nullptr);
}

TEST_F(CentralListTest, WhatComesBackDuringACycleIsSweptAlready) {
  BeginCycle();
  Span* const span = MakeSpan(1);
  list_.Return(span);
  const uint64_t sweeps = states_.sweeps();
  SweepRest();
  EXPECT_EQ(states_.sweeps(), sweeps);
  EXPECT_EQ(list_.Take(&sweep_), span);
}

TEST_F(CentralListTest, SpansOnLoanTakeNoPartInCycles) {
  Span* const span = MakeSpan(1);
  for (int i = 0; i < 5; ++i) {
    BeginCycle();
    SweepRest();
  }
  list_.Return(span);
  CheckInvariants();
  EXPECT_EQ(list_.Take(&sweep_), span);
}

TEST_F(CentralListTest, NobodyTakesAnUnsweptSpanFromADrainedSweep) {
  list_.Return(MakeSpan(1));
  BeginCycle();
  {
    const ActiveSweep::Token token = sweep_.Begin();
    sweep_.MarkDrained(token);  // which is not so; but then nobody may take what is left
  }
  EXPECT_EQ(list_.Take(&sweep_), nullptr);
}

using CentralListDeathTest = CentralListTest;

TEST_F(CentralListDeathTest, ACycleDoesNotBeginBeforeTheUnsweptSetsAreEmpty) {
  list_.Return(MakeSpan(1));
  BeginCycle();
  EXPECT_DEATH(list_.BeginCycle(), "UnsweptSet.kPartial");
}

TEST_F(CentralListDeathTest, FullSpansCountAsWellBeforeACycleBegins) {
  list_.Return(MakeSpan(4));
  BeginCycle();
  EXPECT_DEATH(list_.BeginCycle(), "UnsweptSet.kFull");
}

TEST_F(CentralListDeathTest, ASpanOfAnotherClassIsRefused) {
  Span* const span = *heap_.Allocate(SpanClass(SizeClassFor(64), true), PageCount(1), PageCount(1));
  EXPECT_DEATH(list_.Return(span), "span_class");
}

TEST_F(CentralListTest, TheReclaimerAndATakerNeverGetTheSameSpan) {
  // The reclaimer owns a span first; the taker finds it in the set and passes it over.
  Span* const span = MakeSpan(1);
  list_.Return(span);
  BeginCycle();
  uint64_t expected = Span::kFirstGeneration;
  ASSERT_TRUE(span->sweep_generation.compare_exchange_strong(expected, expected + 1));
  EXPECT_EQ(list_.Take(&sweep_), nullptr);
  EXPECT_EQ(span->set, nullptr) << "it is in no set now, and its owner does not mind";
  {
    const ActiveSweep::Token token = sweep_.Begin();
    EXPECT_EQ(list_.SweepOwned(token, span), PageCount(0));
  }
  CheckInvariants();
  EXPECT_EQ(list_.Take(&sweep_), span);
}

TEST_F(CentralListTest, FiveThreadsTakeReturnAndSweep) {
  constexpr int kSpans = 40;
  for (int i = 0; i < kSpans; ++i) list_.Return(MakeSpan(1 + i % 4));
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      for (int i = 0; i < 5000; ++i) {
        Span* const span = list_.Take(&sweep_);
        if (span == nullptr) continue;
        EXPECT_EQ(std::exchange(span->loan_session, seed + 1), 0u) << "granted twice";
        EXPECT_LT(span->blocks_in_use, span->blocks);
        // Block 0 is referred to for ever; the others come and go.
        const uint32_t block = 1 + static_cast<uint32_t>(random() % 3);
        if (states_.Refers(span->first_page, block)) {
          states_.Drop(span->first_page, block);
        } else {
          states_.Refer(*span, block);
        }
        span->loan_session = 0;
        list_.Return(span);
      }
    });
  }
  std::thread sweeper([&] {
    while (!stop.load()) {
      {
        const ActiveSweep::Token token = sweep_.Restart();
        if (token) {
          list_.BeginCycle();
          sweep_.Open(token);
        }
      }
      const ActiveSweep::Token token = sweep_.Begin();
      if (!token) continue;
      while (list_.SweepOne(token, CentralList::kFull).pages > PageCount(0) ||
             list_.SweepOne(token, CentralList::kPartial).pages > PageCount(0)) {
      }
      sweep_.MarkDrained(token);
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop.store(true);
  sweeper.join();
  EXPECT_EQ(list_.listed_spans(), uint64_t{kSpans});
  CheckInvariants();
}

}  // namespace
}  // namespace spanpool

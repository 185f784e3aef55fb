#include "allocator/sweeper.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "allocator/fake_block_states.h"
#include "allocator/faulty_arena_source.h"

namespace spanpool {
namespace {

constexpr SpanClass kSmall = SpanClass(SizeClassFor(2048), /*noscan=*/true);
constexpr SpanClass kLarge = SpanClass(kLargeSizeClass, /*noscan=*/true);

// Counts what is being swept right now.
class CountingBlockStates : public FakeBlockStates {
 public:
  uint32_t Sweep(const Span& span, absl::Span<uint64_t> in_use) override {
    working_.fetch_add(1);
    const uint32_t count = FakeBlockStates::Sweep(span, in_use);
    working_.fetch_sub(1);
    return count;
  }
  int working() const { return working_.load(); }

 private:
  std::atomic<int> working_{0};
};

class SweeperTest : public testing::Test {
 protected:
  SweeperTest() {
    std::vector<CentralList*> lists;
    for (size_t i = 0; i < kNumSpanClasses; ++i) {
      lists_.push_back(std::make_unique<CentralList>(SpanClass::FromValue(static_cast<uint8_t>(i)),
                                                     &heap_, &states_, nullptr));
      lists.push_back(lists_.back().get());
    }
    sweeper_ = std::make_unique<Sweeper>(&heap_, lists);
  }

  // A listed span whose blocks 0 … live - 1 are referred to.
  Span* List(SpanClass span_class, PageCount pages, uint32_t live) {
    Span* const span = *heap_.Allocate(span_class, pages, PageCount(1));
    for (uint32_t i = 0; i < live; ++i) states_.Refer(*span, i);
    lists_[span_class.value()]->Return(span);
    return span;
  }
  void DropAll(const Span& span) {
    for (uint32_t i = 0; i < span.blocks; ++i) states_.Drop(span.first_page, i);
  }
  void CheckInvariants() {
    heap_.CheckInvariants();
    for (const auto& list : lists_) list->CheckInvariants();
  }

  FaultyArenaSource source_;
  CountingBlockStates states_;
  PageHeap heap_{{.limit_bytes = 16 * kArenaBytes, .reserve_bytes = 0, .max_arenas = 32},
                 &source_,
                 MetadataSource::System()};
  std::vector<std::unique_ptr<CentralList>> lists_;
  std::unique_ptr<Sweeper> sweeper_;
};

TEST_F(SweeperTest, ACycleSweepsEveryListedSpanOnce) {
  for (int i = 0; i < 10; ++i) List(kSmall, PageCount(1), 1);
  List(kLarge, PageCount(100), 1);
  const uint64_t before = states_.sweeps();
  EXPECT_EQ(sweeper_->SweepAll(), PageCount(0));
  EXPECT_EQ(states_.sweeps() - before, 11u);
  EXPECT_EQ(sweeper_->SweepAll(), PageCount(0));
  EXPECT_EQ(states_.sweeps() - before, 22u);
  CheckInvariants();
}

TEST_F(SweeperTest, ACycleSweepsTheSpansOfEveryClass) {
  for (size_t i = 0; i < kNumSpanClasses; ++i) {
    const SpanClass span_class = SpanClass::FromValue(static_cast<uint8_t>(i));
    List(span_class, span_class.large() ? PageCount(3) : SpanPages(span_class.size_class()), 1);
  }
  const uint64_t before = states_.sweeps();
  sweeper_->SweepAll();
  EXPECT_EQ(states_.sweeps() - before, kNumSpanClasses);
}

TEST_F(SweeperTest, TheReclaimerStartsAnewInEachCycle) {
  List(SpanClass(kLargeSizeClass, /*noscan=*/false), PageCount(1), 1);  // swept first
  Span* const span = List(kSmall, PageCount(1), 1);
  const PageId page = span->first_page;
  ASSERT_TRUE(sweeper_->BeginCycle());
  sweeper_->PayFor(PageCount(1));
  DropAll(*span);
  while (sweeper_->SweepOne().has_value()) {
  }
  ASSERT_TRUE(sweeper_->BeginCycle());
  EXPECT_EQ(heap_.SpanOf(page), span);
  sweeper_->PayFor(PageCount(1));
  EXPECT_EQ(heap_.SpanOf(page), nullptr) << "the pages wanted were not found";
}

TEST_F(SweeperTest, TheNextCycleIsRefusedUntilThisOneIsDone) {
  List(kSmall, PageCount(1), 1);
  List(kLarge, PageCount(2), 1);
  ASSERT_TRUE(sweeper_->BeginCycle());
  const uint64_t generation = sweeper_->generation();
  EXPECT_FALSE(sweeper_->BeginCycle());
  EXPECT_TRUE(sweeper_->SweepOne().has_value());
  EXPECT_FALSE(sweeper_->BeginCycle());
  EXPECT_TRUE(sweeper_->SweepOne().has_value());
  EXPECT_FALSE(sweeper_->BeginCycle()) << "nobody knows yet that nothing is left";
  EXPECT_FALSE(sweeper_->SweepOne().has_value());
  EXPECT_TRUE(sweeper_->done());
  EXPECT_EQ(sweeper_->generation(), generation);
  EXPECT_TRUE(sweeper_->BeginCycle());
  EXPECT_EQ(sweeper_->generation(), generation + 2);
}

TEST_F(SweeperTest, WhoTakesFreshPagesSweepsInProportion) {
  for (int i = 0; i < 1024; ++i) List(kSmall, PageCount(1), 1);
  ASSERT_TRUE(sweeper_->BeginCycle());
  const uint64_t before = states_.sweeps();
  // 1024 pages are listed, so the sweep is to be over when 1024 more have been taken.
  for (uint64_t taken = 0; taken < 1024; taken += 8) {
    sweeper_->PayFor(PageCount(8));
    EXPECT_GE(states_.sweeps() - before, taken + 8);
    ASSERT_TRUE(heap_.Allocate(kLarge, PageCount(8), PageCount(1)).ok());
  }
  EXPECT_FALSE(sweeper_->SweepOne().has_value());
  EXPECT_TRUE(sweeper_->done());
  CheckInvariants();
}

TEST_F(SweeperTest, WhatTheReclaimerHasInCreditDoesNotExcuseFromSweepingInProportion) {
  constexpr SpanClass kSweptFirst(kLargeSizeClass, /*noscan=*/false);
  DropAll(*List(kLarge, PageCount(1000), 1));
  List(kSweptFirst, PageCount(1), 1);
  for (int i = 0; i < 1000; ++i) List(kSmall, PageCount(1), 1);
  ASSERT_TRUE(sweeper_->BeginCycle());
  // Of this grant's own share is one page; the reclaimer then finds a thousand where it wants one.
  sweeper_->PayFor(PageCount(1));
  ASSERT_EQ(sweeper_->active()->pages_swept(), PageCount(1001));
  ASSERT_TRUE(heap_.Allocate(kLarge, PageCount(1001), PageCount(1)).ok());
  for (uint64_t owed = 1009; owed <= 1401; owed += 8) {
    sweeper_->PayFor(PageCount(8));
    EXPECT_EQ(sweeper_->active()->pages_swept(), PageCount(owed));
    ASSERT_TRUE(heap_.Allocate(kLarge, PageCount(8), PageCount(1)).ok());
  }
  CheckInvariants();
}

TEST_F(SweeperTest, AGrantDoesNotSweepTheWholeHeapInSearchOfPages) {
  for (int i = 0; i < 2000; ++i) List(kSmall, PageCount(1), 1);
  ASSERT_TRUE(sweeper_->BeginCycle());
  const uint64_t before = states_.sweeps();
  sweeper_->PayFor(PageCount(8));
  EXPECT_LE(states_.sweeps() - before, 8u + 8u + 100u + 64u);
  CheckInvariants();
}

TEST_F(SweeperTest, ACycleIsDueWhenAsMuchWasTakenAsIsListed) {
  EXPECT_FALSE(sweeper_->CycleDue());
  List(kLarge, PageCount(1000), 1);
  EXPECT_TRUE(sweeper_->CycleDue());
  sweeper_->SweepAll();
  EXPECT_FALSE(sweeper_->CycleDue());
  ASSERT_TRUE(heap_.Allocate(kLarge, PageCount(999), PageCount(1)).ok());
  EXPECT_FALSE(sweeper_->CycleDue());
  ASSERT_TRUE(heap_.Allocate(kLarge, PageCount(1), PageCount(1)).ok());
  EXPECT_TRUE(sweeper_->CycleDue());
}

TEST_F(SweeperTest, TheReclaimerFreesWhatIsWantedAndKeepsTheRestAsCredit) {
  std::vector<Span*> spans;
  std::vector<PageId> pages;
  for (int i = 0; i < 10; ++i) {
    spans.push_back(List(kLarge, PageCount(20), 1));
    pages.push_back(spans.back()->first_page);
  }
  for (Span* span : spans) DropAll(*span);
  PageReclaimer reclaimer(&heap_.map(), [&] {
    std::vector<CentralList*> lists;
    for (const auto& list : lists_) lists.push_back(list.get());
    return lists;
  }());
  ASSERT_TRUE(sweeper_->BeginCycle());
  reclaimer.Begin(sweeper_->generation(), heap_.arenas_end());
  const ActiveSweep::Token token = sweeper_->active()->Begin();
  // Spans begin at pages 0, 20, 40 and 60: the first claim of 64 pages finds four.
  EXPECT_EQ(reclaimer.Reclaim(token, PageCount(30)), PageCount(30));
  EXPECT_EQ(reclaimer.credit(), PageCount(50));
  EXPECT_EQ(heap_.SpanOf(pages[3]), nullptr);
  EXPECT_NE(heap_.SpanOf(pages[4]), nullptr);
  CheckInvariants();
  EXPECT_EQ(reclaimer.Reclaim(token, PageCount(45)), PageCount(45));
  EXPECT_EQ(reclaimer.credit(), PageCount(5));
  EXPECT_EQ(reclaimer.Reclaim(token, PageCount(1000)), PageCount(125));
  EXPECT_EQ(reclaimer.Reclaim(token, PageCount(1)), PageCount(0));
  EXPECT_EQ(reclaimer.credit(), PageCount(0));
  CheckInvariants();
}

TEST_F(SweeperTest, TheReclaimerLeavesAloneWhatIsSweptOrOnLoan) {
  Span* const loan = *heap_.Allocate(kSmall, PageCount(1), PageCount(1));
  ASSERT_TRUE(sweeper_->BeginCycle());
  Span* const swept = List(kSmall, PageCount(1), 1);
  DropAll(*swept);
  const uint64_t before = states_.sweeps();
  sweeper_->PayFor(PageCount(1000));
  EXPECT_EQ(states_.sweeps(), before);
  EXPECT_EQ(heap_.SpanOf(swept->first_page), swept);
  EXPECT_EQ(heap_.SpanOf(loan->first_page), loan);
}

TEST_F(SweeperTest, TheEndOfASweepNeverComesBeforeTheLastSpanIsSwept) {
  constexpr int kCycles = 300;
  for (int i = 0; i < 60; ++i) List(kSmall, PageCount(1), 1 + i % 4);
  for (int i = 0; i < 20; ++i) List(kLarge, PageCount(10), 1);
  std::vector<std::thread> threads;
  std::atomic<int> cycles{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      while (cycles.load() < kCycles) {
        // Only this thread begins cycles, so what it sees here stays so meanwhile.
        if (i == 0 && sweeper_->done()) {
          EXPECT_EQ(states_.working(), 0) << "declared over with a span still being swept";
          cycles.fetch_add(1);
          sweeper_->BeginCycle();
        }
        if (i == 1) {
          sweeper_->PayFor(PageCount(100));
        } else {
          sweeper_->SweepOne();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  sweeper_->SweepAll();
  EXPECT_EQ(lists_[kSmall.value()]->listed_spans(), 60u);
  EXPECT_EQ(lists_[kLarge.value()]->listed_spans(), 20u);
  CheckInvariants();
}

TEST_F(SweeperTest, FourThreadsEachSweepEverythingListedBeforeTheyAsked) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        Span* const span = List(kLarge, PageCount(3), 1);
        const PageId page = span->first_page;
        const uint64_t blocks = span->blocks;
        EXPECT_EQ(blocks, 1u);
        states_.Drop(page, 0);
        sweeper_->SweepAll();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(heap_.stats().spans, 0u);
  CheckInvariants();
}

}  // namespace
}  // namespace spanpool

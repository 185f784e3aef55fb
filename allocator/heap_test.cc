#include "allocator/heap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "allocator/anonymous_arena_source.h"
#include "allocator/arena_source.h"
#include "allocator/failing_metadata_source.h"
#include "allocator/fake_block_states.h"
#include "allocator/faulty_arena_source.h"
#include "allocator/lock_rank.h"

namespace spanpool {
namespace {

constexpr SpanClass kClass64 = SpanClass(SizeClassFor(64), /*noscan=*/true);
constexpr SpanClass kClass8192 = SpanClass(SizeClassFor(8192), /*noscan=*/true);

HeapOptions Limit(uint64_t bytes) {
  HeapOptions options;
  options.limit_bytes = bytes;
  return options;
}

void ExpectAddsUp(const HeapStats& stats) {
  EXPECT_EQ(stats.on_loan_bytes + stats.in_lists_bytes + stats.free_bytes + stats.scavenged_bytes,
            stats.reserved_bytes);
}

TEST(Heap, AGrantedSpanHasTheShapeOfItsClass) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  for (uint8_t value = 2; value < kNumSpanClasses; ++value) {
    const SpanClass span_class = SpanClass::FromValue(value);
    absl::StatusOr<Span*> span = heap.Grant(span_class);
    ASSERT_TRUE(span.ok()) << span.status();
    EXPECT_EQ((*span)->span_class, span_class);
    EXPECT_EQ((*span)->pages, SpanPages(span_class.size_class()));
    EXPECT_EQ((*span)->blocks, BlocksPerSpan(span_class.size_class()));
    EXPECT_EQ((*span)->block_bytes, BlockBytes(span_class.size_class()));
    EXPECT_FALSE((*span)->large());
    EXPECT_FALSE((*span)->needs_zero);
    EXPECT_EQ((*span)->in_use().size(), ((*span)->blocks + 63) / 64);
    for (const uint64_t word : (*span)->in_use()) EXPECT_EQ(word, 0u);
    for (uint64_t i = 0; i < (*span)->pages.value(); ++i) {
      EXPECT_EQ(heap.SpanOf((*span)->first_page + PageCount(i)), *span);
    }
  }
  heap.CheckInvariants();
}

TEST(Heap, WhatIsNotASpanIsRefusedOrUnknown) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  EXPECT_EQ(heap.Grant(SpanClass()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(heap.GrantLarge(PageCount(0), false).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(heap.GrantLarge(PageCount(1), false, PageCount(0)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(heap.GrantLarge(PageCount(1), false, PageCount(3)).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const uint64_t page : {uint64_t{0}, uint64_t{1} << 20, uint64_t{1} << 35, UINT64_MAX}) {
    EXPECT_EQ(heap.SpanOf(PageId(page)), nullptr);
  }
}

TEST(Heap, MemoryIsBehindEveryPageThatIsGranted) {
  AnonymousArenaSource source(4);
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  for (const SpanClass span_class : {kClass64, kClass8192}) {
    absl::StatusOr<Span*> span = heap.Grant(span_class);
    ASSERT_TRUE(span.ok());
    std::byte* const at = source.At(OffsetOf((*span)->first_page));
    std::fill_n(at, Bytes((*span)->pages), std::byte{0xAA});
  }
  heap.CheckInvariants();
}

TEST(Heap, AnEmptySpanIsFreeAtOnceWhenReturned) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  Span* const span = *heap.Grant(kClass8192);
  const PageId page = span->first_page;
  EXPECT_EQ(heap.stats().on_loan_bytes, kPageBytes);
  EXPECT_EQ(heap.stats().spans_on_loan, 1u);
  heap.Return(span);
  EXPECT_EQ(heap.SpanOf(page), nullptr);
  const HeapStats stats = heap.stats();
  EXPECT_EQ(stats.on_loan_bytes, 0u);
  EXPECT_EQ(stats.in_lists_bytes, 0u);
  EXPECT_EQ(stats.free_bytes, kPageBytes);
  EXPECT_EQ(stats.spans_on_loan, 0u);
  ExpectAddsUp(stats);
  heap.CheckInvariants();
}

TEST(Heap, ASpanInUseElsewhereIsListedAndGrantedAgainBeforeANewOne) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kArenaBytes), &source, &states);
  Span* const span = *heap.Grant(kClass64);
  states.Refer(*span, 3);
  states.Refer(*span, 100);
  heap.Return(span);
  EXPECT_EQ(heap.stats().in_lists_bytes, kPageBytes);
  EXPECT_EQ(heap.stats().live_listed_blocks, 2u);
  EXPECT_EQ(heap.stats().spans_in_lists, 1u);
  EXPECT_EQ(heap.SpanOf(span->first_page), span);
  heap.CheckInvariants();
  Span* const again = *heap.Grant(kClass64);
  EXPECT_EQ(again, span);
  EXPECT_EQ(again->in_use()[0], uint64_t{1} << 3);
  EXPECT_EQ(again->in_use()[1], uint64_t{1} << 36);
  EXPECT_EQ(heap.stats().in_lists_bytes, 0u);
  heap.CheckInvariants();
}

TEST(Heap, AFullSpanIsNotGrantedUntilASweepFindsAFreeBlock) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kArenaBytes), &source, &states);
  Span* const span = *heap.Grant(kClass64);
  const PageId page = span->first_page;
  for (uint32_t i = 0; i < span->blocks; ++i) states.Refer(*span, i);
  heap.Return(span);
  Span* const other = *heap.Grant(kClass64);
  EXPECT_NE(other, span);
  states.Drop(page, 5);
  EXPECT_EQ(heap.Sweep(), PageCount(0));
  Span* const again = *heap.Grant(kClass64);
  EXPECT_EQ(again, span);
  EXPECT_EQ(again->in_use()[0], ~(uint64_t{1} << 5));
  heap.CheckInvariants();
}

TEST(Heap, SweepingFreesSpansThatWereLeftEmpty) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kArenaBytes), &source, &states);
  Span* const small = *heap.Grant(kClass64);
  Span* const large = *heap.GrantLarge(PageCount(10), /*scan=*/false);
  const PageId small_page = small->first_page;
  const PageId large_page = large->first_page;
  states.Refer(*small, 0);
  states.Refer(*large, 0);
  heap.Return(small);
  heap.Return(large);
  EXPECT_EQ(heap.Sweep(), PageCount(0));
  states.Drop(large_page, 0);
  EXPECT_EQ(heap.Sweep(), PageCount(10));
  EXPECT_EQ(heap.SpanOf(large_page), nullptr);
  states.Drop(small_page, 0);
  EXPECT_EQ(heap.Sweep(), PageCount(1));
  EXPECT_EQ(heap.stats().in_lists_bytes, 0u);
  heap.CheckInvariants();
}

TEST(Heap, ManySpansOfAnyClassComeBackAtOnce) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(2 * kArenaBytes), &source, &states);
  std::vector<Span*> spans;
  for (int i = 0; i < 200; ++i) {
    spans.push_back(*heap.Grant(i % 2 == 0 ? kClass64 : kClass8192));
    if (i % 50 == 0) spans.push_back(*heap.GrantLarge(PageCount(700), /*scan=*/false));
  }
  Span* const kept = spans[90];
  const PageId kept_page = kept->first_page;
  states.Refer(*kept, 0);
  std::set<PageId> pages;
  for (const Span* span : spans) pages.insert(span->first_page);
  std::shuffle(spans.begin(), spans.end(), std::mt19937(1));
  heap.ReturnAll({});
  heap.ReturnAll(spans);
  for (const PageId page : pages) {
    EXPECT_EQ(heap.SpanOf(page), page == kept_page ? kept : nullptr) << page;
  }
  const HeapStats stats = heap.stats();
  EXPECT_EQ(stats.on_loan_bytes, 0u);
  EXPECT_EQ(stats.spans_on_loan, 0u);
  EXPECT_EQ(stats.spans_in_lists, 1u);
  ExpectAddsUp(stats);
  heap.CheckInvariants();
  states.Drop(kept_page, 0);
  heap.Sweep();
  EXPECT_TRUE(heap.GrantLarge(PageCount(2 * kPagesPerArena), false).ok()) << "all one run again";
  heap.CheckInvariants();
}

TEST(HeapDeathTest, ReturningASpanTwiceIsRefused) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kArenaBytes), &source, &states);
  Span* const freed = *heap.Grant(kClass64);
  Span* const listed = *heap.Grant(kClass64);
  states.Refer(*listed, 0);
  heap.Return(freed);
  heap.Return(listed);
  EXPECT_DEATH(heap.Return(freed), "not on loan");
  EXPECT_DEATH(heap.Return(listed), "not on loan");
}

TEST(Heap, SpansCrossArenaBorders) {
  AnonymousArenaSource source(16);
  Heap heap(Limit(8 * kArenaBytes), &source, nullptr);
  Span* const first = *heap.GrantLarge(PageCount(kPagesPerArena - 3), false);
  Span* const second = *heap.GrantLarge(PageCount(20), false);
  EXPECT_EQ(ArenaOf(second->first_page), ArenaIndex(0));
  EXPECT_EQ(ArenaOf(second->range().end()), ArenaIndex(1));
  EXPECT_EQ(heap.SpanOf(FirstPageOf(ArenaIndex(1))), second);
  Span* const third = *heap.GrantLarge(PageCount(2 * kPagesPerArena + 1), false);
  EXPECT_EQ(third->block_bytes, 2 * kArenaBytes + kPageBytes);
  EXPECT_EQ(third->blocks, 1u);
  EXPECT_EQ(heap.stats().reserved_bytes, 4 * kArenaBytes);
  heap.CheckInvariants();
  for (Span* span : {first, second, third}) heap.Return(span);
  EXPECT_EQ(heap.stats().free_bytes, Bytes(PageCount(3 * kPagesPerArena + 18)));
  heap.CheckInvariants();
}

TEST(Heap, LargeSpansAreAligned) {
  FaultyArenaSource source;
  Heap heap(Limit(4 * kArenaBytes), &source, nullptr);
  ASSERT_TRUE(heap.Grant(kClass64).ok());
  for (uint64_t alignment = 1; alignment <= kPagesPerArena; alignment *= 2) {
    absl::StatusOr<Span*> span = heap.GrantLarge(PageCount(5), true, PageCount(alignment));
    ASSERT_TRUE(span.ok()) << span.status();
    EXPECT_EQ((*span)->first_page.value() % alignment, 0u);
    EXPECT_FALSE((*span)->span_class.noscan());
  }
  heap.CheckInvariants();
}

TEST(Heap, AnImpossibleRunIsRefusedBeforeArenasAreMadeForIt) {
  FaultyArenaSource source;
  HeapOptions options = Limit(64 * kArenaBytes);
  options.max_arenas = 3;
  Heap heap(options, &source, nullptr);
  EXPECT_EQ(heap.GrantLarge(PageCount(4 * kPagesPerArena), false).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(heap.GrantLarge(PageCount(UINT64_MAX), false).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(heap.stats().reserved_bytes, 0u);
  EXPECT_TRUE(heap.GrantLarge(PageCount(3 * kPagesPerArena), false).ok());
  EXPECT_EQ(heap.Grant(kClass64).status().code(), absl::StatusCode::kResourceExhausted);
  heap.CheckInvariants();
}

TEST(Heap, TheLimitHoldsForSpansOnLoanAndListedTogether) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(10 * kPageBytes), &source, &states);
  Span* const listed = *heap.GrantLarge(PageCount(4), false);
  const PageId page = listed->first_page;
  states.Refer(*listed, 0);
  heap.Return(listed);
  Span* const loan = *heap.GrantLarge(PageCount(6), false);
  const absl::Status status = heap.Grant(kClass8192).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("limit"), std::string::npos) << status;
  // What others have freed meanwhile is found before a grant is refused.
  states.Drop(page, 0);
  EXPECT_TRUE(heap.Grant(kClass8192).ok());
  heap.Return(loan);
  heap.CheckInvariants();
}

TEST(Heap, ABlockFreedInAFullSpanIsFoundBeforeAGrantIsRefused) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kPageBytes), &source, &states);
  Span* const span = *heap.Grant(kClass64);
  const PageId page = span->first_page;
  for (uint32_t i = 0; i < span->blocks; ++i) states.Refer(*span, i);
  heap.Return(span);
  EXPECT_EQ(heap.Grant(kClass64).status().code(), absl::StatusCode::kResourceExhausted);
  states.Drop(page, 77);
  const absl::StatusOr<Span*> again = heap.Grant(kClass64);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, span);
  EXPECT_EQ(span->in_use()[1], ~(uint64_t{1} << 13));
  heap.CheckInvariants();
}

TEST(Heap, ReplenishBacksTheReserveAheadOfDemand) {
  FaultyArenaSource source;
  HeapOptions options = Limit(2 * kArenaBytes);
  options.reserve_bytes = kArenaBytes + 100 * kPageBytes;
  Heap heap(options, &source, nullptr);
  ASSERT_TRUE(heap.Replenish().ok());
  EXPECT_EQ(heap.stats().free_bytes, options.reserve_bytes);
  const uint64_t populated = source.calls(FaultyArenaSource::Call::kPopulate);
  ASSERT_TRUE(heap.Grant(kClass64).ok());
  EXPECT_EQ(source.calls(FaultyArenaSource::Call::kPopulate), populated);
  ASSERT_TRUE(heap.GrantLarge(PageCount(kPagesPerArena), false).ok());
  // No more than the limit leaves.
  ASSERT_TRUE(heap.Replenish().ok());
  EXPECT_EQ(heap.stats().free_bytes, kArenaBytes - kPageBytes);
  heap.CheckInvariants();
}

TEST(Heap, MemoryThatWasUsedNeedsZeroingAndFreshMemoryDoesNot) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  Span* const first = *heap.Grant(kClass64);
  EXPECT_FALSE(first->needs_zero);
  heap.Return(first);
  EXPECT_TRUE((*heap.Grant(kClass64))->needs_zero);
  EXPECT_FALSE((*heap.Grant(kClass64))->needs_zero);
}

TEST(Heap, ASpanThatComesBackFromItsListNeedsZeroing) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kArenaBytes), &source, &states);
  Span* const span = *heap.Grant(kClass64);
  EXPECT_FALSE(span->needs_zero);
  states.Refer(*span, 0);
  heap.Return(span);
  ASSERT_EQ(*heap.Grant(kClass64), span);
  EXPECT_TRUE(span->needs_zero);
}

// Go's heap spends 3.2 % of an arena on describing it.
TEST(Heap, MetadataIsAtMostThreeAndAFifthPercentOfTheArenas) {
  // The smallest blocks have the largest bitmaps, and spans of one page are the most there can be.
  for (const size_t bytes : {8, 64, 8192}) {
    FaultyArenaSource source;
    Heap heap(Limit(4 * kArenaBytes), &source, nullptr);
    for (size_t i = 0; i < 4 * kPagesPerArena; ++i) {
      ASSERT_TRUE(heap.Grant(SpanClass(SizeClassFor(bytes), true)).ok());
    }
    const HeapStats stats = heap.stats();
    EXPECT_EQ(stats.reserved_bytes, 4 * kArenaBytes);
    EXPECT_LE(static_cast<double>(stats.metadata_bytes), 0.032 * 4 * kArenaBytes) << bytes;
    RecordProperty(absl::StrCat("metadata_percent_at_", bytes, "_byte_blocks"),
                   absl::StrCat(100.0 * static_cast<double>(stats.metadata_bytes) /
                                static_cast<double>(stats.reserved_bytes)));
  }
}

TEST(Heap, AnArenaIndexThatIsTakenIsLeftOutAndNoSpanCrossesTheHole) {
  AnonymousArenaSource source(8);
  ASSERT_TRUE(source.Create(ArenaIndex(1)).ok());
  Heap heap(Limit(4 * kArenaBytes), &source, nullptr);
  Span* const span = *heap.GrantLarge(PageCount(kPagesPerArena + 10), false);
  EXPECT_EQ(span->first_page, FirstPageOf(ArenaIndex(2)));
  EXPECT_EQ(heap.SpanOf(FirstPageOf(ArenaIndex(1))), nullptr);
  EXPECT_EQ(heap.stats().reserved_bytes, 3 * kArenaBytes);
  ASSERT_TRUE(heap.Grant(kClass64).ok());
  heap.CheckInvariants();
}

TEST(Heap, TheListenerIsToldOnceOfABlockThatIsFreed) {
  struct Listener : FreedBlockListener {
    void OnFreed(absl::Span<const FreedBlock> blocks) override {
      freed.insert(freed.end(), blocks.begin(), blocks.end());
    }
    std::vector<FreedBlock> freed;
  } listener;
  FaultyArenaSource source;
  FakeBlockStates states;
  HeapOptions options = Limit(kArenaBytes);
  options.listener = &listener;
  Heap heap(options, &source, &states);
  Span* const span = *heap.Grant(kClass64);
  const PageId page = span->first_page;
  states.Refer(*span, 1);
  states.Refer(*span, 2);
  ASSERT_TRUE(heap.AddSpecial(span, 1, SpecialKind::kNotification, 11).ok());
  ASSERT_TRUE(heap.AddSpecial(span, 2, SpecialKind::kProfile, 22).ok());
  ASSERT_TRUE(heap.AddSpecial(span, 2, SpecialKind::kNotification, 33).ok());
  EXPECT_TRUE(heap.RemoveSpecial(span, 2, SpecialKind::kNotification));
  heap.Return(span);
  heap.Sweep();
  EXPECT_TRUE(listener.freed.empty());
  states.Drop(page, 1);
  heap.Sweep();
  heap.Sweep();
  EXPECT_EQ(listener.freed, (std::vector<FreedBlock>{{page, 1, SpecialKind::kNotification, 11}}));
  heap.CheckInvariants();
  states.Drop(page, 2);
  heap.Sweep();
  ASSERT_EQ(listener.freed.size(), 2u);
  EXPECT_EQ(listener.freed[1].value, 22u);
  EXPECT_EQ(heap.SpanOf(page), nullptr);
  heap.CheckInvariants();
}

TEST(Heap, TheListenerIsToldWhenManySpansComeBack) {
  struct Listener : FreedBlockListener {
    void OnFreed(absl::Span<const FreedBlock> blocks) override {
      // Their spans are out of the heap's hands by now.
      for (const FreedBlock& block : blocks) EXPECT_EQ(heap->SpanOf(block.first_page), nullptr);
      freed += blocks.size();
    }
    Heap* heap = nullptr;
    size_t freed = 0;
  } listener;
  FaultyArenaSource source;
  FakeBlockStates states;
  HeapOptions options = Limit(kArenaBytes);
  options.listener = &listener;
  Heap heap(options, &source, &states);
  listener.heap = &heap;
  std::vector<Span*> spans;
  for (int i = 0; i < 3; ++i) {
    spans.push_back(*heap.Grant(kClass64));
    ASSERT_TRUE(heap.AddSpecial(spans.back(), 5, SpecialKind::kNotification, 1).ok());
  }
  heap.ReturnAll(spans);
  EXPECT_EQ(listener.freed, 3u);
  heap.CheckInvariants();
}

TEST(Heap, TheListenerIsToldWhenItIsAGrantThatSweeps) {
  struct Listener : FreedBlockListener {
    void OnFreed(absl::Span<const FreedBlock> blocks) override { freed += blocks.size(); }
    size_t freed = 0;
  } listener;
  FaultyArenaSource source;
  FakeBlockStates states;
  HeapOptions options = Limit(kArenaBytes);
  options.listener = &listener;
  Heap heap(options, &source, &states);
  Span* const span = *heap.Grant(kClass64);
  for (const uint32_t block : {1, 2}) states.Refer(*span, block);
  ASSERT_TRUE(heap.AddSpecial(span, 1, SpecialKind::kNotification, 11).ok());
  heap.Return(span);
  ASSERT_TRUE(heap.GrantLarge(PageCount(1000), false).ok());
  ASSERT_TRUE(heap.SweepInBackground(0)) << "no cycle has begun";
  states.Drop(span->first_page, 1);
  ASSERT_EQ(*heap.Grant(kClass64), span);
  EXPECT_EQ(listener.freed, 1u);
  heap.CheckInvariants();
}

TEST(Heap, RunsAreUnderTheSameLimit) {
  FaultyArenaSource source;
  Heap heap(Limit(64 * kPageBytes), &source, nullptr);
  const absl::StatusOr<PageRange> run = heap.runs()->Alloc(RunOrder(2));
  ASSERT_TRUE(run.ok());
  EXPECT_EQ(heap.stats().on_loan_bytes, 32 * kPageBytes);
  EXPECT_FALSE(heap.GrantLarge(PageCount(33), false).ok());
  heap.CheckInvariants();
  heap.runs()->Free(*run);
  EXPECT_TRUE(heap.GrantLarge(PageCount(33), false).ok());
}

TEST(Heap, PagesThatCouldBeNeitherBackedNorDiscardedAreNotTrustedToBeZero) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  heap.Return(*heap.GrantLarge(PageCount(100), false));
  source.FailCall(FaultyArenaSource::Call::kPopulate, 1);
  source.FailCall(FaultyArenaSource::Call::kDiscard, 1);
  EXPECT_FALSE(heap.GrantLarge(PageCount(200), false).ok());
  const absl::StatusOr<Span*> span = heap.GrantLarge(PageCount(200), false);
  ASSERT_TRUE(span.ok()) << span.status();
  EXPECT_EQ((*span)->first_page, PageId(0));
  EXPECT_TRUE((*span)->needs_zero);
}

// Fails the N-th call of each kind, for N = 1, 2, 3 ..., until a run meets none.
TEST(Heap, FailsCleanlyAtEveryCallOfTheArenaSource) {
  using Call = FaultyArenaSource::Call;
  for (const Call call : {Call::kCreate, Call::kPopulate, Call::kDiscard}) {
    for (uint64_t n = 1;; ++n) {
      SCOPED_TRACE(n);
      FaultyArenaSource source;
      source.FailCall(call, n);
      if (call == Call::kDiscard) source.FailCall(Call::kPopulate, n);
      HeapOptions options = Limit(4 * kArenaBytes);
      options.reserve_bytes = 3 << 20;
      Heap heap(options, &source, nullptr);
      std::vector<Span*> spans;
      const auto keep = [&](absl::StatusOr<Span*> span) {
        heap.CheckInvariants();
        if (span.ok()) {
          spans.push_back(*span);
        } else {
          EXPECT_EQ(span.status().code(), absl::StatusCode::kResourceExhausted);
        }
      };
      if (absl::Status status = heap.Replenish(); !status.ok()) {
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      }
      for (int i = 0; i < 3; ++i) {
        keep(heap.Grant(kClass64));
        keep(heap.GrantLarge(PageCount(kPagesPerArena / 2 + 1), false));
      }
      for (Span* span : spans) heap.Return(span);
      heap.CheckInvariants();
      EXPECT_EQ(heap.stats().on_loan_bytes, 0u);
      // A failure passes: what fails for it succeeds the next time.
      if (!heap.GrantLarge(PageCount(3 * kPagesPerArena), false).ok()) {
        EXPECT_TRUE(heap.GrantLarge(PageCount(3 * kPagesPerArena), false).ok());
      }
      heap.CheckInvariants();
      if (source.failures(call) == 0) {
        EXPECT_GT(n, 1u);
        break;
      }
    }
  }
}

// Memory for the heap's records ends after N calls, for N = 0, 1, 2 ..., until that is enough.
TEST(Heap, FailsCleanlyAtEveryAllocationOfMetadata) {
  for (int64_t n = 0;; ++n) {
    SCOPED_TRACE(n);
    FailingMetadataSource metadata(n);
    FaultyArenaSource source;
    FakeBlockStates states;
    HeapOptions options = Limit(4 * kArenaBytes);
    options.metadata = &metadata;
    Heap heap(options, &source, &states);
    std::vector<Span*> spans;
    std::vector<PageId> shared;
    const auto keep = [&](absl::StatusOr<Span*> span) {
      if (!span.ok()) {
        EXPECT_EQ(span.status().code(), absl::StatusCode::kResourceExhausted);
        return;
      }
      states.Refer(**span, 0);
      shared.push_back((*span)->first_page);
      const absl::Status status = heap.AddSpecial(*span, 0, SpecialKind::kProfile, 1);
      EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status));
      spans.push_back(*span);
    };
    for (uint8_t c = 2; c < 30; ++c) keep(heap.Grant(SpanClass::FromValue(c)));
    keep(heap.GrantLarge(PageCount(2 * kPagesPerArena), false));
    for (int i = 0; i < 300; ++i) keep(heap.Grant(kClass64));
    heap.CheckInvariants();
    // Giving back never needs memory.
    for (Span* span : spans) heap.Return(span);
    heap.CheckInvariants();
    for (const PageId page : shared) states.Drop(page, 0);
    heap.Sweep();
    EXPECT_EQ(heap.stats().on_loan_bytes + heap.stats().in_lists_bytes, 0u);
    heap.CheckInvariants();
    const bool hit = metadata.hit();
    metadata.Heal();
    EXPECT_TRUE(heap.GrantLarge(PageCount(3 * kPagesPerArena), false).ok());
    EXPECT_TRUE(heap.Grant(kClass64).ok());
    heap.CheckInvariants();
    if (!hit) {
      EXPECT_GT(n, 10);
      break;
    }
  }
}

// The heap against a model that knows only which pages and blocks are whose.
TEST(Heap, RandomOperationsMatchATriviallyCorrectModel) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  FaultyArenaSource source;
  FakeBlockStates states;
  HeapOptions options = Limit(3 * kArenaBytes);
  options.reserve_bytes = 1 << 20;
  Heap heap(options, &source, &states);

  struct Loan {
    Span* span;
    std::set<uint32_t> shared;  // blocks others refer to
  };
  std::vector<Loan> loans;
  std::map<PageId, PageCount> owned;                         // model: pages of live spans
  std::set<std::pair<PageId, uint32_t>> live;                // blocks others refer to
  std::map<PageId, std::pair<PageCount, SpanClass>> listed;  // returned with live blocks
  uint64_t owned_pages = 0;

  const auto granted = [&](Span* span) {
    const auto in_list = listed.find(span->first_page);
    if (in_list != listed.end()) {
      ASSERT_EQ(in_list->second.first, span->pages);
      ASSERT_EQ(in_list->second.second, span->span_class);
      listed.erase(in_list);
    } else {
      // Overlaps nothing.
      const auto next = owned.lower_bound(span->first_page);
      if (next != owned.end()) {
        ASSERT_LE(span->range().end(), next->first);
      }
      if (next != owned.begin()) {
        const auto before = std::prev(next);
        ASSERT_LE(before->first + before->second, span->first_page);
      }
      owned[span->first_page] = span->pages;
      owned_pages += span->pages.value();
    }
    Loan loan{span, {}};
    // Every block that somebody refers to is marked; others may be until they are swept.
    for (uint32_t i = 0; i < span->blocks; ++i) {
      const bool marked = (span->in_use()[i / 64] >> (i % 64) & 1) != 0;
      const bool referred = live.contains({span->first_page, i});
      ASSERT_TRUE(marked || !referred);
      if (marked) loan.shared.insert(i);
    }
    loans.push_back(std::move(loan));
  };
  // The model learns which listed spans the heap has freed.
  const auto reconcile = [&] {
    for (auto it = listed.begin(); it != listed.end();) {
      // Freed; and perhaps granted again, in another shape. In the same shape there is nothing to
      // tell the two spans apart, nor any need to.
      const Span* const span = heap.SpanOf(it->first);
      if (span == nullptr || span->first_page != it->first || span->pages != it->second.first ||
          span->span_class != it->second.second) {
        const auto block = live.lower_bound({it->first, 0});
        ASSERT_TRUE(block == live.end() || block->first != it->first) << "a live block was lost";
        owned_pages -= it->second.first.value();
        owned.erase(it->first);
        it = listed.erase(it);
      } else {
        ++it;
      }
    }
  };

  for (int step = 0; step < 20000; ++step) {
    const uint64_t choice = random() % 100;
    if (choice < 35) {
      const SpanClass span_class =
          SpanClass::FromValue(static_cast<uint8_t>(2 + random() % (kNumSpanClasses - 2)));
      absl::StatusOr<Span*> span = heap.Grant(span_class);
      reconcile();
      if (span.ok()) {
        granted(*span);
      } else {
        ASSERT_EQ(span.status().code(), absl::StatusCode::kResourceExhausted);
      }
    } else if (choice < 45) {
      const PageCount pages(1 + random() % (random() % 50 == 0 ? kPagesPerArena : 200));
      const PageCount alignment(uint64_t{1} << (random() % 10));
      absl::StatusOr<Span*> span = heap.GrantLarge(pages, random() % 2 == 0, alignment);
      reconcile();
      if (span.ok()) {
        ASSERT_EQ((*span)->pages, pages);
        ASSERT_EQ((*span)->first_page.value() % alignment.value(), 0u);
        granted(*span);
      } else {
        ASSERT_EQ(span.status().code(), absl::StatusCode::kResourceExhausted);
      }
    } else if (choice < 60) {
      if (loans.empty()) continue;
      Loan& loan = loans[random() % loans.size()];
      const uint32_t block = static_cast<uint32_t>(random() % loan.span->blocks);
      if (loan.shared.insert(block).second) {
        states.Refer(*loan.span, block);
        live.insert({loan.span->first_page, block});
      }
    } else if (choice < 75) {
      if (live.empty()) continue;
      auto it = live.lower_bound({PageId(random() % (3 * kPagesPerArena)), 0});
      if (it == live.end()) it = live.begin();
      states.Drop(it->first, it->second);
      live.erase(it);
    } else if (choice < 98) {
      if (loans.empty()) continue;
      // One by itself, or a few at once.
      const size_t count = choice < 90 ? 1 : std::min<size_t>(1 + random() % 16, loans.size());
      std::vector<Span*> spans;
      while (spans.size() < count) {
        const size_t at = random() % loans.size();
        std::swap(loans[at], loans.back());
        Span* const span = loans.back().span;
        loans.pop_back();
        listed[span->first_page] = {span->pages, span->span_class};
        spans.push_back(span);
      }
      choice < 90 ? heap.Return(spans[0]) : heap.ReturnAll(spans);
      reconcile();
    } else if (choice < 99) {
      heap.Sweep();
      reconcile();
      for (const auto& [page, shape] : listed) {
        const auto block = live.lower_bound({page, 0});
        ASSERT_TRUE(block != live.end() && block->first == page)
            << "an empty span survived a sweep";
      }
    } else {
      ASSERT_TRUE(heap.Replenish().ok());
    }
    const HeapStats stats = heap.stats();
    ASSERT_EQ(stats.on_loan_bytes + stats.in_lists_bytes, owned_pages * kPageBytes);
    ASSERT_EQ(stats.spans_on_loan, loans.size());
    ASSERT_EQ(stats.spans_in_lists, listed.size());
    ExpectAddsUp(stats);
    if (step % 500 == 0) heap.CheckInvariants();
  }
  for (const Loan& loan : loans) heap.Return(loan.span);
  for (const auto& [page, block] : live) states.Drop(page, block);
  heap.Sweep();
  EXPECT_EQ(heap.stats().on_loan_bytes + heap.stats().in_lists_bytes, 0u);
  heap.CheckInvariants();
}

// Huge pages, a fixed stock of them. Thread-safe.
class HugePageStock : public ArenaSource {
 public:
  static constexpr PageCount kUnit{256};
  explicit HugePageStock(uint64_t pages) : left_(pages) {}

  PageCount unit() const override { return kUnit; }
  absl::Status Create(ArenaIndex) override { return absl::OkStatus(); }
  absl::Status Populate(PageRange range) override {
    RankedMutexLock lock(&mu_);
    for (uint64_t i = range.first.value() / kUnit.value(); i * kUnit.value() < range.end().value();
         ++i) {
      if (taken_.contains(i)) continue;
      if (left_ == 0) return absl::ResourceExhaustedError("no huge page is left");
      --left_;
      taken_.insert(i);
    }
    return absl::OkStatus();
  }
  absl::Status Discard(PageRange range) override {
    EXPECT_EQ(range.first.value() % kUnit.value(), 0u);
    EXPECT_EQ(range.count.value() % kUnit.value(), 0u);
    RankedMutexLock lock(&mu_);
    for (uint64_t i = range.first.value() / kUnit.value(); i * kUnit.value() < range.end().value();
         ++i) {
      left_ += taken_.erase(i);
    }
    return absl::OkStatus();
  }
  uint64_t left() const {
    RankedMutexLock lock(&mu_);
    return left_;
  }

 private:
  mutable RankedMutex mu_{LockRank::kArenaSource};
  uint64_t left_ ABSL_GUARDED_BY(mu_);
  std::set<uint64_t> taken_ ABSL_GUARDED_BY(mu_);  // by number in the pool
};

// Four threads grant, share, sweep and return while a background thread tidies up.
void RunThreads(ArenaSource* source, const HeapOptions& options) {
  FakeBlockStates states;
  Heap heap(options, source, &states);
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      std::vector<Span*> loans;
      std::vector<std::pair<PageId, uint32_t>> shared;
      for (int i = 0; i < 4000; ++i) {
        const uint64_t choice = random() % 100;
        if (choice < 40) {
          // Few classes, so that threads meet in the lists.
          absl::StatusOr<Span*> span =
              choice < 5 ? heap.GrantLarge(PageCount(1 + random() % 600), false)
                         : heap.Grant(SpanClass::FromValue(static_cast<uint8_t>(2 + random() % 4)));
          if (span.ok()) {
            (*span)->loan_session = seed + 1;
            loans.push_back(*span);
          }
        } else if (choice < 60) {
          if (loans.empty()) continue;
          Span* const span = loans[random() % loans.size()];
          const uint32_t block = static_cast<uint32_t>(random() % span->blocks);
          if (states.Refers(span->first_page, block)) continue;
          states.Refer(*span, block);
          shared.push_back({span->first_page, block});
        } else if (choice < 70) {
          if (shared.empty()) continue;
          states.Drop(shared.back().first, shared.back().second);
          shared.pop_back();
        } else if (choice < 97) {
          if (loans.empty()) continue;
          Span* const span = loans.back();
          loans.pop_back();
          EXPECT_EQ(span->loan_session, seed + 1);
          EXPECT_EQ(heap.SpanOf(span->first_page), span);
          heap.Return(span);
        } else if (choice < 98) {
          heap.Sweep();
        } else if (choice < 99) {
          const absl::Status status = heap.Replenish();
          EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
        } else {
          if (seed == 0) heap.Trim();
          ExpectAddsUp(heap.stats());
        }
      }
      for (Span* span : loans) heap.Return(span);
      for (const auto& [page, block] : shared) states.Drop(page, block);
    });
  }
  std::atomic<bool> stop{false};
  std::thread background([&] {
    while (!stop.load()) {
      heap.SweepInBackground(10);
      heap.Scavenge();
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop.store(true);
  background.join();
  heap.Sweep();
  heap.CheckInvariants();
  EXPECT_EQ(heap.stats().on_loan_bytes + heap.stats().in_lists_bytes, 0u);
  // Nothing is lost: the heap can be had whole.
  const absl::StatusOr<Span*> all =
      heap.GrantLarge(PageCount(options.limit_bytes / kPageBytes), false);
  ASSERT_TRUE(all.ok()) << all.status();
  heap.Return(*all);
  heap.Trim();
}

TEST(Heap, FourThreadsGrantShareSweepAndReturnWhileABackgroundThreadTidiesUp) {
  FaultyArenaSource source;
  HeapOptions options = Limit(2 * kArenaBytes);
  options.reserve_bytes = 4 << 20;
  RunThreads(&source, options);
}

TEST(Heap, TheyDoSoOutOfAStockOfHugePagesThatIsJustEnough) {
  constexpr uint64_t kStock = 2 * kArenaBytes / (2 << 20);
  HugePageStock source(kStock);
  HeapOptions options = Limit(2 * kArenaBytes);
  options.reserve_bytes = 0;
  RunThreads(&source, options);
  EXPECT_EQ(source.left(), kStock);
}

TEST(Heap, FreeHugePagesAreGivenUpBeforeASpanIsRefused) {
  HugePageStock source(8);
  HeapOptions options = Limit(kArenaBytes);
  options.reserve_bytes = 8 * Bytes(HugePageStock::kUnit);
  Heap heap(options, &source, nullptr);
  ASSERT_TRUE(heap.Replenish().ok());
  EXPECT_EQ(source.left(), 0u);
  // The first and the third have something in them; not all of the six others lie together.
  ASSERT_TRUE(heap.Grant(kClass8192).ok());
  const absl::StatusOr<Span*> second = heap.GrantLarge(HugePageStock::kUnit, false);
  ASSERT_TRUE(second.ok());
  ASSERT_TRUE(heap.GrantLarge(PageCount(1), false, HugePageStock::kUnit).ok());
  heap.Return(*second);
  const absl::StatusOr<Span*> large =
      heap.GrantLarge(PageCount(6 * HugePageStock::kUnit.value()), false, HugePageStock::kUnit);
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_EQ(source.left(), 0u);
  const absl::Status refused = heap.GrantLarge(HugePageStock::kUnit, false).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("no huge page is left"), absl::string_view::npos) << refused;
  const HeapStats stats = heap.stats();
  EXPECT_EQ(stats.on_loan_bytes + stats.free_bytes, 8 * Bytes(HugePageStock::kUnit));
  heap.CheckInvariants();
}

}  // namespace
}  // namespace spanpool

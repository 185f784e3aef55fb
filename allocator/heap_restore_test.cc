// A heap that is made of what another one's journal says, over the same arenas.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocator/anonymous_arena_source.h"
#include "allocator/failing_metadata_source.h"
#include "allocator/fake_block_states.h"
#include "allocator/faulty_arena_source.h"
#include "allocator/heap.h"
#include "allocator/memfd_arena_source.h"
#include "allocator/page_ranges.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

using Place = SpanState::Place;

constexpr SpanClass kClass64 = SpanClass(SizeClassFor(64), /*noscan=*/true);
constexpr SpanClass kClass8192 = SpanClass(SizeClassFor(8192), /*noscan=*/true);
constexpr SpanClass kLarge = SpanClass(kLargeSizeClass, /*noscan=*/true);
constexpr uint64_t kTableBytes = 4096;

PageRange Pages(uint64_t first, uint64_t count) { return {PageId(first), PageCount(count)}; }

SpanState State(SpanClass span_class, uint64_t first, uint64_t pages, Place place) {
  return {PageId(first), PageCount(pages), span_class, place};
}

HeapOptions Limit(uint64_t bytes) {
  HeapOptions options;
  options.limit_bytes = bytes;
  return options;
}

std::vector<ArenaIndex> Arenas(std::initializer_list<uint32_t> indices) {
  return std::vector<ArenaIndex>(indices.begin(), indices.end());
}

void ExpectSame(const HeapStats& after, const HeapStats& before) {
  EXPECT_EQ(after.limit_bytes, before.limit_bytes);
  EXPECT_EQ(after.reserved_bytes, before.reserved_bytes);
  EXPECT_EQ(after.on_loan_bytes, before.on_loan_bytes);
  EXPECT_EQ(after.in_lists_bytes, before.in_lists_bytes);
  EXPECT_EQ(after.free_bytes, before.free_bytes);
  EXPECT_EQ(after.scavenged_bytes, before.scavenged_bytes);
  EXPECT_EQ(after.spans_on_loan, before.spans_on_loan);
  EXPECT_EQ(after.spans_in_lists, before.spans_in_lists);
}

// Whether this kernel tells which pages are backed that nobody has touched.
bool KernelTells() {
  MemfdArenaSource source("probe", 0);
  EXPECT_TRUE(source.Create(ArenaIndex(0)).ok());
  EXPECT_TRUE(source.Populate(Pages(3, 1)).ok());
  return *source.FindBacked(Pages(0, kPagesPerArena)) == PageRanges{Pages(3, 1)};
}

// ---- Over memfds, as a daemon does it

// What a successor is handed: the spans, by first page, and the files.
struct Written : SpanJournal {
  void Listed(const Span& span) override { spans.at(span.first_page).place = Place::kListed; }
  void Freed(const Span& span) override { EXPECT_EQ(spans.erase(span.first_page), 1u); }
  void Granted(const Span& span) {
    spans[span.first_page] = {span.first_page, span.pages, span.span_class, Place::kOnLoan};
  }
  std::vector<SpanState> All() const {
    std::vector<SpanState> all;
    for (const auto& [page, span] : spans) all.push_back(span);
    return all;
  }
  std::map<PageId, SpanState> spans;
};

class RestoreOverMemfds : public testing::Test {
 protected:
  static constexpr uint64_t kLimitBytes = 3 * kArenaBytes;

  RestoreOverMemfds() { Begin(); }

  void Begin() {
    source_ = std::make_unique<MemfdArenaSource>("restored", kTableBytes);
    HeapOptions options = Limit(kLimitBytes);
    options.reserve_bytes = kArenaBytes / 2;
    options.journal = &written_;
    heap_ = std::make_unique<Heap>(options, source_.get(), &states_);
  }

  // The heap ends and another one begins.
  void Restart() {
    std::vector<std::array<int, 2>> files;
    for (uint32_t i = 0; source_->data_fd(ArenaIndex(i)) >= 0; ++i) {
      files.push_back(
          {dup(source_->data_fd(ArenaIndex(i))), dup(source_->table_fd(ArenaIndex(i)))});
    }
    heap_.reset();
    Begin();
    std::vector<ArenaIndex> arenas;
    for (const auto& [data, table] : files) {
      arenas.emplace_back(static_cast<uint32_t>(arenas.size()));
      const absl::Status status = source_->Adopt(arenas.back(), data, table);
      ASSERT_TRUE(status.ok()) << status;
    }
    const std::vector<SpanState> spans = written_.All();
    const absl::StatusOr<std::vector<Span*>> restored = heap_->Restore(arenas, spans);
    ASSERT_TRUE(restored.ok()) << restored.status();
    heap_->CheckInvariants();
    std::map<PageId, Span*> loans;
    for (size_t i = 0; i < spans.size(); ++i) {
      const Span* const span = heap_->SpanOf(spans[i].first_page);
      ASSERT_NE(span, nullptr);
      EXPECT_EQ(span->range(), (PageRange{spans[i].first_page, spans[i].pages}));
      EXPECT_EQ(span->span_class, spans[i].span_class);
      EXPECT_EQ(span->large() ? 1 : BlocksPerSpan(span->span_class.size_class()), span->blocks);
      for (PageId page = span->first_page; page < span->range().end(); ++page) {
        EXPECT_EQ(heap_->SpanOf(page), span);
      }
      if (spans[i].place == Place::kListed) {
        EXPECT_EQ((*restored)[i], nullptr);
        continue;
      }
      EXPECT_EQ((*restored)[i], span);
      EXPECT_TRUE(span->needs_zero);
      EXPECT_EQ(span->loan_session, 0u);
      EXPECT_EQ(span->loan_sequence, 0u);
      for (const uint64_t word : span->in_use()) EXPECT_EQ(word, 0u);
      loans[span->first_page] = (*restored)[i];
    }
    for (Span*& loan : loans_) loan = loans.at(first_pages_.at(loan));
    ASSERT_EQ(loans_.size(), loans.size());
    first_pages_.clear();
    for (const Span* loan : loans_) first_pages_[loan] = loan->first_page;
  }

  int FileOf(PageId page) const { return source_->data_fd(ArenaOf(page)); }
  static off_t OffsetInFile(PageId page) {
    return static_cast<off_t>(Bytes(page - FirstPageOf(ArenaOf(page))));
  }
  // The first word of each page says whose it is, unless the holder never writes.
  void Mark(PageRange range) {
    for (PageId page = range.first; page < range.end(); ++page) {
      const uint64_t mark = ~page.value();
      ASSERT_EQ(pwrite(FileOf(page), &mark, sizeof(mark), OffsetInFile(page)), 8);
    }
  }
  void ExpectMarked(PageRange range) const {
    for (PageId page = range.first; page < range.end(); ++page) {
      uint64_t mark = 0;
      ASSERT_EQ(pread(FileOf(page), &mark, sizeof(mark), OffsetInFile(page)), 8);
      ASSERT_EQ(mark, ~page.value()) << "page " << page;
    }
  }

  void Granted(const absl::StatusOr<Span*>& span, bool write) {
    if (!span.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(span.status())) << span.status();
      return;
    }
    written_.Granted(**span);
    for (const Span* loan : loans_) {
      EXPECT_TRUE((*span)->range().end() <= loan->first_page ||
                  loan->range().end() <= (*span)->first_page);
    }
    loans_.push_back(*span);
    first_pages_[*span] = (*span)->first_page;
    if (write) {
      Mark((*span)->range());
      marked_[(*span)->first_page] = (*span)->range();
    }
  }
  void Return(size_t i, bool refer) {
    std::swap(loans_[i], loans_.back());
    Span* const span = loans_.back();
    loans_.pop_back();
    first_pages_.erase(span);
    marked_.erase(span->first_page);
    if (refer) states_.Refer(*span, span->blocks / 2);
    heap_->Return(span);
  }

  Written written_;
  FakeBlockStates states_;
  std::unique_ptr<MemfdArenaSource> source_;
  std::unique_ptr<Heap> heap_;
  std::vector<Span*> loans_;
  std::map<const Span*, PageId> first_pages_;  // of loans_, when those are gone
  std::map<PageId, PageRange> marked_;         // on loan, with contents
};

TEST_F(RestoreOverMemfds, AnyHeapGoesOnAsItWas) {
  const bool exact = KernelTells();
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 12; ++round) {
    for (int step = 0; step < 300; ++step) {
      const uint64_t choice = random() % 100;
      if (choice < 40) {
        const auto value = static_cast<uint8_t>(2 + random() % (kNumSpanClasses - 2));
        Granted(heap_->Grant(random() % 2 == 0 ? kClass64 : SpanClass::FromValue(value)),
                random() % 2 == 0);
      } else if (choice < 48) {
        const PageCount alignment(uint64_t{1} << random() % 8);
        Granted(heap_->GrantLarge(PageCount(1 + random() % 900), random() % 2 == 0, alignment),
                random() % 4 == 0);
      } else if (choice < 85) {
        if (!loans_.empty()) Return(random() % loans_.size(), /*refer=*/random() % 3 == 0);
      } else if (choice < 92) {
        // Something that is referred to in a listed span is no more.
        const auto it = written_.spans.lower_bound(PageId(random() % (3 * kPagesPerArena)));
        if (it != written_.spans.end() && it->second.place == Place::kListed) {
          const Span* const span = heap_->SpanOf(it->first);
          states_.Drop(it->first, span->blocks / 2);
        }
      } else if (choice < 94) {
        heap_->Sweep();
      } else if (choice < 96) {
        EXPECT_TRUE(heap_->Replenish().ok());
      } else if (choice < 98) {
        heap_->Trim();
      } else {
        heap_->SweepInBackground(4);
      }
    }
    for (const auto& [page, range] : marked_) ExpectMarked(range);
    heap_->CheckInvariants();
    const HeapStats before = heap_->stats();
    Restart();
    if (HasFatalFailure()) return;
    const HeapStats after = heap_->stats();
    if (exact) {
      ExpectSame(after, before);
    } else {
      EXPECT_EQ(after.reserved_bytes, before.reserved_bytes);
      EXPECT_EQ(after.on_loan_bytes, before.on_loan_bytes);
      EXPECT_EQ(after.in_lists_bytes, before.in_lists_bytes);
    }
    for (const auto& [page, range] : marked_) ExpectMarked(range);
  }
  while (!loans_.empty()) Return(loans_.size() - 1, /*refer=*/false);
  for (const SpanState& span : written_.All()) {
    states_.Drop(span.first_page, heap_->SpanOf(span.first_page)->blocks / 2);
  }
  heap_->Sweep();
  heap_->CheckInvariants();
  EXPECT_TRUE(written_.spans.empty());
  EXPECT_EQ(heap_->stats().on_loan_bytes + heap_->stats().in_lists_bytes, 0u);
  EXPECT_TRUE(heap_->GrantLarge(PageCount(kLimitBytes / kPageBytes), false).ok());
}

TEST_F(RestoreOverMemfds, MemoryTakenFromASpanIsThereAgainAndHalfPagesAreNot) {
  Granted(heap_->GrantLarge(PageCount(64), false), /*write=*/true);
  Granted(heap_->GrantLarge(PageCount(64), false), /*write=*/false);
  const PageId first = loans_[0]->first_page;
  const PageId second = loans_[1]->first_page;
  Return(1, /*refer=*/false);
  // By somebody who may write: half a page of the span, and half of one that is free.
  for (const PageId page : {first + PageCount(7), second + PageCount(9)}) {
    ASSERT_EQ(fallocate(FileOf(page), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        OffsetInFile(page), kPageBytes / 2),
              0);
  }
  Restart();
  const PageRanges backed = *source_->FindBacked(Pages(0, kPagesPerArena));
  EXPECT_TRUE(Minus({{first, PageCount(64)}}, backed).empty());
  EXPECT_EQ(heap_->stats().free_bytes + heap_->stats().on_loan_bytes, Bytes(CountPages(backed)));
  uint64_t mark = 1;
  ASSERT_EQ(pread(FileOf(first), &mark, sizeof(mark), OffsetInFile(first + PageCount(7))), 8);
  EXPECT_EQ(mark, 0u);
  ExpectMarked({first, PageCount(7)});
  ExpectMarked({first + PageCount(8), PageCount(56)});
}

// ---- What is restored

TEST(HeapRestore, NothingIsAHeapLikeAnyOther) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  ASSERT_TRUE(heap.Restore({}, {}).ok());
  EXPECT_EQ(heap.stats().reserved_bytes, 0u);
  EXPECT_TRUE(heap.Grant(kClass64).ok());
  heap.CheckInvariants();
}

TEST(HeapRestore, EverySpanHasTheShapeOfItsClassAndFreePagesAreGrantedLowestFirst) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  std::vector<SpanState> spans;
  uint64_t page = 3;
  for (uint8_t value = 2; value < kNumSpanClasses; ++value) {
    const SpanClass span_class = SpanClass::FromValue(value);
    const uint64_t pages = SpanPages(span_class.size_class()).value();
    spans.push_back(State(span_class, page, pages, Place::kOnLoan));
    page += pages + value % 2;
  }
  const absl::StatusOr<std::vector<Span*>> restored = heap.Restore(Arenas({0}), spans);
  ASSERT_TRUE(restored.ok()) << restored.status();
  for (size_t i = 0; i < spans.size(); ++i) {
    const Span& span = *(*restored)[i];
    EXPECT_EQ(span.span_class, spans[i].span_class);
    EXPECT_EQ(span.block_bytes, BlockBytes(span.span_class.size_class()));
    EXPECT_EQ(span.blocks, BlocksPerSpan(span.span_class.size_class()));
    EXPECT_EQ(span.in_use().size(), (span.blocks + 63) / 64);
  }
  heap.CheckInvariants();
  EXPECT_EQ((*heap.GrantLarge(PageCount(3), false))->first_page, PageId(0));
  heap.ReturnAll(*restored);
  heap.Trim();  // or pages may be in caches
  EXPECT_EQ((*heap.GrantLarge(PageCount(page - 3), false))->first_page, PageId(3));
  heap.CheckInvariants();
}

TEST(HeapRestore, ListedSpansCountAsFullUntilTheyAreSweptAndThenAreGranted) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kArenaBytes), &source, &states);
  for (const uint64_t page : {10, 20}) {
    Span span;
    span.first_page = PageId(page);
    for (uint32_t block = 0; block < (page == 10 ? 128u : 3u); ++block) states.Refer(span, block);
  }
  const std::vector<SpanState> spans{
      State(kClass64, 10, 1, Place::kListed),  // all of it in use
      State(kClass64, 20, 1, Place::kListed),  // three of its blocks
      State(kClass64, 30, 1, Place::kListed),  // none
      State(kLarge, 40, 9, Place::kListed),    // not in use
  };
  ASSERT_TRUE(heap.Restore(Arenas({0}), spans).ok());
  EXPECT_EQ(states.sweeps(), 0u);
  EXPECT_EQ(heap.stats().spans_in_lists, 4u);
  EXPECT_EQ(heap.stats().in_lists_bytes, 12 * kPageBytes);
  EXPECT_EQ(heap.stats().live_listed_blocks, 3 * 128 + 1u);
  heap.CheckInvariants();
  // The cycle that a background thread goes on with.
  while (heap.SweepInBackground(1)) {
  }
  EXPECT_EQ(heap.SpanOf(PageId(30)), nullptr);
  EXPECT_EQ(heap.SpanOf(PageId(40)), nullptr);
  EXPECT_EQ(heap.stats().live_listed_blocks, 131u);
  EXPECT_EQ(heap.stats().in_lists_bytes, 2 * kPageBytes);
  const Span* const span = *heap.Grant(kClass64);
  EXPECT_EQ(span->first_page, PageId(20));
  EXPECT_EQ(span->in_use()[0], 7u);
  EXPECT_NE((*heap.Grant(kClass64))->first_page, PageId(10));
  heap.CheckInvariants();
}

TEST(HeapRestore, AGrantSweepsListedSpansBeforeItTakesOne) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Heap heap(Limit(kArenaBytes), &source, &states);
  Span referred;
  referred.first_page = PageId(10);
  states.Refer(referred, 5);
  ASSERT_TRUE(heap.Restore(Arenas({0}), {State(kClass64, 10, 1, Place::kListed)}).ok());
  const Span* const span = *heap.Grant(kClass64);
  EXPECT_EQ(span->first_page, PageId(10));
  EXPECT_EQ(span->in_use()[0], uint64_t{1} << 5);
  EXPECT_EQ(states.sweeps(), 1u);
  heap.CheckInvariants();
}

TEST(HeapRestore, TheLimitCountsWhatIsRestored) {
  FaultyArenaSource source;
  Heap heap(Limit(100 * kPageBytes), &source, nullptr);
  absl::StatusOr<std::vector<Span*>> restored = heap.Restore(
      Arenas({0}), {State(kLarge, 0, 60, Place::kOnLoan), State(kLarge, 64, 39, Place::kOnLoan)});
  ASSERT_TRUE(restored.ok()) << restored.status();
  ASSERT_TRUE(heap.Grant(kClass8192).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(heap.Grant(kClass8192).status()));
  heap.Return((*restored)[0]);
  EXPECT_TRUE(heap.GrantLarge(PageCount(60), false).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(heap.Grant(kClass8192).status()));
  heap.CheckInvariants();
}

TEST(HeapRestore, SpansMayCrossArenasButNotHolesAndTheNextArenaComesAfterTheLast) {
  AnonymousArenaSource source(8);
  for (const uint32_t arena : {0, 1, 3}) ASSERT_TRUE(source.Create(ArenaIndex(arena)).ok());
  HeapOptions options = Limit(8 * kArenaBytes);
  options.max_arenas = 8;
  const uint64_t border = kPagesPerArena;
  {
    Heap heap(options, &source, nullptr);
    const absl::Status status =
        heap.Restore(Arenas({0, 1, 3}), {State(kLarge, 2 * border - 1, 2, Place::kOnLoan)})
            .status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
  Heap heap(options, &source, nullptr);
  ASSERT_TRUE(heap.Restore(Arenas({0, 1, 3}), {State(kLarge, border - 1, 2, Place::kOnLoan)}).ok());
  EXPECT_EQ(heap.stats().reserved_bytes, 3 * kArenaBytes);
  heap.CheckInvariants();
  // Three arenas in a row are free from the last on.
  EXPECT_EQ((*heap.GrantLarge(PageCount(3 * border), false))->first_page, PageId(3 * border));
  EXPECT_EQ(heap.stats().reserved_bytes, 5 * kArenaBytes);
  heap.CheckInvariants();
}

TEST(HeapRestore, FreePagesWithMemoryMayHoldAnythingAndThoseWithoutAreZero) {
  AnonymousArenaSource source(4);
  ASSERT_TRUE(source.Create(ArenaIndex(0)).ok());
  ASSERT_TRUE(source.Populate(Pages(0, 100)).ok());
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  ASSERT_TRUE(heap.Restore(Arenas({0}), {State(kClass64, 40, 1, Place::kOnLoan)}).ok());
  EXPECT_EQ(heap.stats().free_bytes, 99 * kPageBytes);
  EXPECT_TRUE((*heap.GrantLarge(PageCount(40), false))->needs_zero);
  EXPECT_TRUE((*heap.GrantLarge(PageCount(59), false))->needs_zero);
  const Span* const span = *heap.GrantLarge(PageCount(20), false);
  EXPECT_EQ(span->first_page, PageId(100));
  EXPECT_FALSE(span->needs_zero);
  heap.CheckInvariants();
}

TEST(HeapRestore, WhereMemoryCannotBeDiscardedNothingIsTrustedToBeZero) {
  AnonymousArenaSource real(4);
  ASSERT_TRUE(real.Create(ArenaIndex(0)).ok());
  FaultyArenaSource source(&real);
  source.FailCall(FaultyArenaSource::Call::kDiscard, 1);
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  ASSERT_TRUE(heap.Restore(Arenas({0}), {}).ok());
  EXPECT_TRUE((*heap.GrantLarge(PageCount(20), false))->needs_zero);
  heap.CheckInvariants();
}

// ---- Refusals

struct Refusal {
  const char* what;
  std::vector<ArenaIndex> arenas;
  std::vector<SpanState> spans;
  absl::StatusCode code;
  std::string says;
};

TEST(HeapRestore, WhatCannotBeIsRefusedByNameAndNothingHasChanged) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
  constexpr Place kLoan = Place::kOnLoan;
  SpanState no_class = State(kClass64, 0, 1, kLoan);
  no_class.span_class = SpanClass::FromValue(kNumSpanClasses);
  const uint64_t border = kPagesPerArena;
  const std::vector<Refusal> refusals = {
      {"arenas descend", Arenas({1, 0}), {}, kInvalid, "arena 0 comes after 1"},
      {"an arena twice", Arenas({0, 0}), {}, kInvalid, "arena 0 comes after 0"},
      {"no such arena", Arenas({0, kMaxArenas}), {}, kInvalid, "arena 4194304"},
      {"too many arenas", Arenas({0, 4}), {}, kPrecondition, "at most 4"},
      {"no such class", Arenas({0}), {no_class}, kInvalid, "no such class"},
      {"no page", Arenas({0}), {State(kLarge, 5, 0, kLoan)}, kInvalid, "no page"},
      {"not its class's pages",
       Arenas({0}),
       {State(kClass64, 5, 2, kLoan)},
       kInvalid,
       "2 pages and its class 1"},
      {"pages that cannot be",
       Arenas({0}),
       {State(kLarge, UINT64_MAX, 1, kLoan)},
       kInvalid,
       "no such pages"},
      {"a length that wraps",
       Arenas({0}),
       {State(kLarge, 1, UINT64_MAX, kLoan)},
       kInvalid,
       "no such pages"},
      {"beyond the arena",
       Arenas({0}),
       {State(kLarge, border - 1, 2, kLoan)},
       kInvalid,
       "pages 8191 to 8193: not all of its pages"},
      {"in no arena", Arenas({0, 2}), {State(kLarge, border, 1, kLoan)}, kInvalid, "not all"},
      {"no arena at all", {}, {State(kClass64, 0, 1, kLoan)}, kInvalid, "not all"},
      {"the same twice",
       Arenas({0}),
       {State(kClass64, 7, 1, kLoan), State(kClass64, 7, 1, Place::kListed)},
       kInvalid,
       "pages 7 to 8: it begins before"},
      {"one over another",
       Arenas({0}),
       {State(kLarge, 7, 4, kLoan), State(kLarge, 10, 4, Place::kListed)},
       kInvalid,
       "pages 10 to 14: it begins before"},
      {"spans descend",
       Arenas({0}),
       {State(kClass64, 9, 1, kLoan), State(kClass64, 8, 1, kLoan)},
       kInvalid,
       "ascend"},
      {"more than the limit",
       Arenas({0, 1}),
       {State(kLarge, 0, border, kLoan), State(kClass64, border, 1, Place::kListed)},
       kPrecondition,
       "the limit is 67108864"},
  };
  FaultyArenaSource source;
  HeapOptions options = Limit(kArenaBytes);
  options.max_arenas = 4;
  Heap heap(options, &source, nullptr);
  for (const Refusal& refusal : refusals) {
    const absl::Status status = heap.Restore(refusal.arenas, refusal.spans).status();
    EXPECT_EQ(status.code(), refusal.code) << refusal.what << ": " << status;
    EXPECT_NE(std::string(status.message()).find(refusal.says), std::string::npos)
        << refusal.what << ": " << status;
  }
  EXPECT_EQ(source.calls(FaultyArenaSource::Call::kFindBacked), 0u);
  EXPECT_EQ(heap.stats().reserved_bytes, 0u);
  heap.CheckInvariants();
  ASSERT_TRUE(heap.Restore(Arenas({0}), {State(kClass64, 8, 1, kLoan)}).ok());
  EXPECT_EQ(heap.Restore(Arenas({0}), {}).status().code(), kPrecondition) << "it is in use now";
  heap.CheckInvariants();
}

TEST(HeapRestore, AHeapThatWasUsedIsNotRestored) {
  FaultyArenaSource source;
  Heap heap(Limit(kArenaBytes), &source, nullptr);
  ASSERT_TRUE(heap.Grant(kClass64).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(heap.Restore(Arenas({1}), {}).status()));
  heap.CheckInvariants();
}

// ---- Faults

std::vector<SpanState> ManySpans() {
  std::vector<SpanState> spans;
  for (uint64_t page = 0; page < 600; page += 3) {
    spans.push_back(State(page % 2 == 0 ? kClass64 : SpanClass(SizeClass(1), true), page, 1,
                          page % 4 < 2 ? Place::kOnLoan : Place::kListed));
  }
  return spans;
}

TEST(HeapRestore, WithoutMemoryForRecordsItSaysSoAndSpansKeepTheirContents) {
  AnonymousArenaSource source(4);
  for (const uint32_t arena : {0, 1}) ASSERT_TRUE(source.Create(ArenaIndex(arena)).ok());
  ASSERT_TRUE(source.Populate(Pages(0, 700)).ok());
  const std::vector<SpanState> spans = ManySpans();
  for (const SpanState& span : spans) *source.At(OffsetOf(span.first_page)) = std::byte{0x5A};
  int failures = 0;
  for (int64_t allowed = 0;; ++allowed) {
    SCOPED_TRACE(testing::Message() << "calls that succeed: " << allowed);
    FailingMetadataSource metadata(allowed);
    HeapOptions options = Limit(2 * kArenaBytes);
    options.metadata = &metadata;
    Heap heap(options, &source, nullptr);
    const absl::Status status = heap.Restore(Arenas({0, 1}), spans).status();
    for (const SpanState& span : spans) {
      ASSERT_EQ(*source.At(OffsetOf(span.first_page)), std::byte{0x5A});
    }
    if (status.ok()) {
      heap.CheckInvariants();
      break;
    }
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    ASSERT_TRUE(metadata.hit());
    ++failures;
  }
  EXPECT_GE(failures, 10);
}

TEST(HeapRestore, WhereTheSourceFailsItSaysSo) {
  using Call = FaultyArenaSource::Call;
  for (const Call call : {Call::kFindBacked, Call::kPopulate}) {
    FaultyArenaSource source;
    source.FailCall(call, 1);
    const std::vector<SpanState> spans = ManySpans();
    {
      Heap heap(Limit(kArenaBytes), &source, nullptr);
      const absl::Status status = heap.Restore(Arenas({0}), spans).status();
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    }
    Heap heap(Limit(kArenaBytes), &source, nullptr);
    EXPECT_TRUE(heap.Restore(Arenas({0}), spans).ok());
    heap.CheckInvariants();
  }
}

// ---- The journal

// Asks the heap, from another thread, when it is told of something.
struct Inquirer : SpanJournal {
  void Listed(const Span& span) override {
    ++listed;
    EXPECT_GT(span.blocks_in_use, 0u);
    Inquire(span);
  }
  void Freed(const Span& span) override {
    ++freed;
    EXPECT_EQ(span.blocks_in_use, 0u);
    EXPECT_EQ(heap->SpanOf(span.first_page), &span);
    Inquire(span);
  }
  void Inquire(const Span& span) {
    std::thread([&] {
      for (const SpanClass span_class : {kClass64, kClass8192}) {
        const absl::StatusOr<Span*> other = heap->Grant(span_class);
        ASSERT_TRUE(other.ok()) << other.status();
        EXPECT_TRUE((*other)->range().end() <= span.first_page ||
                    span.range().end() <= (*other)->first_page);
      }
    }).join();
  }
  Heap* heap = nullptr;
  int listed = 0;
  int freed = 0;
};

TEST(SpanJournal, IsToldBeforeAnybodyElseCanHaveASpanOrItsPages) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Inquirer journal;
  HeapOptions options = Limit(kArenaBytes);
  options.journal = &journal;
  Heap heap(options, &source, &states);
  journal.heap = &heap;
  Span* const listed = *heap.Grant(kClass64);
  Span* const freed = *heap.Grant(kClass64);
  Span* const together = *heap.Grant(kClass8192);
  Span* const large = *heap.GrantLarge(PageCount(100), false);
  EXPECT_EQ(journal.listed + journal.freed, 0) << "grants are not told";
  states.Refer(*listed, 1);
  heap.Return(listed);
  EXPECT_EQ(journal.listed, 1);
  EXPECT_EQ(journal.freed, 0);
  heap.Return(freed);
  EXPECT_EQ(journal.freed, 1);
  heap.ReturnAll(std::vector<Span*>{together, large});
  EXPECT_EQ(journal.freed, 3);
  // The others keep the listed span out of the way.
  heap.Sweep();
  EXPECT_EQ(journal.listed, 1) << "a span that stays listed is not told again";
  heap.CheckInvariants();
}

TEST(SpanJournal, HearsOfSpansThatASweepFreesAndNotOfRuns) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Written journal;
  HeapOptions options = Limit(kArenaBytes);
  options.journal = &journal;
  Heap heap(options, &source, &states);
  const absl::StatusOr<PageRange> run = heap.runs()->Alloc(RunOrder(0));
  ASSERT_TRUE(run.ok());
  heap.runs()->Free(*run);
  Span* const span = *heap.Grant(kClass64);
  const PageId page = span->first_page;
  journal.Granted(*span);
  states.Refer(*span, 1);
  heap.Return(span);
  EXPECT_EQ(journal.spans.at(page).place, Place::kListed);
  heap.Sweep();
  EXPECT_EQ(journal.spans.at(page).place, Place::kListed);
  states.Drop(page, 1);
  heap.Sweep();
  EXPECT_TRUE(journal.spans.empty());
}

// One word a page, as a file of the heap's state would have it.
struct Words : SpanJournal {
  enum : uint8_t { kFree, kOnLoan, kListed };
  void Listed(const Span& span) override { Change(span, kListed, {kOnLoan}); }
  void Freed(const Span& span) override { Change(span, kFree, {kOnLoan, kListed}); }
  void Granted(const Span& span) { Change(span, kOnLoan, {kFree, kListed}); }
  void Change(const Span& span, uint8_t to, std::initializer_list<uint8_t> from) {
    const uint8_t before = words[span.first_page.value()].exchange(to, std::memory_order_relaxed);
    if (std::find(from.begin(), from.end(), before) == from.end()) wrong.fetch_add(1);
  }
  std::array<std::atomic<uint8_t>, kPagesPerArena> words{};
  std::atomic<int> wrong{0};
};

TEST(SpanJournal, ChangesOfAPageComeOneAfterAnotherWhateverThreadsMakeThem) {
  FaultyArenaSource source;
  FakeBlockStates states;
  Words journal;
  HeapOptions options = Limit(kArenaBytes / 16);
  options.max_arenas = 1;
  options.journal = &journal;
  Heap heap(options, &source, &states);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      std::vector<Span*> loans;
      for (int step = 0; step < 4000; ++step) {
        if (random() % 2 == 0) {
          const absl::StatusOr<Span*> span =
              random() % 8 == 0 ? heap.GrantLarge(PageCount(random() % 9 + 1), false)
                                : heap.Grant(random() % 2 ? kClass64 : kClass8192);
          if (!span.ok()) continue;
          journal.Granted(**span);
          loans.push_back(*span);
        } else if (!loans.empty()) {
          std::swap(loans[random() % loans.size()], loans.back());
          Span* const span = loans.back();
          loans.pop_back();
          const PageId page = span->first_page;
          const bool refer = !span->large() && random() % 2 == 0;
          if (refer) states.Refer(*span, 0);
          heap.Return(span);
          if (refer) states.Drop(page, 0);
        }
        if (random() % 64 == 0) heap.SweepInBackground(8);
      }
      heap.ReturnAll(loans);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(journal.wrong.load(), 0);
  heap.Sweep();
  heap.CheckInvariants();
  for (const std::atomic<uint8_t>& word : journal.words) ASSERT_EQ(word.load(), Words::kFree);
}

}  // namespace
}  // namespace spanpool

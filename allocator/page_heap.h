// The pages of one pool: its arenas, which pages spans own, and which have memory behind them.
//
// Makes spans out of free pages and turns them back. New arenas are created at the end of those
// there are, so that neighbours stay neighbours and a span may cross arenas. Memory is put behind
// pages before anybody is given them. Creating arenas, backing and discarding memory are slow
// kernel calls: they are made without the lock, on pages that the caller has taken and nobody else
// can touch.
//
// Where memory comes by larger units than pages (huge pages), all free pages of a unit count as
// backed once it has been taken, and it is discarded when all of it is free. Such units are a fixed
// stock: before a span is refused for want of one, free ones elsewhere in the pool are given up.
//
// Spans of up to 15 pages come out of one of a few page caches, each with a lock of its own, and go
// back there; threads are spread over them. What is in the caches is charged against the limit as
// if it were in use, and flushed before anything is refused; near the limit caches are not filled.
//
// Invariants
//  1. Pages of spans + free + scavenged = pages of all arenas, at every moment; pages that are
//     being backed or discarded count as what they were.
//  2. Pages of spans never exceed the limit.
//  3. Every page of a span has memory behind it.
//  4. Every page of a span in use maps to that span (arena_map.h).
//
// Thread-safe. Lock ranks: kPageCache, then kHeap, then kRecords.

#ifndef SPANPOOL_ALLOCATOR_PAGE_HEAP_H_
#define SPANPOOL_ALLOCATOR_PAGE_HEAP_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocator/arena_map.h"
#include "allocator/arena_source.h"
#include "allocator/lock_rank.h"
#include "allocator/metadata_source.h"
#include "allocator/page_alloc.h"
#include "allocator/page_cache.h"
#include "allocator/page_ranges.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/span_records.h"
#include "allocator/units.h"

namespace spanpool {

struct PageHeapOptions {
  uint64_t limit_bytes = 0;    // spans together never exceed this
  uint64_t reserve_bytes = 0;  // see Replenish
  uint32_t max_arenas = 0;     // at most kMaxArenas
  SpanJournal* journal = nullptr;
};

struct PageHeapStats {
  PageCount reserved;   // in arenas
  PageCount in_use;     // of spans
  PageCount free;       // backed
  PageCount scavenged;  // not backed
  uint64_t spans = 0;
};

class PageHeap {
 public:
  // `source`, `metadata` and the journal, which may be null, outlive the heap.
  PageHeap(const PageHeapOptions& options, ArenaSource* source, MetadataSource* metadata);
  PageHeap(const PageHeap&) = delete;
  PageHeap& operator=(const PageHeap&) = delete;

  // Takes over arenas and the spans in them, as Heap::Restore says. Returns the spans' records, all
  // of them on loan.
  absl::StatusOr<std::vector<Span*>> Restore(absl::Span<const ArenaIndex> arenas,
                                             absl::Span<const SpanState> spans)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Makes a span of `pages` >= 1 pages, the first a multiple of `alignment` (a power of two),
  // backed by memory and on loan; no block of it is in use. For a small span class, `pages` is that
  // of the class (CHECK).
  //   RESOURCE_EXHAUSTED  the limit is reached, there are no addresses left, or no memory
  absl::StatusOr<Span*> Allocate(SpanClass span_class, PageCount pages, PageCount alignment);

  // Turns a span that is in no set back into free pages. The caller owns it and must not touch it
  // afterwards.
  void Free(Span* span);
  // The same for many, in any order, which it changes: neighbours go back as one run, under one
  // lock, and past the caches. What it costs hangs on the runs rather than the spans.
  void FreeAll(absl::Span<Span*> spans);

  Span* SpanOf(PageId page) const { return map_.SpanOf(page); }
  ArenaMap& map() { return map_; }
  const ArenaMap& map() const { return map_; }

  // Backs free pages, lowest first, until `reserve_bytes` are free and backed, or what the limit
  // leaves. Creates arenas as needed.
  //   RESOURCE_EXHAUSTED  no memory or no addresses left
  absl::Status Replenish();

  // Memory given back at once: 2 MiB, aligned.
  static constexpr PageCount kDiscardRun{256};
  // Discards the highest free run of kDiscardRun pages that has memory. Returns how many of its
  // pages had; 0 if there is no such run, or the source failed.
  PageCount DiscardOne() ABSL_LOCKS_EXCLUDED(mu_);

  // Gives the pages of all caches back to the page allocator. Returns how many there were.
  PageCount FlushCaches() ABSL_LOCKS_EXCLUDED(mu_);

  // The most pages that were in use at once since the last call.
  PageCount TakePeak() ABSL_LOCKS_EXCLUDED(mu_);

  // Adds up at every moment. The number of spans may be off by those that are being made or freed.
  PageHeapStats stats() const ABSL_LOCKS_EXCLUDED(mu_);

  // Pages taken for spans since the heap began, given back or not.
  PageCount taken() const;
  // The arenas there are have indices below this; some may be holes.
  uint32_t arenas_end() const ABSL_LOCKS_EXCLUDED(mu_);

  uint64_t limit_bytes() const { return options_.limit_bytes; }
  // Null: there is none. Free tells it of spans that are freed.
  SpanJournal* journal() const { return options_.journal; }
  uint64_t metadata_bytes() const;

  // Calls f(span) for each span in use, lowest first. Concurrent calls must be excluded.
  template <typename F>
  void ForEachSpan(F f) const {
    const PageId end = FirstPageOf(ArenaIndex(arenas_end()));
    for (PageId page; page < end;) {
      const Span* const span = map_.SpanOf(page);
      if (span != nullptr) f(*span);
      page = page + (span != nullptr ? span->pages : PageCount(1));
    }
  }

  // Aborts unless the invariants hold. O(heap). Concurrent calls must be excluded.
  void CheckInvariants() const;

 private:
  PageHeapStats StatsLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Some threads' pages and records.
  struct alignas(ABSL_CACHELINE_SIZE) Shard {
    RankedMutex mu{LockRank::kPageCache};
    PageCache pages ABSL_GUARDED_BY(mu);
    SpanRecords::Cache records ABSL_GUARDED_BY(mu);
    // Pages in `pages`, for readers without `mu`.
    std::atomic<uint64_t> cached_pages{0};
    std::atomic<uint64_t> cached_scavenged{0};
    // Spans made minus spans freed by way of this shard.
    std::atomic<int64_t> spans{0};
    std::atomic<uint64_t> taken{0};

    void CountPages() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
      cached_pages.store(pages.pages().value(), std::memory_order_relaxed);
      cached_scavenged.store(pages.scavenged().value(), std::memory_order_relaxed);
    }
  };
  static constexpr size_t kShards = 8;
  static constexpr PageCount kMaxCached{kShards * 64};

  Shard& MyShard() const;
  // The first steps of freeing: nobody finds the span any more, and the journal knows.
  void Forget(Span* span);
  // Apart, so that returning costs the same where there is no journal.
  ABSL_ATTRIBUTE_NOINLINE void TellFreed(const Span& span);
  PageCount Cached() const;

  // Counts pages taken for spans or caches.
  void ChargeLocked(PageCount pages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  PageCount MovingLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return moving_scavenged_ + moving_backed_;
  }
  // Discards free memory until spans and free memory together, and what else would come when pages
  // of `range` are backed, do not exceed the limit, or no whole run is left.
  void DiscardExcess(PageRange range);

  // The steps of Restore. What cannot be, before anything is changed:
  absl::Status CheckRestorable(absl::Span<const ArenaIndex> arenas,
                               absl::Span<const SpanState> spans) const ABSL_LOCKS_EXCLUDED(mu_);
  // Memory behind all of `needed`, whole units in `there`, and behind none of the rest but what is
  // returned. All pages that may have been used are marked as such.
  absl::StatusOr<PageRanges> BackRestored(const PageRanges& there, const PageRanges& needed);
  // Records of arenas, and their pages, all of them free.
  absl::Status AddArenas(absl::Span<const ArenaIndex> arenas, const PageRanges& there)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::vector<Span*>> MakeRecords(absl::Span<const SpanState> spans);
  // Fills in a record that nobody finds yet; then everybody finds it.
  void Describe(Span* span, SpanClass span_class, PageRange range, bool needs_zero);

  // `range` in whole units of the source.
  PageRange WholeUnits(PageRange range) const;
  // Backs `range`, of which the caller has taken every page. If `dig`, other free memory is
  // discarded where there is no more. After a failure it is unknown which pages have memory.
  absl::Status Back(PageRange range, bool dig) ABSL_LOCKS_EXCLUDED(mu_);
  // Notes that all pages of a unit have memory. The caller has some of them, so that it cannot be
  // discarded meanwhile.
  void NoteBacked(PageRange unit) ABSL_LOCKS_EXCLUDED(mu_);
  // Frees the pages of a span that could not be backed.
  void GiveUp(PageRange range) ABSL_LOCKS_EXCLUDED(mu_);
  // The same for pages of a unit that others have part of.
  void GiveUpPart(PageRange part) ABSL_LOCKS_EXCLUDED(mu_);

  // A run out of the cache, which is filled if need be; nothing if that is not to be.
  std::optional<PageAlloc::Run> TakeCached(Shard& shard, PageCount pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu);
  // Takes pages, growing the heap and flushing the caches as needed.
  absl::StatusOr<PageAlloc::Run> Take(PageCount pages, PageCount alignment);
  // The same without flushing; the lock is released meanwhile.
  absl::StatusOr<PageAlloc::Run> TakeLocked(PageCount pages, PageCount alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Adds one arena, or waits until another thread has; the lock is released meanwhile.
  absl::Status GrowLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant.
  const PageHeapOptions options_;
  ArenaSource* const source_;
  const PageCount unit_;  // of the source

  // Thread-safe by themselves.
  mutable SpanRecords records_;
  ArenaMap map_;

  mutable std::array<Shard, kShards> shards_;

  mutable RankedMutex mu_{LockRank::kHeap};
  PageAlloc pages_ ABSL_GUARDED_BY(mu_);
  // Against the limit: pages of spans, of spans being made, and in caches.
  PageCount charged_ ABSL_GUARDED_BY(mu_);
  PageCount peak_ ABSL_GUARDED_BY(mu_);  // of charged_, see TakePeak
  // Taken from pages_ while memory is put behind them, or discarded: those without memory, and
  // those with. They count as free still.
  PageCount moving_scavenged_ ABSL_GUARDED_BY(mu_);
  PageCount moving_backed_ ABSL_GUARDED_BY(mu_);
  uint32_t arenas_ ABSL_GUARDED_BY(mu_) = 0;        // in pages_
  uint32_t next_arena_ ABSL_GUARDED_BY(mu_) = 0;    // where to grow next
  bool next_created_ ABSL_GUARDED_BY(mu_) = false;  // the source has it, our records failed
  bool growing_ ABSL_GUARDED_BY(mu_) = false;       // a thread creates next_arena_

  // Once memory could not be discarded, a page without memory may not be zero when it has it again.
  std::atomic<bool> scavenged_is_zero_{true};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_PAGE_HEAP_H_

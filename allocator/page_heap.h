// The pages of one pool: which arenas there are, which pages spans own, and how much memory that
// is.
//
// Makes spans out of free pages and turns them back. New arenas are created at the end of those
// there are, so that neighbours stay neighbours and a span may cross arenas. Memory is put behind
// pages before anybody is given them. Creating arenas, backing and discarding memory are slow
// kernel calls: they are made without the lock, on pages that the caller has taken and nobody else
// can touch.
//
// Invariants
//  1. Pages of spans + free + scavenged = pages of all arenas, at every moment (pages that are
//  being
//     backed or discarded count as what they were).
//  2. Pages of spans never exceed the limit.
//  3. Every page of a span has memory behind it.
//  4. Every page of a span in use maps to that span (arena_map.h).
//
// Thread-safe. Lock rank: kHeap.

#ifndef SPANPOOL_ALLOCATOR_PAGE_HEAP_H_
#define SPANPOOL_ALLOCATOR_PAGE_HEAP_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/arena_map.h"
#include "allocator/arena_source.h"
#include "allocator/lock_rank.h"
#include "allocator/metadata_source.h"
#include "allocator/page_alloc.h"
#include "allocator/span.h"
#include "allocator/span_records.h"
#include "allocator/units.h"

namespace spanpool {

struct PageHeapOptions {
  uint64_t limit_bytes = 0;    // spans together never exceed this
  uint64_t reserve_bytes = 0;  // see Replenish
  uint32_t max_arenas = 0;     // at most kMaxArenas
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
  // `source` and `metadata` outlive the heap.
  PageHeap(const PageHeapOptions& options, ArenaSource* source, MetadataSource* metadata);
  PageHeap(const PageHeap&) = delete;
  PageHeap& operator=(const PageHeap&) = delete;

  // Makes a span of `pages` >= 1 pages, the first a multiple of `alignment` (a power of two),
  // backed by memory and on loan; no block of it is in use. For a small span class, `pages` is that
  // of the class (CHECK).
  //   RESOURCE_EXHAUSTED  the limit is reached, there are no addresses left, or no memory
  absl::StatusOr<Span*> Allocate(SpanClass span_class, PageCount pages, PageCount alignment);

  // Turns a span that is in no set back into free pages. The caller owns it and must not touch it
  // afterwards.
  void Free(Span* span);

  Span* SpanOf(PageId page) const { return map_.SpanOf(page); }
  const ArenaMap& map() const { return map_; }

  // Backs free pages, lowest first, until `reserve_bytes` are free and backed, or what the limit
  // leaves. Creates arenas as needed.
  //   RESOURCE_EXHAUSTED  no memory or no addresses left
  absl::Status Replenish();

  // Calls `f` under the lock with statistics that add up. What `f` reads of spans elsewhere is then
  // no newer than that.
  template <typename F>
  void WithStats(F f) const ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    f(StatsLocked());
  }
  PageHeapStats stats() const;

  uint64_t limit_bytes() const { return options_.limit_bytes; }
  uint64_t metadata_bytes() const;

  // Aborts unless the invariants hold. O(heap). Concurrent calls must be excluded.
  void CheckInvariants() const;

 private:
  PageHeapStats StatsLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Takes pages, growing the heap as needed; the lock is released meanwhile.
  absl::StatusOr<PageAlloc::Run> TakeLocked(PageCount pages, PageCount alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Adds one arena, or waits until another thread has; the lock is released meanwhile.
  absl::Status GrowLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant.
  const PageHeapOptions options_;
  ArenaSource* const source_;

  // Thread-safe by themselves.
  SpanRecords records_;
  ArenaMap map_;

  mutable RankedMutex mu_{LockRank::kHeap};
  PageAlloc pages_ ABSL_GUARDED_BY(mu_);
  PageCount charged_ ABSL_GUARDED_BY(mu_);  // against the limit: spans, and those being made
  PageCount in_use_ ABSL_GUARDED_BY(mu_);   // taken from pages_ for spans
  // Taken from pages_ while memory is put behind them.
  PageCount backing_ ABSL_GUARDED_BY(mu_);
  uint64_t spans_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t arenas_ ABSL_GUARDED_BY(mu_) = 0;        // in pages_
  uint32_t next_arena_ ABSL_GUARDED_BY(mu_) = 0;    // where to grow next
  bool next_created_ ABSL_GUARDED_BY(mu_) = false;  // the source has it, our records failed
  bool growing_ ABSL_GUARDED_BY(mu_) = false;       // a thread creates next_arena_
  // Once memory could not be discarded, a page without memory may not be zero when it has it again.
  bool scavenged_is_zero_ ABSL_GUARDED_BY(mu_) = true;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_PAGE_HEAP_H_

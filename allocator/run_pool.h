// Runs of a power of two of pages, taken and given back explicitly: for the daemon's own buffers.
//
// A *run* of order k is 2^k pages, 8 to 64 KiB. Runs are cut from *manual* spans of 256 KiB, which
// no sweep looks at: what is handed out here is given back by hand or not at all. (Go keeps
// goroutine stacks so.) Larger buffers are spans of their own (GrantLarge).
//
//   RunPool   all manual spans; thread-safe. A span whose last run comes back is freed.
//   RunCache  one owner's runs in front of it; not thread-safe. An empty cache takes half of what
//             it may hold, a full one gives half back: taking and giving in turns stays in it.
//
// Which runs of a span are taken is a bitmap in the span: the memory itself is not touched.
//
// Invariants
//  1. A manual span is in the set of its order if and only if a run of it is free.
//  2. A manual span has a run taken; otherwise it is freed.
//
// Lock rank: kCentralList; not held while a span is made or freed.

#ifndef SPANPOOL_ALLOCATOR_RUN_POOL_H_
#define SPANPOOL_ALLOCATOR_RUN_POOL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "allocator/lock_rank.h"
#include "allocator/page_heap.h"
#include "allocator/span.h"
#include "allocator/span_set.h"
#include "allocator/units.h"

namespace spanpool {

using RunOrder = Unit<struct RunOrderTag, uint8_t>;

inline constexpr size_t kRunOrders = 4;
constexpr PageCount RunPages(RunOrder order) { return PageCount(uint64_t{1} << order.value()); }
// The smallest order with so many pages; kRunOrders if there is none.
RunOrder RunOrderFor(PageCount pages);

class RunPool {
 public:
  static constexpr PageCount kSpanPages{32};  // 256 KiB

  // `heap` outlives the pool.
  explicit RunPool(PageHeap* heap) : heap_(heap) {}
  // All runs have been given back (CHECK).
  ~RunPool();
  RunPool(const RunPool&) = delete;
  RunPool& operator=(const RunPool&) = delete;

  // Takes a run of `order` < kRunOrders (CHECK), backed by memory; its contents are anything.
  //   RESOURCE_EXHAUSTED  as PageHeap::Allocate
  absl::StatusOr<PageRange> Alloc(RunOrder order);
  // Gives it back. What was not taken, or is free already, is a bug of the caller (CHECK).
  void Free(PageRange run);

  PageCount taken() const;  // pages of runs handed out
  PageCount held() const;   // pages of manual spans
  // Concurrent calls must be excluded.
  void CheckInvariants() const;

 private:
  static uint64_t AllRuns(RunOrder order) {
    const uint64_t runs = kSpanPages.value() / RunPages(order).value();
    return (uint64_t{1} << runs) - 1;
  }
  // A free run of a span that has one, if there is such a span.
  bool TakeLocked(RunOrder order, PageRange* run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  PageRange TakeFromLocked(Span* span, RunOrder order) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  PageHeap* const heap_;

  mutable RankedMutex mu_{LockRank::kCentralList};
  std::array<SpanSet, kRunOrders> free_ ABSL_GUARDED_BY(mu_);
  PageCount taken_ ABSL_GUARDED_BY(mu_);
  PageCount held_ ABSL_GUARDED_BY(mu_);
};

class RunCache {
 public:
  // Of each order at most so much is kept.
  static constexpr uint64_t kCapacityBytes = 256 << 10;

  // `pool` outlives the cache.
  explicit RunCache(RunPool* pool) : pool_(pool) {}
  // Gives back what it holds.
  ~RunCache() { Flush(); }
  RunCache(const RunCache&) = delete;
  RunCache& operator=(const RunCache&) = delete;

  // As RunPool's.
  absl::StatusOr<PageRange> Alloc(RunOrder order);
  void Free(PageRange run);

  void Flush();
  size_t size(RunOrder order) const { return runs_[order.value()].size(); }

 private:
  static size_t Capacity(RunOrder order) { return kCapacityBytes / Bytes(RunPages(order)); }
  void ReleaseDownTo(RunOrder order, size_t size);

  RunPool* const pool_;
  std::array<std::vector<PageRange>, kRunOrders> runs_;  // last in, first out
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_RUN_POOL_H_

// Up to 64 neighbouring pages, taken from the page allocator at once and handed out one by one.
//
// Most page allocations are of one page. A cache serves them with a count-trailing-zeroes, without
// touching the page allocator or its lock; whoever owns the cache refills it under that lock. A
// refill takes *all* free pages of the first 64-page block that has any, so allocation stays
// ordered by address, if only roughly while caches are not empty. Pages of that block may come back
// to the cache in the same way, which Go's page cache does not do: Go frees in bulk, when it
// sweeps.
//
// Pages in a cache count as allocated in the page allocator; pages() and scavenged() say how many
// there are, for statistics that add up.
//
// Not thread-safe: one owner, or its lock. Refill and Flush need the page allocator's lock as well.

#ifndef SPANPOOL_ALLOCATOR_PAGE_CACHE_H_
#define SPANPOOL_ALLOCATOR_PAGE_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "allocator/page_alloc.h"
#include "allocator/units.h"

namespace spanpool {

class PageCache {
 public:
  // Longer runs are for the page allocator: a cache would rarely have them and be torn up by them.
  static constexpr size_t kMaxRun = 15;

  // The lowest run of 1 <= n <= kMaxRun pages in the cache. Nothing if there is none: Flush, Refill
  // and try again, or ask the page allocator.
  std::optional<PageAlloc::Run> Alloc(PageCount n);

  // Fills an empty cache (CHECK). False when the page allocator has nothing free.
  bool Refill(PageAlloc* pages);

  // Takes in pages that are allocated in the page allocator, backed, and their last owner's: true
  // if they lie in the cache's block (an empty cache adopts theirs). Else give them to the
  // allocator.
  bool Free(PageRange range);

  // Notes that these pages, whole blocks of 64 (CHECK), have memory behind them; some may be here.
  void ClearScavenged(PageRange range);

  // Gives everything back.
  void Flush(PageAlloc* pages);

  bool empty() const { return block_.pages == 0; }
  PageCount pages() const;
  PageCount scavenged() const;

  // Aborts unless the cache is sound and the page allocator holds its pages for allocated.
  void CheckInvariants(const PageAlloc& pages) const;

 private:
  PageAlloc::Block block_;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_PAGE_CACHE_H_

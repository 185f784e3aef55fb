// Finds whole free spans by their pages while a sweep goes on, for whoever needs pages now.
//
// Sweeping list by list frees pages sooner or later; who is about to take fresh pages wants some
// first. So the heap's arenas are also walked page by page: threads claim 64 pages at a time by
// moving one index, look at the bitmap of listed spans, and sweep those that nobody has swept yet.
// What is freed beyond what was wanted is kept as credit for the next.
//
// A span found here is still in its central list: it is owned by swapping its sweep generation,
// like any (span.h), and taken out of the middle of its set. (Go claims 512 pages and sweeps only
// spans without a mark. Here there are no marks and every listed span has to be looked at, so less
// is claimed at once, and the search ends when as many spans as there are pages wanted, and 100
// more, were swept: where hardly anything is free a grant must not pay for the whole heap.)
//
// Thread-safe; takes no lock itself.

#ifndef SPANPOOL_ALLOCATOR_PAGE_RECLAIMER_H_
#define SPANPOOL_ALLOCATOR_PAGE_RECLAIMER_H_

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "allocator/active_sweep.h"
#include "allocator/arena_map.h"
#include "allocator/central_list.h"
#include "allocator/units.h"

namespace spanpool {

class PageReclaimer {
 public:
  // `map` and `lists`, by span class, outlive the reclaimer.
  PageReclaimer(const ArenaMap* map, std::vector<CentralList*> lists)
      : map_(map), lists_(std::move(lists)) {}

  // A sweep with generation `generation` begins; `arenas` arenas exist. By its starter, before the
  // sweep is open.
  void Begin(uint64_t generation, uint32_t arenas);

  // Frees pages, `wanted` if so many are found soon. Returns how many were freed for this caller,
  // some of them perhaps earlier. `token` is a sweeper's.
  PageCount Reclaim(const ActiveSweep::Token& token, PageCount wanted);

  PageCount credit() const { return PageCount(credit_.load(std::memory_order_relaxed)); }

 private:
  static constexpr uint64_t kClaimPages = 64;
  // Spans that may be swept beyond one for each page wanted; what a claim holds is always finished.
  static constexpr uint64_t kSpareTries = 100;

  PageCount TakeCredit(PageCount wanted);
  // Sweeps what is found in one claim; adds to `swept` how many spans that was.
  PageCount ReclaimFrom(const ActiveSweep::Token& token, PageId first, uint64_t* swept);

  const ArenaMap* const map_;
  const std::vector<CentralList*> lists_;

  // Constant while a sweep goes on.
  uint64_t generation_ = 0;
  uint64_t end_ = 0;  // pages

  std::atomic<uint64_t> next_{0};    // the first page not claimed
  std::atomic<uint64_t> credit_{0};  // pages
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_PAGE_RECLAIMER_H_

// Sweeps the listed spans of a heap, in cycles.
//
// A cycle covers every span that is in a central list when it begins; spans on loan take no part.
// It begins only when the one before is done: nothing left to take, nobody at work
// (active_sweep.h). Any thread may help: each SweepOne takes one span, full ones first, for they
// yield most. Whoever takes fresh pages must help, in proportion (sweep_pacer.h), and may look for
// pages to free first (page_reclaimer.h).
//
// Thread-safe; takes no lock itself.

#ifndef SPANPOOL_ALLOCATOR_SWEEPER_H_
#define SPANPOOL_ALLOCATOR_SWEEPER_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "allocator/active_sweep.h"
#include "allocator/central_list.h"
#include "allocator/page_heap.h"
#include "allocator/page_reclaimer.h"
#include "allocator/span.h"
#include "allocator/sweep_pacer.h"
#include "allocator/units.h"

namespace spanpool {

class Sweeper {
 public:
  // `heap` and `lists`, by span class, outlive the sweeper.
  Sweeper(PageHeap* heap, const std::vector<CentralList*>& lists)
      : heap_(heap), lists_(lists), reclaimer_(&heap->map(), lists) {}

  // Begins a cycle; false, and nothing is done, while one is going on.
  bool BeginCycle();

  // Sweeps one span of the cycle that is going on; nothing if none is left.
  std::optional<CentralList::Swept> SweepOne();

  // Finishes the cycle that is going on, if one is, then runs another to its end. Returns the pages
  // that this thread freed.
  PageCount SweepAll();

  // Whether enough fresh pages were taken since the last cycle began, and something is listed, to
  // make another worth it.
  bool CycleDue() const;

  // Before `pages` fresh pages are taken: sweeps the caller's share of the cycle that is going on,
  // if one is, and tries to free as many pages.
  void PayFor(PageCount pages);

  ActiveSweep* active() { return &active_; }
  bool done() const { return active_.done(); }
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

 private:
  PageHeap* const heap_;
  const std::vector<CentralList*> lists_;
  ActiveSweep active_;
  SweepPacer pacer_;
  PageReclaimer reclaimer_;
  // Of all lists; advances last when a cycle begins.
  std::atomic<uint64_t> generation_{Span::kFirstGeneration};
  // Lists × {full, partial} that are known to have nothing unswept come before it.
  std::atomic<size_t> cursor_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SWEEPER_H_

// When the next sweep is due, and how far the current one should have got.
//
// Listed spans hold blocks that others may have freed; not sweeping them costs fresh memory,
// sweeping them too often costs time. So both are tied together: after a sweep of L listed pages
// the next is due when L fresh pages have been taken (at least kMinDistance), which bounds what
// lies unswept to about what is listed, and what sweeping costs to a page swept for each page
// taken. While a sweep goes on, whoever takes fresh pages first sweeps in proportion, so that it is
// over in time even if no background thread gets to run (Go's proportional sweep).
//
//   pages swept
//        L |           /------     slope = L / distance
//          |        /
//          |     /
//          +---------------- pages taken since it began
//                     distance
//
// Begin is called before the sweep is open, and the rest while it goes on or is done: the values do
// not change meanwhile. They are atomic only because Due may be asked at any time, for a guess.

#ifndef SPANPOOL_ALLOCATOR_SWEEP_PACER_H_
#define SPANPOOL_ALLOCATOR_SWEEP_PACER_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "allocator/units.h"

namespace spanpool {

class SweepPacer {
 public:
  static constexpr PageCount kMinDistance{512};  // 4 MiB

  // A sweep of `listed` pages begins when `taken` pages have been taken since the heap began.
  void Begin(PageCount listed, PageCount taken) {
    listed_.store(listed.value(), std::memory_order_relaxed);
    distance_.store(std::max(listed, kMinDistance).value(), std::memory_order_relaxed);
    basis_.store(taken.value(), std::memory_order_relaxed);
  }

  // How many pages ought to have been swept before the next `wanted` are taken.
  PageCount Owed(PageCount taken, PageCount wanted) const {
    const uint64_t distance = distance_.load(std::memory_order_relaxed);
    const uint64_t listed = listed_.load(std::memory_order_relaxed);
    const uint64_t gone = std::min(Since(taken) + wanted.value(), distance);
    // Both are pages of a pool, below 2^35: their product may not fit.
    return PageCount(static_cast<uint64_t>(
        (static_cast<unsigned __int128>(listed) * gone + distance - 1) / distance));
  }

  // Whether, with `taken` pages taken, it is time for the next sweep.
  bool Due(PageCount taken) const {
    return Since(taken) >= distance_.load(std::memory_order_relaxed);
  }

 private:
  // Counts of several threads' pages may be read a little out of order.
  uint64_t Since(PageCount taken) const {
    const uint64_t basis = basis_.load(std::memory_order_relaxed);
    return taken.value() > basis ? taken.value() - basis : 0;
  }

  std::atomic<uint64_t> listed_{0};
  std::atomic<uint64_t> distance_{kMinDistance.value()};
  std::atomic<uint64_t> basis_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SWEEP_PACER_H_

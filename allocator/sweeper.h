// Sweeps the listed spans of a heap, in cycles.
//
// A cycle covers every span that is in a central list when it begins; spans on loan take no part.
// It begins only when the one before is done: nothing left to take, nobody at work
// (active_sweep.h). Any thread may help: each SweepOne takes one span, full ones first, for they
// yield most.
//
// Thread-safe; takes no lock itself.

#ifndef SPANPOOL_ALLOCATOR_SWEEPER_H_
#define SPANPOOL_ALLOCATOR_SWEEPER_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "allocator/active_sweep.h"
#include "allocator/central_list.h"
#include "allocator/units.h"

namespace spanpool {

class Sweeper {
 public:
  // `lists` outlive the sweeper.
  explicit Sweeper(absl::Span<CentralList* const> lists) : lists_(lists.begin(), lists.end()) {}

  // Begins a cycle; false, and nothing is done, while one is going on.
  bool BeginCycle();

  // Sweeps one span of the cycle that is going on; nothing if none is left.
  std::optional<CentralList::Swept> SweepOne();

  // Finishes the cycle that is going on, if one is, then runs another to its end. Returns the pages
  // that this thread freed.
  PageCount SweepAll();

  ActiveSweep* active() { return &active_; }
  bool done() const { return active_.done(); }
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

 private:
  const std::vector<CentralList*> lists_;
  ActiveSweep active_;
  // Of all lists; advances last when a cycle begins.
  std::atomic<uint64_t> generation_{Span::kFirstGeneration};
  // Lists × {full, partial} that are known to have nothing unswept come before it.
  std::atomic<size_t> cursor_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SWEEPER_H_

// Gives memory back to the system that the heap is unlikely to need again soon.
//
// Free memory is kept up to a goal: a tenth of the most that was recently in use, or the pool's
// reserve, whichever is more. Above that it is discarded in whole, aligned 2 MiB runs, highest
// addresses first: pages are granted lowest first, so the highest are the least likely to be
// wanted. A discarded page is free still; it is backed again before it is granted.
//
// It works slowly on purpose. Discarding costs a quarter of a millisecond per run here, and backing
// ten times that; so a step takes one run and asks to be let sleep for a hundred times as long as
// it took. Sleeps that last longer than they should, as they do on busy machines, are made up for:
// the fraction of time really spent is averaged, and the next sleep scaled by how far it is off
// (Go's scavenger, but for its smallest fraction, which an integer division made 0).
//
// Step and goal are for one background thread; Trim is for any.

#ifndef SPANPOOL_ALLOCATOR_SCAVENGER_H_
#define SPANPOOL_ALLOCATOR_SCAVENGER_H_

#include <atomic>
#include <cstdint>
#include <functional>

#include "absl/time/time.h"
#include "allocator/page_heap.h"
#include "allocator/units.h"

namespace spanpool {

class Scavenger {
 public:
  static constexpr double kCpuFraction = 0.01;
  static constexpr uint64_t kPeakDivisor = 10;
  // "Recently": in this window or the one before.
  static constexpr absl::Duration kPeakWindow = absl::Seconds(30);
  // How long to sleep when there is nothing to give back.
  static constexpr absl::Duration kIdle = absl::Seconds(1);

  // Nanoseconds of a clock that only advances; null: the system's.
  using Clock = std::function<int64_t()>;

  // `heap` outlives the scavenger.
  Scavenger(PageHeap* heap, uint64_t reserve_bytes, Clock clock = nullptr);

  // Gives one run back if there is more than the goal. Returns how long to sleep before the next.
  absl::Duration Step();

  // Gives back at once what whole runs there are above the reserve. Returns how much.
  PageCount Trim();

  // How much free memory is kept for now.
  PageCount goal() const { return PageCount(goal_.load(std::memory_order_relaxed)); }

 private:
  void UpdateGoal(int64_t now);
  absl::Duration SleepFor(int64_t worked, int64_t now);

  // Constant.
  PageHeap* const heap_;
  const PageCount reserve_;
  const Clock clock_;

  // The background thread's own.
  int64_t window_began_;
  PageCount last_peak_;             // of the window before
  PageCount peak_;                  // of this window
  int64_t last_work_ = 0;           // what the last step took, 0 = it was idle
  int64_t last_ended_ = 0;          // when
  double fraction_ = kCpuFraction;  // of time spent, averaged

  std::atomic<uint64_t> goal_;  // pages
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SCAVENGER_H_

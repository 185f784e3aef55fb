#include "allocator/scavenger.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace spanpool {
namespace {

int64_t SteadyNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// A step that was interrupted for long tells nothing about what it cost.
constexpr int64_t kMaxWork = 10'000'000;
// If the clock did not move, a run took less than its tick; assume what one costs.
constexpr int64_t kAssumedWork = 250'000;

}  // namespace

Scavenger::Scavenger(PageHeap* heap, uint64_t reserve_bytes, Clock clock)
    : heap_(heap),
      reserve_(reserve_bytes / kPageBytes),
      clock_(clock ? std::move(clock) : Clock(SteadyNanos)),
      window_began_(clock_()),
      goal_(reserve_.value()) {}

absl::Duration Scavenger::Step() {
  const int64_t began = clock_();
  UpdateGoal(began);
  // Never below the goal: what is taken here must not be what Replenish puts back.
  if (heap_->stats().free < goal() + PageHeap::kDiscardRun || heap_->DiscardOne() == PageCount(0)) {
    last_work_ = 0;
    return kIdle;
  }
  const int64_t ended = clock_();
  const int64_t work = ended > began ? std::min(ended - began, kMaxWork) : kAssumedWork;
  return SleepFor(work, ended);
}

void Scavenger::UpdateGoal(int64_t now) {
  peak_ = std::max(peak_, heap_->TakePeak());
  if (now - window_began_ >= absl::ToInt64Nanoseconds(kPeakWindow)) {
    window_began_ = now;
    last_peak_ = peak_;
    peak_ = PageCount(0);
  }
  const PageCount recent = std::max(peak_, last_peak_);
  goal_.store(std::max(recent.value() / kPeakDivisor, reserve_.value()), std::memory_order_relaxed);
}

absl::Duration Scavenger::SleepFor(int64_t work, int64_t now) {
  if (last_work_ != 0) {
    const double period =
        static_cast<double>(last_work_ + std::max<int64_t>(now - work - last_ended_, 0));
    const double spent = static_cast<double>(last_work_) / period;
    fraction_ = 0.5 * spent + 0.5 * fraction_;
  }
  last_work_ = work;
  last_ended_ = now;
  return absl::Nanoseconds(static_cast<double>(work) / kCpuFraction * (fraction_ / kCpuFraction));
}

PageCount Scavenger::Trim() {
  heap_->FlushCaches();
  PageCount trimmed;
  while (heap_->stats().free >= reserve_ + PageHeap::kDiscardRun) {
    const PageCount pages = heap_->DiscardOne();
    if (pages == PageCount(0)) break;
    trimmed += pages;
  }
  return trimmed;
}

}  // namespace spanpool

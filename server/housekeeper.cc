#include "server/housekeeper.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "allocator/heap.h"

namespace spanpool {

Housekeeper::Housekeeper(std::vector<Pool*> pools) {
  {
    RankedMutexLock lock(&mu_);
    for (size_t i = 0; i < pools.size(); ++i) {
      chores_.push_back({.pool = pools[i]});
      pools[i]->SetWorkCallback([this, i](Pool::Work work) { Note(i, work); });
    }
  }
  thread_ = std::thread([this] { Run(); });
}

Housekeeper::~Housekeeper() {
  {
    RankedMutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void Housekeeper::Note(size_t chore, Pool::Work work) {
  RankedMutexLock lock(&mu_);
  Chore& noted = chores_[chore];
  if (work == Pool::Work::kReplenish) {
    noted.replenish = true;
  } else {
    noted.listed = true;
    // Otherwise one is due anyway.
    if (noted.sweep_at == absl::InfiniteFuture()) noted.sweep = true;
  }
}

bool Housekeeper::HasNews() const {
  return stopping_ || std::any_of(chores_.begin(), chores_.end(), [](const Chore& chore) {
           return chore.replenish || chore.sweep;
         });
}

void Housekeeper::Run() {
  for (;;) {
    std::vector<Pool*> replenish, sweep, scavenge;
    {
      RankedMutexLock lock(&mu_);
      absl::Time next = absl::InfiniteFuture();
      for (const Chore& chore : chores_) {
        next = std::min({next, chore.replenish_at, chore.sweep_at, chore.scavenge_at});
      }
      mu_.AwaitWithDeadline(absl::Condition(this, &Housekeeper::HasNews), next);
      if (stopping_) return;
      const absl::Time now = absl::Now();
      for (Chore& chore : chores_) {
        if (chore.replenish || chore.replenish_at <= now) {
          replenish.push_back(chore.pool);
          chore.replenish = false;
          chore.replenish_at = absl::InfiniteFuture();
        }
        if (chore.sweep) {  // first seen: look again soon
          chore.sweep = false;
          chore.sweep_interval = kMinSweepInterval;
          chore.sweep_at = now + kMinSweepInterval;
        } else if (chore.sweep_at <= now) {
          chore.listed = false;
          sweep.push_back(chore.pool);
        }
        if (chore.scavenge_at <= now) scavenge.push_back(chore.pool);
      }
    }
    for (Pool* pool : replenish) {
      const absl::Status status = pool->Replenish();
      if (status.ok() || absl::IsCancelled(status)) continue;
      uint64_t suppressed = 0;
      if (replenish_log_.Allow(absl::Now(), &suppressed)) {
        Log().warn("pool {}: no memory kept ready ahead of demand: {}", pool->name(),
                   std::string(status.message()));
      }
      RankedMutexLock lock(&mu_);
      for (Chore& chore : chores_) {
        if (chore.pool == pool) chore.replenish_at = absl::Now() + kRetryInterval;
      }
    }
    for (Pool* pool : sweep) {
      const HeapStats before = pool->heap().stats();
      pool->Sweep();
      const HeapStats after = pool->heap().stats();
      const bool found = after.live_listed_blocks < before.live_listed_blocks ||
                         after.spans_in_lists < before.spans_in_lists;
      RankedMutexLock lock(&mu_);
      for (Chore& chore : chores_) {
        if (chore.pool != pool) continue;
        chore.sweep_interval =
            found ? kMinSweepInterval : std::min(chore.sweep_interval * 2, kMaxSweepInterval);
        chore.sweep_at = after.spans_in_lists == 0 && !chore.listed
                             ? absl::InfiniteFuture()
                             : absl::Now() + chore.sweep_interval;
      }
    }
    for (Pool* pool : scavenge) {
      const absl::Duration sleep = pool->Scavenge();
      RankedMutexLock lock(&mu_);
      for (Chore& chore : chores_) {
        if (chore.pool == pool) chore.scavenge_at = absl::Now() + sleep;
      }
    }
  }
}

}  // namespace spanpool

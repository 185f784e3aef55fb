// Spans that must not be used again, because a block word of theirs made no sense.
//
// A word can be written by any member of the pool, so nobody can be blamed for it; but as the count
// in it is not known to be right, its block might still be in somebody's use. The span is given up
// until the daemon ends: for the heap all its blocks are in use, whatever their words say.
//
// With a PoolState that is on record, for the next worker.
//
// What is remembered is the page, so that however many words are written over it costs little.
//
// Thread-safe.

#ifndef SPANPOOL_SERVER_QUARANTINE_H_
#define SPANPOOL_SERVER_QUARANTINE_H_

#include <atomic>
#include <cstdint>
#include <set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "server/pool_state.h"

namespace spanpool {

class Quarantine {
 public:
  // `state` may be null, and outlives this object.
  explicit Quarantine(PoolState* state = nullptr) : state_(state) {
    if (state == nullptr) return;
    const std::vector<PageId> pages = state->Quarantined();
    pages_.insert(pages.begin(), pages.end());
    size_.store(pages_.size(), std::memory_order_relaxed);
  }

  // The span that `granule` is in is given up. False: it was, for a block of this page.
  bool Add(GranuleId granule) ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    if (!pages_.insert(PageOf(granule)).second) return false;
    if (state_ != nullptr) state_->RecordQuarantine(PageOf(granule));
    // release: pairs with the acquire in Touches.
    size_.store(pages_.size(), std::memory_order_release);
    return true;
  }

  bool Touches(PageRange pages) const ABSL_LOCKS_EXCLUDED(mu_) {
    if (size_.load(std::memory_order_acquire) == 0) return false;
    RankedMutexLock lock(&mu_);
    const auto next = pages_.lower_bound(pages.first);
    return next != pages_.end() && *next < pages.end();
  }

  // Pages that a block of such a word begins in.
  uint64_t size() const { return size_.load(std::memory_order_relaxed); }

 private:
  PoolState* const state_;
  mutable RankedMutex mu_{LockRank::kLeaf};
  std::set<PageId> pages_ ABSL_GUARDED_BY(mu_);
  std::atomic<uint64_t> size_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_QUARANTINE_H_

// Spans that must not be used again, because a block word of theirs made no sense.
//
// A word can be written by any member of the pool, so nobody can be blamed for it; but as the count
// in it is not known to be right, its block might still be in somebody's use. The span is given up
// until the daemon ends: for the heap all its blocks are in use, whatever their words say.
//
// Thread-safe.

#ifndef SPANPOOL_SERVER_QUARANTINE_H_
#define SPANPOOL_SERVER_QUARANTINE_H_

#include <atomic>
#include <cstdint>
#include <set>

#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"

namespace spanpool {

class Quarantine {
 public:
  // The span that `granule` is in is given up. False: it was, for this granule.
  bool Add(GranuleId granule) ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    if (!granules_.insert(granule).second) return false;
    // release: pairs with the acquire in Touches.
    size_.store(granules_.size(), std::memory_order_release);
    return true;
  }

  bool Touches(PageRange pages) const ABSL_LOCKS_EXCLUDED(mu_) {
    if (size_.load(std::memory_order_acquire) == 0) return false;
    RankedMutexLock lock(&mu_);
    const auto next = granules_.lower_bound(GranuleOf(pages.first));
    return next != granules_.end() && *next < GranuleOf(pages.end());
  }

  uint64_t size() const { return size_.load(std::memory_order_relaxed); }

 private:
  mutable RankedMutex mu_{LockRank::kLeaf};
  std::set<GranuleId> granules_ ABSL_GUARDED_BY(mu_);
  std::atomic<uint64_t> size_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_QUARANTINE_H_

// Block states that a test sets by hand: who refers to which block.
//
// Thread-safe.

#ifndef SPANPOOL_ALLOCATOR_FAKE_BLOCK_STATES_H_
#define SPANPOOL_ALLOCATOR_FAKE_BLOCK_STATES_H_

#include <atomic>
#include <cstdint>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"
#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool {

class FakeBlockStates : public BlockStates {
 public:
  // Somebody refers to the block; lasts until Drop.
  void Refer(const Span& span, uint32_t block) {
    RankedMutexLock lock(&mu_);
    referred_.insert({span.first_page, block});
  }
  // The last reference goes; the next sweep of the span collects the block.
  void Drop(PageId first_page, uint32_t block) {
    RankedMutexLock lock(&mu_);
    referred_.erase({first_page, block});
  }
  bool Refers(PageId first_page, uint32_t block) const {
    RankedMutexLock lock(&mu_);
    return referred_.contains({first_page, block});
  }
  uint64_t sweeps() const { return sweeps_.load(std::memory_order_relaxed); }

  uint32_t Sweep(const Span& span, absl::Span<uint64_t> in_use) override {
    sweeps_.fetch_add(1, std::memory_order_relaxed);
    uint32_t count = 0;
    RankedMutexLock lock(&mu_);
    for (auto it = referred_.lower_bound({span.first_page, 0});
         it != referred_.end() && it->first == span.first_page; ++it) {
      in_use[it->second / 64] |= uint64_t{1} << (it->second % 64);
      ++count;
    }
    return count;
  }

 private:
  mutable RankedMutex mu_{LockRank::kLeaf};
  std::set<std::pair<PageId, uint32_t>> referred_ ABSL_GUARDED_BY(mu_);
  std::atomic<uint64_t> sweeps_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_FAKE_BLOCK_STATES_H_

// The free slots of the session segment, by thread.
//
// A slot is taken with every reference and given back with its end, so this is on the path of each
// hand-over. Each thread keeps a stock of up to 64 free slots, which it takes from and gives to
// without a lock or an atomic instruction; what is above or below goes to the session's list, half
// a stock at a time. A slot may be given back by another thread than took it.
//
// The stock is also where a thread counts what it did, and the session's owners: each Buffer that a
// thread makes is one more in its stock, each that it ends one less, so that threads which use one
// session write to no line in common. Only the sum over all threads means anything, and only when
// the session is about to end does anybody want it: GatherOwners() takes it, once, and from then on
// the session counts by itself. A thread says in its stock that it is counting, then looks whether
// the sum was taken; who takes it says so, has every thread pass a fence (asymmetric_fence.h), and
// waits for those that are in the middle of counting, a few instructions long.
//
// Life
//  * A thread's end returns its stock. Its counts stay.
//  * A session's end leaves its stocks behind in the threads; each is known by a number that is
//    never used again, and what it points at is not looked at.
//  * After a thread's thread-local objects are destroyed a stock may still be used: it is returned
//    by a later round of the destructors of POSIX keys.
//  * In a forked child all stocks of the parent are forgotten.
//
// Thread-safe. Locks: the registry (kSlotStocks), one for the process, taken when a thread first
// uses a session and when it ends; a leaf for the session's list.

#ifndef SPANPOOL_CLIENT_SLOT_STOCKS_H_
#define SPANPOOL_CLIENT_SLOT_STOCKS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"
#include "client/asymmetric_fence.h"
#include "proto/layout/session_segment.h"
#include "spanpool/thread_cache.h"

namespace spanpool::internal {

class SlotStocks {
 public:
  static constexpr uint32_t kNoSlot = UINT32_MAX;

  // What threads did, in all.
  struct Counts {
    uint64_t shares = 0;
    uint64_t opens = 0;
    uint64_t releases = 0;
    uint64_t sends = 0;
  };

  // One thread's. Its counts are written by the thread alone and read by anyone.
  class Stock {
   public:
    // A slot can be taken, or given back, without the session's list.
    bool can_take() const { return size_ != 0; }
    bool can_give() const { return size_ != kMost; }

    void CountShare() { CountOne(&shares_); }
    void CountOpen() { CountOne(&opens_); }
    void CountRelease() { CountOne(&releases_); }
    void CountSend() { CountOne(&sends_); }

   private:
    friend class SlotStocks;
    static constexpr uint32_t kMost = 64;

    uint32_t size_ = 0;
    // Owners that were made less owners that ended, times 2; plus 1 while the thread is counting.
    std::atomic<int64_t> owners_{0};
    // Counted by CountOne, read by anyone with ReadCount.
    uint64_t shares_ = 0;
    uint64_t opens_ = 0;
    uint64_t releases_ = 0;
    uint64_t sends_ = 0;
    uint32_t slots_[kMost];
  };

  // `segment` is mapped for writing and outlives this; `capacity` slots of it may be used.
  SlotStocks(layout::SessionSegment* segment, uint32_t capacity);
  ~SlotStocks();
  SlotStocks(const SlotStocks&) = delete;
  SlotStocks& operator=(const SlotStocks&) = delete;

  // The calling thread's stock.
  Stock& Mine() {
    const Known& known = known_stocks.of[0];
    if (ABSL_PREDICT_TRUE(known.id == id_)) return *known.stock;
    return FindMine();
  }
  // The same, if the thread used no other session since; otherwise null. In a forked child the
  // parent's sessions have none.
  Stock* MineAtHand() {
    const Known& known = known_stocks.of[0];
    if (ABSL_PREDICT_FALSE(known.id != id_)) return nullptr;
    if (known.stock == nullptr) __builtin_unreachable();  // spares the caller's test
    return known.stock;
  }

  // A slot that is FREE, from now on the caller's; kNoSlot if all are in use.
  uint32_t Take(Stock& mine) {
    if (ABSL_PREDICT_FALSE(!mine.can_take()) && !Refill(mine)) return kNoSlot;
    return TakeAtHand(mine);
  }
  // Requires mine.can_take().
  static uint32_t TakeAtHand(Stock& mine) { return mine.slots_[--mine.size_]; }
  // Gives back a slot whose word is FREE.
  void Give(Stock& mine, uint32_t slot) {
    if (ABSL_PREDICT_FALSE(!mine.can_give())) Empty(mine, Stock::kMost / 2);
    GiveAtHand(mine, slot);
  }
  // Requires mine.can_give().
  static void GiveAtHand(Stock& mine, uint32_t slot) { mine.slots_[mine.size_++] = slot; }

  // Counts an owner that was made or has ended, for the calling thread, which is one until this
  // returns; after that nothing of `mine` is touched. False, and nothing was counted:
  // GatherOwners() was called.
  bool CountOwnerMade(Stock& mine) { return CountOwner(mine, 1); }
  bool CountOwnerEnded(Stock& mine) { return CountOwner(mine, -1); }
  // How many owners were counted by all threads; from the second call on, 0.
  int64_t GatherOwners() ABSL_LOCKS_EXCLUDED(mu_);

  Counts counts() ABSL_LOCKS_EXCLUDED(mu_);
  // Slots that were ever taken are below this.
  uint32_t slots_used() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend struct SlotStocksRegistry;
  struct Known {
    uint64_t id = 0;  // of the session's stocks; 0 = none
    Stock* stock = nullptr;
  };
  // The stocks of the sessions that the thread used last. Trivially destructible: it can be used
  // for as long as the thread runs.
  struct KnownStocks {
    Known of[4];
  };
  static constinit thread_local KnownStocks known_stocks __attribute__((tls_model("initial-exec")));

  Stock& FindMine();
  bool CountOwner(Stock& mine, int64_t change) {
    // relaxed: one writer.
    const int64_t owners = mine.owners_.load(std::memory_order_relaxed);
    mine.owners_.store(owners + 1, kFencedStore);
    LightFence();
    // Where threads cannot be fenced this is so from the start.
    const bool counts = !gathered_.load(kFencedLoad);
    // release: pairs with the acquire in GatherOwners; the stock is not touched after.
    mine.owners_.store(owners + (ABSL_PREDICT_TRUE(counts) ? 2 * change : 0),
                       std::memory_order_release);
    return counts;
  }
  bool Refill(Stock& mine) ABSL_LOCKS_EXCLUDED(mu_);
  // Moves all but `keep` slots to the session's list.
  void Empty(Stock& mine, uint32_t keep) ABSL_LOCKS_EXCLUDED(mu_);
  // A thread needs `stock` no more.
  void Retire(Stock* stock) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction.
  const uint64_t id_;
  layout::SessionSegment* const segment_;
  const uint32_t capacity_;

  std::atomic<bool> gathered_;  // written once

  RankedMutex mu_{LockRank::kLeaf};
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mu_);
  uint32_t used_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::unique_ptr<Stock>> stocks_ ABSL_GUARDED_BY(mu_);
  std::vector<Stock*> spare_ ABSL_GUARDED_BY(mu_);  // of stocks_: no thread's
  bool summed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_SLOT_STOCKS_H_

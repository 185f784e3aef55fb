// The references this process holds to shared blocks, and the protocol that keeps them exact.
//
// A process refers to a block at most once: by one count in the block's word and one slot in the
// session segment, however many Buffers it has. The slot says what the process is about to do
// before it does it, so that after a kill at any instruction the daemon can tell from the slots
// alone which references to take back. Every change of a word is a compare-and-swap of all of it.
//
//   share    slot := HELD, then word private → 1 reference
//   open     slot := ACQUIRING, word + 1, slot ACQUIRING → HELD
//   release  slot HELD → RELEASING, word - 1 (FREED at zero), slot := FREE
//
// While a word is FROZEN (the daemon recounts it) an open waits a little and a release is put on a
// private list and finished later. Before it changes a word each looks at its own slot once more:
// a recount may have turned it to VOID, "you were left out".
//
// Memory order: the store of an intent into the slot comes before the load of the word in the
// single total order (seq_cst), as the daemon's freeze comes before its scan of the slots; so at
// least one of the two sees the other.
//
// Everything read from shared memory was possibly written by somebody else and is checked.
//
// Thread-safe. Locks: one per shard of the table (kSession), held during the few instructions of
// the protocol and never while waiting; a leaf for the slots.

#ifndef SPANPOOL_CLIENT_REFERENCES_H_
#define SPANPOOL_CLIENT_REFERENCES_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "client/address_range.h"
#include "client/session_cache.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"

namespace spanpool::internal {

// This process's reference to one block, owned by one or more Buffers together. Either private (the
// block was never shared) or shared (it has a slot).
class Reference {
 public:
  PoolOffset offset() const { return offset_; }

 private:
  friend class References;
  static constexpr uint32_t kNoSlot = UINT32_MAX;

  explicit Reference(PoolOffset offset, bool owned) : offset_(offset), owned_(owned) {}
  GranuleId granule() const { return GranuleOf(offset_); }

  const PoolOffset offset_;
  // The block is out of a span that this session has on loan, so it is this process's to reuse.
  const bool owned_;
  std::atomic<uint32_t> owners_{1};

  // Guarded by the lock of the granule's shard.
  uint32_t slot_ = kNoSlot;
  uint64_t generation_ = 0;
  uint64_t length_ = 0;
  bool parked_ = false;       // one of owners_ is a handle that was sent
  uint32_t parked_refs_ = 0;  // the word's count when it was
};

class References {
 public:
  // All outlive this. `segment` is mapped for writing, `slot_capacity` is what the daemon said.
  References(uint32_t incarnation, layout::SessionSegment* segment, uint32_t slot_capacity,
             AddressRange* range, SessionCache* cache);
  ~References();
  References(const References&) = delete;
  References& operator=(const References&) = delete;

  // A reference, with one owner, to a private block that the caller holds.
  static Reference* NewPrivate(PoolOffset offset) { return new Reference(offset, /*owned=*/true); }
  // Undoes NewPrivate, for a reference nobody else has seen.
  static void Discard(Reference* reference) { delete reference; }

  // One owner more. Requires that the caller is one.
  static void AddOwner(Reference* reference) {
    // relaxed: the caller's own reference keeps the object.
    reference->owners_.fetch_add(1, std::memory_order_relaxed);
  }

  enum class Dropped {
    kNothing,    // others have it, or it lives on elsewhere
    kFreeBlock,  // the block is private again and the caller's: free it
  };
  // One owner less; with the last the reference is released and the object is gone.
  Dropped Drop(Reference* reference);

  // Shares the block, whose first `length` bytes are of interest, unless it was shared before.
  //   FAILED_PRECONDITION  the block word is not private: some process wrote over it
  //   RESOURCE_EXHAUSTED   no slot is free
  absl::StatusOr<layout::HandleBits> Share(Reference* reference, uint64_t length);

  struct Opened {
    Reference* reference;
    uint64_t length;
  };
  //   INVALID_ARGUMENT     the handle was never given out by a pool
  //   FAILED_PRECONDITION  it is of another pool, or of this one before it was lost
  //   NOT_FOUND            the block was freed
  //   RESOURCE_EXHAUSTED   no slot is free, or the block has 16,383 references
  //   UNAVAILABLE          the block is being recounted after a death; try again
  //   DATA_LOSS            the block table was written over
  absl::StatusOr<Opened> Open(const layout::HandleBits& handle);

  bool IsShared(Reference* reference);

  // Keeps one owner's share of `reference` (the caller's, who gives it up) for a handle that is on
  // its way: until the block has more references than now, or this process opened it, or Close().
  void Park(Reference* reference);

  // Finishes releases that met a frozen word, and drops parked references whose handle arrived.
  // Returns blocks that are the caller's to free.
  std::vector<PoolOffset> Settle();

  // Drops what is parked and finishes what is pending. Called last.
  //   UNAVAILABLE  a word is still frozen, and its slot stands
  absl::Status Close();

  // Counted in the session segment, where the daemon shows them to its operator.
  uint64_t opens() const { return counters().opens.load(std::memory_order_relaxed); }
  uint64_t shares() const { return counters().shares.load(std::memory_order_relaxed); }
  uint64_t releases() const { return counters().releases.load(std::memory_order_relaxed); }
  uint32_t slots_in_use() ABSL_LOCKS_EXCLUDED(slots_mu_);

 private:
  static constexpr size_t kShards = 64;
  struct alignas(64) Shard {
    RankedMutex mu{LockRank::kSession};
    absl::flat_hash_map<uint64_t, Reference*> by_granule ABSL_GUARDED_BY(mu);
  };
  // A release that met a frozen word. The slot is RELEASING.
  struct Pending {
    uint32_t slot;
    PoolOffset offset;
    bool owned;
  };
  enum class Released {
    kLivesOn,  // others refer to it
    kFreed,    // the last reference is gone
    kFrozen,   // try again later
    kNone,     // a recount left us out, or the word was written over: nothing was dropped
  };

  Shard& ShardOf(GranuleId granule) { return shards_[granule.value() * 0x9e3779b97f4a7c15u >> 58]; }
  layout::SessionCounters& counters() const { return segment_->counters; }
  std::atomic<uint64_t>& SlotAt(uint32_t slot) { return slots_[slot]; }

  absl::StatusOr<uint32_t> NewSlot() ABSL_LOCKS_EXCLUDED(slots_mu_);
  // Stores FREE and makes the slot available.
  void FreeSlot(uint32_t slot) ABSL_LOCKS_EXCLUDED(slots_mu_);

  enum class Acquired { kDone, kRefused, kFrozen, kFull };
  // Rule 2, a..f. On anything but kDone the slot is FREE, but still the caller's.
  Acquired Acquire(uint32_t slot, GranuleId granule, uint64_t generation);
  // Rule 3, b..d.
  Released ReleaseWord(uint32_t slot, GranuleId granule);
  // What follows a release.
  Dropped AfterRelease(Released released, uint32_t slot, PoolOffset offset, bool owned);
  absl::StatusOr<Opened> OpenOnce(const layout::HandleBits& handle, bool* frozen);
  absl::StatusOr<uint64_t> CheckedLength(const layout::HandleBits& handle);
  // Drops the parked owner of `granule`, if its handle arrived or `always`. True if there is
  // nothing left to wait for. Appends to `to_free` as Settle does.
  bool TryUnpark(GranuleId granule, bool always, std::vector<PoolOffset>* to_free);
  std::vector<PoolOffset> SettleSome(size_t most_parked, bool always);

  // Constant after construction.
  const uint32_t incarnation_;
  layout::SessionSegment* const segment_;
  std::atomic<uint64_t>* const slots_;
  const uint32_t slot_capacity_;
  AddressRange* const range_;
  SessionCache* const cache_;

  Shard shards_[kShards];

  RankedMutex slots_mu_{LockRank::kLeaf};
  std::vector<uint32_t> free_slots_ ABSL_GUARDED_BY(slots_mu_);
  uint32_t slots_used_ ABSL_GUARDED_BY(slots_mu_) = 0;

  RankedMutex waiting_mu_{LockRank::kLeaf};
  std::vector<Pending> pending_ ABSL_GUARDED_BY(waiting_mu_);
  // Looked at in turn; an entry whose reference is no longer parked is dropped when its turn comes.
  std::deque<GranuleId> parked_ ABSL_GUARDED_BY(waiting_mu_);
  std::atomic<bool> any_waiting_{false};
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_REFERENCES_H_

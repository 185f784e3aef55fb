// The references that the daemon holds itself, in a session segment of its own: "session 0".
//
//   for names              Open … Release, by the threads that serve them, as any client would
//   for dead senders       Adopt, by the reaper: a reference that was under way when its sender
//                          died goes on under way from here, until it is taken or its grace ends
//
// A dead sender's reference is adopted before its own is taken back, so that the block lives all
// along (rule 11 of tests/model/README.md).
//
// The segment is a memfd like any session's: a restarted worker that is given it finds the slots.
//
// Thread-safe. Lock rank: kLeaf.

#ifndef SPANPOOL_SERVER_WORKER_REFERENCES_H_
#define SPANPOOL_SERVER_WORKER_REFERENCES_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "proto/layout/block_table.h"
#include "proto/layout/slot.h"
#include "server/pool_arenas.h"
#include "server/session_memory.h"

namespace spanpool {

class WorkerReferences {
 public:
  // `arenas` outlives this. `memory` may be null: there was none to be had, and every reference is
  // refused.
  WorkerReferences(PoolArenas* arenas, std::unique_ptr<SessionMemory> memory);
  WorkerReferences(const WorkerReferences&) = delete;
  WorkerReferences& operator=(const WorkerReferences&) = delete;

  // Takes a reference to the block of that granule and generation, in addition to those there are;
  // what is under way stays so. Returns its slot. Waits up to 0.1 s while the block is recounted,
  // so it is not for the reaper.
  //   NOT_FOUND           there is no such block (any more)
  //   RESOURCE_EXHAUSTED  the block has as many references as clients may take, or no slot is free
  //   UNAVAILABLE         the block's references are being recounted; try again
  absl::StatusOr<uint32_t> Open(GranuleId granule, uint64_t generation) ABSL_LOCKS_EXCLUDED(mu_);

  // Drops the reference of a slot that Open returned. Never waits: if the block is being recounted,
  // Settle finishes it, which the reaper calls after each recount.
  void Release(uint32_t slot) ABSL_LOCKS_EXCLUDED(mu_);

  // Whether the reference that a slot in transit speaks of was not taken yet.
  bool IsUnderWay(layout::Slot slot, const layout::SlotNote& note);

  // Takes a reference that is under way as `slot`, a dead sender's, is, with `note`. It is given up
  // at `deadline` at the latest. The reaper's.
  //   as Open: then the reference is lost with its sender
  absl::Status Adopt(layout::Slot slot, const layout::SlotNote& note, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Finishes releases, and gives up what was taken or is past its deadline: looks at some of each,
  // in turn, so that a call takes about a millisecond at most. Returns when to call again. The
  // reaper's.
  absl::Time Settle(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);

  // All slots that may have been written, for a recount. Null if there is no memory.
  SessionMemory* memory() const { return memory_.get(); }
  // References adopted and not given up yet.
  uint64_t transits() const ABSL_LOCKS_EXCLUDED(mu_);
  // Whether a reference was the last since the last call: its block may be collected.
  bool TookLast() { return took_last_.exchange(false, std::memory_order_relaxed); }

 private:
  struct Transit {
    uint32_t slot;
    absl::Time deadline;
  };

  // Open, which tries again for so long if the word is frozen.
  absl::StatusOr<uint32_t> OpenWithin(GranuleId granule, uint64_t generation, uint32_t most_refs,
                                      absl::Duration patience) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<uint32_t> NewSlot() ABSL_LOCKS_EXCLUDED(mu_);
  void GiveSlot(uint32_t slot) ABSL_LOCKS_EXCLUDED(mu_);
  // Rule 3, b to e; the slot is FREE then, and to be given back. False: the word is frozen.
  bool TryRelease(uint32_t slot);
  void ReleaseOrEnlistLocked(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Rule 11d. False: not now.
  bool TryLetGo(const Transit& transit, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);

  PoolArenas* const arenas_;
  const std::unique_ptr<SessionMemory> memory_;

  mutable RankedMutex mu_{LockRank::kLeaf};
  std::vector<uint32_t> free_ ABSL_GUARDED_BY(mu_);
  uint32_t used_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<uint32_t> pending_ ABSL_GUARDED_BY(mu_);  // RELEASING, on a frozen word
  std::deque<Transit> transits_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> took_last_{false};
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_WORKER_REFERENCES_H_

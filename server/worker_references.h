// The references that the daemon holds itself, in a session segment of its own: "session 0".
//
//   for names              Open … Release, by the threads that serve them, as any client would
//   for dead senders       Adopt, by the reaper: a reference that was under way when its sender
//                          died goes on under way from here, until it is taken or its grace ends
//
// A dead sender's reference is adopted before its own is taken back, so that the block lives all
// along (rule 11 of tests/model/README.md).
//
// The segment is a memfd like any session's: a restarted worker that is given it goes on with the
// slots (Resume). What its predecessor was in the middle of is reaped like a dead process's.
//
// Thread-safe. Lock rank: kLeaf.

#ifndef SPANPOOL_SERVER_WORKER_REFERENCES_H_
#define SPANPOOL_SERVER_WORKER_REFERENCES_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
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

  // After a restart, before anything else but Recounter::Resume: `named` are the slots that names
  // stand on. A slot that holds a block for no name lets go; what was under way is kept until
  // `deadline` at most; and what cannot be told without a recount is put aside: see Unclear.
  void Resume(const absl::flat_hash_set<uint32_t>& named, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The blocks that slots put aside speak of, each once. The reaper's, like the next.
  std::vector<GranuleId> Unclear() const ABSL_LOCKS_EXCLUDED(mu_);
  // After they were recounted: frees what is clear now, and what speaks of a block in `lost`, whose
  // word nobody can trust.
  void SettleUnclear(const absl::flat_hash_set<GranuleId>& lost) ABSL_LOCKS_EXCLUDED(mu_);

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

  // Frees a slot that was put aside or is to be: true unless its word has references, for then the
  // slot alone does not tell whether one of them is its own.
  bool TryClear(uint32_t slot);

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
  std::vector<uint32_t> unclear_ ABSL_GUARDED_BY(mu_);  // in flight, since before a restart
  std::atomic<bool> took_last_{false};
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_WORKER_REFERENCES_H_

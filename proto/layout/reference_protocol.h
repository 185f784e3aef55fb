// The steps of the reference protocol that all processes take alike, clients and the daemon: rules
// 2, 3 and 10 of tests/model/README.md, on one slot and one word.
//
// Each function is given a slot that belongs to the caller alone, but for a recount by the daemon,
// which may turn it to VOID while it is in flight.
//
// Memory order. The daemon freezes a word by a compare-and-swap and then reads slots; a client
// writes its slot and then changes the word by a compare-and-swap. Both are read-modify-writes of
// the same word, so one comes first. If the client's does, the freeze has read what it (or a later
// one) wrote, and so the daemon sees the slot: release here, acquire there. If the freeze does, the
// client's fails. And whoever loads a word that a recount has left sees in its own slot what the
// recount made of it. No store needs a fence of its own.
//
// Words are input. A member that keeps changing one could make a compare-and-swap fail for ever, so
// tries are bounded; an honest process changes a word a few times.

#ifndef SPANPOOL_PROTO_LAYOUT_REFERENCE_PROTOCOL_H_
#define SPANPOOL_PROTO_LAYOUT_REFERENCE_PROTOCOL_H_

#include <atomic>
#include <cstdint>

#include "allocator/units.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/slot.h"
#include "proto/layout/step.h"

namespace spanpool::layout {

inline constexpr int kMaxWordTries = 100'000;

// Rule 3e, and 2f: the slot is FREE, whatever it is by now.
inline void FreeSlot(SharedSlot& slot) {
  SPANPOOL_STEP("slot.free");
  // release: the reference that the slot spoke of is gone before the slot is.
  slot.store(Slot().bits(), std::memory_order_release);
}

enum class OpenResult {
  kOpened,   // the slot is HELD
  kRefused,  // the handle names nothing any more
  kFull,     // there are `most_refs` references
  kFrozen,   // the block is being recounted, or never stood still: try again
};
struct Opening {
  OpenResult result;
  BlockWord counted;  // kOpened: the word that was counted up
};

// Rule 2, a to f. But for kOpened the slot is FREE again.
inline Opening OpenBlock(SharedSlot& slot, SharedWord& shared, GranuleId granule,
                         uint64_t generation, uint32_t most_refs) {
  const uint64_t acquiring = Slot(SlotState::kAcquiring, granule).bits();
  const auto refuse = [&slot](OpenResult why) {
    FreeSlot(slot);  // f
    return Opening{why, BlockWord()};
  };
  PrefetchForChange(shared);
  SPANPOOL_STEP("open.2a");
  slot.store(acquiring, std::memory_order_release);
  uint64_t bits = shared.load(std::memory_order_acquire);  // b
  for (int tries = 0;; ++tries) {
    const BlockWord word(bits);
    if (word.frozen() || tries == kMaxWordTries) return refuse(OpenResult::kFrozen);
    if (word.generation() != generation || !word.is_shared()) return refuse(OpenResult::kRefused);
    if (word.refs() >= most_refs) return refuse(OpenResult::kFull);
    if (slot.load(std::memory_order_acquire) != acquiring) return refuse(OpenResult::kFrozen);  // c
    SPANPOOL_STEP("open.2d");
    // acquire: pairs with the release of the sharer, whose writes to the block are seen.
    if (shared.compare_exchange_weak(bits, word.Acquired().bits(), std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      break;
    }
  }
  SPANPOOL_STEP("open.2e");
  uint64_t expected = acquiring;
  if (!slot.compare_exchange_strong(expected, Slot(SlotState::kHeld, granule).bits(),
                                    std::memory_order_acq_rel, std::memory_order_acquire)) {
    return refuse(OpenResult::kFrozen);  // a recount left this reference out: nothing to undo
  }
  return {OpenResult::kOpened, BlockWord(bits)};
}

enum class ReleaseResult {
  kLivesOn,    // others refer to the block
  kFreed,      // that was the last reference
  kCollected,  // likewise, and the block is private again
  kFrozen,     // the block is being recounted: try again later; the slot still speaks of it
  kNone,       // a recount left the slot out, or the word was written over: nothing was dropped
};

// Rule 3a.
inline void BeginRelease(SharedSlot& slot, GranuleId granule) {
  SPANPOOL_STEP("release.3a");
  slot.store(Slot(SlotState::kReleasing, granule).bits(), std::memory_order_release);
}

// Rule 3, b to d. FreeSlot is to follow, unless the result is kFrozen. `collects`: the caller holds
// the block's span, and nobody sweeps the block meanwhile; who takes the last reference off then
// collects the block in the same compare-and-swap, instead of by rule 4 in a second.
inline ReleaseResult ReleaseBlock(SharedSlot& slot, SharedWord& shared, GranuleId granule,
                                  bool collects = false) {
  const uint64_t releasing = Slot(SlotState::kReleasing, granule).bits();
  uint64_t bits = shared.load(std::memory_order_acquire);  // b
  for (int tries = 0;; ++tries) {
    const BlockWord word(bits);
    if (word.frozen() || tries == kMaxWordTries) return ReleaseResult::kFrozen;
    if (slot.load(std::memory_order_acquire) != releasing) return ReleaseResult::kNone;  // c
    if (word.refs() == 0) return ReleaseResult::kNone;  // written over: nothing of ours is in it
    BlockWord next = word.Released();
    // At the largest generation a block is never collected.
    const bool collected =
        collects && word.refs() == 1 && !word.freed() && word.generation() != kMaxGeneration;
    if (collected) next = next.Collected();
    SPANPOOL_STEP("release.3d");
    // release: this process's reads and writes of the block come before its reuse. acquire, for one
    // that collects: so do everybody else's.
    if (shared.compare_exchange_weak(bits, next.bits(), std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      if (collected) return ReleaseResult::kCollected;
      return word.refs() == 1 ? ReleaseResult::kFreed : ReleaseResult::kLivesOn;
    }
  }
}

enum class TakeResult {
  kTaken,     // the reference that was under way is this process's
  kNotThere,  // it was not, or is no longer
  kFrozen,    // the block is being recounted: try again later
};

// Rules 10d and 10e: SENT off, if it is on under `number`. The caller holds a reference.
inline TakeResult TakeSent(SharedWord& shared, uint32_t number) {
  uint64_t bits = shared.load(std::memory_order_acquire);
  for (int tries = 0;; ++tries) {
    const BlockWord word(bits);
    if (word.frozen() || tries == kMaxWordTries) return TakeResult::kFrozen;
    if (!word.IsUnderWay(number)) return TakeResult::kNotThere;
    SPANPOOL_STEP("taken.10e");
    if (shared.compare_exchange_weak(bits, word.Taken().bits(), std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      return TakeResult::kTaken;
    }
  }
}

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_REFERENCE_PROTOCOL_H_

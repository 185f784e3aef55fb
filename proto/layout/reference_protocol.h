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

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
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

// One turn of rule 2, b to e, on a word that was `*bits`; the slot is ACQUIRING. False: somebody
// else changed the word, which is `*bits` now.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool TryOpen(SharedSlot& slot, SharedWord& shared,
                                                 GranuleId granule, uint64_t generation,
                                                 uint32_t most_refs, uint64_t* bits,
                                                 Opening* opening) {
  const uint64_t acquiring = Slot(SlotState::kAcquiring, granule).bits();
  const auto refuse = [&slot, opening](OpenResult why) {
    FreeSlot(slot);  // f
    *opening = {why, BlockWord()};
    return true;
  };
  const BlockWord word(*bits);
  if (ABSL_PREDICT_FALSE(word.frozen())) return refuse(OpenResult::kFrozen);
  if (ABSL_PREDICT_FALSE(word.generation() != generation || !word.is_shared())) {
    return refuse(OpenResult::kRefused);
  }
  if (ABSL_PREDICT_FALSE(word.refs() >= most_refs)) return refuse(OpenResult::kFull);
  if (ABSL_PREDICT_FALSE(slot.load(std::memory_order_acquire) != acquiring)) {
    return refuse(OpenResult::kFrozen);  // c
  }
  SPANPOOL_STEP("open.2d");
  // acquire: pairs with the release of the sharer, whose writes to the block are seen.
  if (ABSL_PREDICT_FALSE(!shared.compare_exchange_weak(
          *bits, word.Acquired().bits(), std::memory_order_acq_rel, std::memory_order_acquire))) {
    return false;
  }
  SPANPOOL_STEP("open.2e");
  uint64_t expected = acquiring;
  if (ABSL_PREDICT_FALSE(
          !slot.compare_exchange_strong(expected, Slot(SlotState::kHeld, granule).bits(),
                                        std::memory_order_acq_rel, std::memory_order_acquire))) {
    return refuse(OpenResult::kFrozen);  // a recount left this reference out: nothing to undo
  }
  *opening = {OpenResult::kOpened, word};
  return true;
}

// The turns after the first.
[[gnu::cold, gnu::noinline]] inline Opening KeepOpening(SharedSlot& slot, SharedWord& shared,
                                                        GranuleId granule, uint64_t generation,
                                                        uint32_t most_refs, uint64_t bits) {
  Opening opening{OpenResult::kFrozen, BlockWord()};
  for (int tries = 1; tries < kMaxWordTries; ++tries) {
    if (TryOpen(slot, shared, granule, generation, most_refs, &bits, &opening)) return opening;
  }
  FreeSlot(slot);  // f
  return opening;
}

// Rule 2, a to f. But for kOpened the slot is FREE again.
inline Opening OpenBlock(SharedSlot& slot, SharedWord& shared, GranuleId granule,
                         uint64_t generation, uint32_t most_refs) {
  PrefetchForChange(shared);
  SPANPOOL_STEP("open.2a");
  slot.store(Slot(SlotState::kAcquiring, granule).bits(), std::memory_order_release);
  uint64_t bits = shared.load(std::memory_order_acquire);  // b
  Opening opening;
  if (ABSL_PREDICT_TRUE(TryOpen(slot, shared, granule, generation, most_refs, &bits, &opening))) {
    return opening;
  }
  return KeepOpening(slot, shared, granule, generation, most_refs, bits);
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
    const bool collected = collects && word.is_last() && word.can_be_collected();
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

// The two ends that are common, in as few steps as they take: with `collects` kCollected, without
// kLivesOn. False: it is another, or somebody else changed the word; nothing was done, and
// ReleaseBlock does it.
ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool TryReleaseBlock(SharedSlot& slot, SharedWord& shared,
                                                         GranuleId granule, bool collects) {
  uint64_t bits = shared.load(std::memory_order_acquire);  // b
  const BlockWord word(bits);
  if (ABSL_PREDICT_FALSE(slot.load(std::memory_order_acquire) !=
                         Slot(SlotState::kReleasing, granule).bits())) {
    return false;  // c
  }
  BlockWord next = word.Dropped();
  if (collects) {
    if (ABSL_PREDICT_FALSE(!word.is_last() || !word.can_be_collected())) return false;
    next = next.Collected();
  } else if (ABSL_PREDICT_FALSE(word.frozen() || word.refs() < 2)) {
    return false;
  }
  SPANPOOL_STEP("release.3d");
  // As in ReleaseBlock.
  return ABSL_PREDICT_TRUE(shared.compare_exchange_strong(
      bits, next.bits(), std::memory_order_acq_rel, std::memory_order_acquire));
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

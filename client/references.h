// The references this process holds to shared blocks, and the protocol that keeps them exact.
//
// A reference is one count in the block's word and one slot in the session segment. The slot says
// what the process is about to do before it does it, so that after a kill at any instruction the
// daemon can tell from the slots alone which references to take back. tests/model/README.md has the
// rules (their numbers stand in comments here), and checks them over all interleavings.
//
//   share    slot := HELD, then word private → 1 reference                               rule 1
//   open     slot := ACQUIRING, word + 1, slot ACQUIRING → HELD                          rule 2
//   release  slot := RELEASING, word - 1 (FREED at zero; or private again, if this      rule 3
//            process has the span), slot := FREE
//   send     slot := TRANSIT under a number, then the word says SENT under that number   rule 10
//
// Every Buffer that shares, opens or sends has a reference of its own, also when the process holds
// the block already: so none of this needs a table of the process's blocks, nor a lock. Buffers
// made by Buffer::Ref own one together (Joint).
//
// What waits for somebody else is put on lists and finished later, by whoever comes by (Settle): a
// release that met a word which the daemon is recounting; a reference that was sent, until its
// handle was opened.
//
// Everything read from shared memory was possibly written by somebody else and is checked.
//
// Thread-safe. A leaf lock for the lists; no lock is held while waiting.

#ifndef SPANPOOL_CLIENT_REFERENCES_H_
#define SPANPOOL_CLIENT_REFERENCES_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "client/address_range.h"
#include "client/session_cache.h"
#include "client/slot_stocks.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/reference_protocol.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"
#include "proto/layout/step.h"
#include "spanpool/handle.h"

namespace spanpool::internal {

// A reference that a Buffer owns: its slot is HELD. One word, so that a Buffer can keep it.
class Held {
 public:
  // `owned`: the block is out of a span that this session has on loan, and in the user's hands, so
  // that it is this process's to free.
  Held(uint32_t slot, bool owned) : bits_(uintptr_t{slot} << 2 | uintptr_t{owned} << 1 | 1) {}
  // Requires that `bits` are those of a Held; or 0, for one to be assigned to.
  explicit Held(uintptr_t bits) : bits_(bits) {}

  uintptr_t bits() const { return bits_; }  // always odd
  uint32_t slot() const { return static_cast<uint32_t>(bits_ >> 2); }
  bool owned() const { return (bits_ & 2) != 0; }

 private:
  uintptr_t bits_;
};

// Says where a reference in transit is under way, if not by a Send: as long as the 8 bytes at
// `entry`, a multiple of 8 within a block that this process has mapped, are `value`.
struct TransitNote {
  PoolOffset entry;
  uint64_t value = 0;
};

// A reference that is on its way: its slot is TRANSIT.
struct Transit {
  uint32_t slot = 0;
  PoolOffset offset;
  // As of a Held: when it has arrived and its receiver has let go, the block is free here at once,
  // without a sweep. Until then it keeps its span; so one that is under way for long gives this up.
  bool owned = false;
  // The block that its entry is in, if that is a shared one: once it is freed, nothing in it is
  // under way.
  struct Channel {
    GranuleId granule;
    uint64_t generation = 0;
  };
  std::optional<Channel> channel = std::nullopt;
};

class References {
 public:
  // All outlive this. `segment` is mapped for writing, `slot_capacity` is what the daemon said.
  // `deferred` is called, by any thread, after something was put off that only Settle finishes; not
  // for what was sent.
  References(uint32_t incarnation, layout::SessionSegment* segment, uint32_t slot_capacity,
             AddressRange* range, SessionCache* cache, std::function<void()> deferred);
  References(const References&) = delete;
  References& operator=(const References&) = delete;

  // Shares a private block, which the caller holds and whose first `length` bytes are of interest.
  // Sets the reference's Held and handle.
  //   FAILED_PRECONDITION  the block word is not private: some process wrote over it
  //   RESOURCE_EXHAUSTED   no slot is free
  absl::Status Share(PoolOffset offset, uint64_t length, Held* held, layout::HandleBits* handle);
  // The common case of Share. False: it is another, or something waits to be settled; nothing was
  // done.
  bool TryShare(SlotStocks::Stock& mine, PoolOffset offset, uint64_t length, Held* held,
                Handle* handle);

  // The handle of a shared block; `length` is what was shared or opened.
  layout::HandleBits HandleOf(PoolOffset offset, uint64_t length) const {
    // It does not change while the caller holds the block.
    const uint64_t bits = tables_.WordOf(GranuleOf(offset)).load(std::memory_order_relaxed);
    return HandleOf(offset, length, layout::BlockWord(bits));
  }

  struct Opened {
    Held held = Held(0);
    PoolOffset offset;
    uint64_t length = 0;
    layout::BlockWord counted;  // the word that was counted up
  };
  //   INVALID_ARGUMENT     the handle was never given out by a pool
  //   FAILED_PRECONDITION  it is of another pool, or of this one before it was lost
  //   NOT_FOUND            the block was freed
  //   RESOURCE_EXHAUSTED   no slot is free, or the block has 15,383 references
  //   UNAVAILABLE          the block is being recounted after a death; try again
  //   DATA_LOSS            the block table was written over
  // `takes`: a reference that is under way becomes this one; otherwise it stays under way.
  absl::Status Open(const layout::HandleBits& handle, Opened* opened, bool takes = true);
  // The common case of Open. False: it is another; nothing was done. If `opened->counted` is
  // sent(), Take is to follow.
  bool TryOpen(SlotStocks::Stock& mine, const layout::HandleBits& handle, Opened* opened);
  // Whether a reference that was under way when the block was opened became the opened one.
  bool Take(const Opened& opened);

  // One more reference to a block that the caller holds one to. What is under way stays so.
  // RESOURCE_EXHAUSTED, UNAVAILABLE, DATA_LOSS: as Open.
  absl::StatusOr<Held> OpenAgain(PoolOffset offset);

  // How many references to a block there are besides one that the caller holds.
  uint32_t OthersOf(PoolOffset offset) const;

  enum class Dropped {
    kNothing,    // others have it, or it lives on elsewhere
    kFreeBlock,  // the block is private again and the caller's: free it
  };
  // BeginRelease does the common case, in which the block is the caller's to free if it is `owned`.
  // Whatever else it has come to, FinishRelease brings to an end.
  enum class Begun {
    kFinished,
    kNothing,    // nothing was done
    kReleasing,  // the slot is RELEASING
  };
  Begun BeginRelease(SlotStocks::Stock& mine, Held held, PoolOffset offset);
  Dropped FinishRelease(Begun begun, Held held, PoolOffset offset);
  Dropped Release(Held held, PoolOffset offset) {
    return FinishRelease(Begun::kNothing, held, offset);
  }

  // Sends the reference away with the handle; whoever opens that next takes its place. On an error
  // the caller keeps it.
  //   FAILED_PRECONDITION  an earlier Send of the block was not opened yet, or (second form) the
  //                        word is not private
  //   RESOURCE_EXHAUSTED   no slot is free
  //   UNAVAILABLE          the block is being recounted after a death; try again
  absl::Status Send(Held held, PoolOffset offset);
  // The same for a private block, without sharing it first.
  absl::Status SendPrivate(PoolOffset offset, uint64_t length);

  // Opens what this process sent with the handle, if nobody has yet (rule 10d).
  //   NOT_FOUND  it was opened, or never sent
  //   and as Open
  absl::StatusOr<Opened> TakeBack(const layout::HandleBits& handle);

  // For channels (rule 12): the reference travels as an entry of a queue. In this order:
  //   1. TransitOf: the caller gives up `held`.
  //   2. Retarget, with a note of the entry and what it is about to be.
  //   3. The entry is filled by a compare-and-swap. If that fails: 2 again, or CancelTransit.
  //   4. EndTransit. The reference is released some time after the entry is no longer what the note
  //      says: by a receiver, who opens the block before it empties the entry; or by whoever
  //      empties it in the receiver's place.
  // Should this process die, the daemon does the rest: after 3 it keeps the reference for as long
  // as the entry stands, or for its grace period.
  Transit TransitOf(Held held, PoolOffset offset) const {
    return {.slot = held.slot(), .offset = offset, .owned = held.owned()};
  }
  void Retarget(const Transit& transit, const TransitNote& note);
  void EndTransit(const Transit& transit);
  // Requires that the entry was not filled with it, or that the caller emptied it.
  Held CancelTransit(const Transit& transit);

  // Finishes releases that met a frozen word, and releases what was sent and has arrived. Returns
  // blocks that are the caller's to free.
  using Freed = absl::InlinedVector<PoolOffset, 4>;
  Freed Settle() { return any_waiting() ? SettleSome(SIZE_MAX) : Freed(); }
  // The same, for who is in a hurry: looks at a few.
  Freed SettleFew() { return any_waiting() ? SettleSome(2) : Freed(); }
  // Whether Settle may have something to do.
  bool any_waiting() const { return any_waiting_.load(std::memory_order_relaxed); }

  // Finishes what is pending. What was sent and has not arrived stays in transit: the daemon takes
  // it over. Called last.
  //   UNAVAILABLE  a word is still frozen, and its slot stands
  absl::Status Close();

  // What all threads did.
  SlotStocks::Counts counts() { return slots_.counts(); }
  // Where each thread counts owners of the session.
  SlotStocks& slots() { return slots_; }
  // Slots that are not FREE.
  uint32_t slots_in_use();

 private:
  // A release that met a frozen word: the slot is RELEASING. Or, with `taken` set, an open that met
  // one when it was all but done: the slot is HELD, and SENT is to be taken off under `number`.
  struct Pending {
    uint32_t slot;
    PoolOffset offset;
    bool owned;
    bool taken = false;
    uint32_t number = 0;
    bool then_release = false;
  };

  layout::SharedSlot& SlotAt(uint32_t slot) { return slot_words_[slot]; }
  static absl::Status NoSlot();

  layout::HandleBits HandleOf(PoolOffset offset, uint64_t length, layout::BlockWord word) const {
    layout::HandleBits handle;
    handle.incarnation = incarnation_;
    handle.granule = GranuleOf(offset);
    handle.start = static_cast<uint32_t>(offset.value() % kGranuleBytes);
    handle.length = length > layout::kMaxHandleLength ? 0 : static_cast<uint32_t>(length);
    handle.generation = word.generation();
    return handle;
  }
  // Stores the length where openers find it, if it does not travel in the handle.
  void StoreLength(PoolOffset offset, uint64_t length) {
    if (length <= layout::kMaxHandleLength) return;
    layout::SharedWord& stored = layout::LengthOf(tables_.MarksOf(ArenaOf(offset)), PageOf(offset));
    // Most often the block was of that length before, and openers have the line.
    if (stored.load(std::memory_order_relaxed) == length) return;
    SPANPOOL_STEP("share.length");
    stored.store(length, std::memory_order_release);
  }
  bool IsPossible(const layout::HandleBits& handle) const {
    return handle.incarnation == incarnation_ && handle.length <= layout::kMaxHandleLength &&
           (handle.length != 0 || OffsetOf(handle.granule).value() % kPageBytes == 0) &&
           range_->Covers(handle.offset(), std::max<uint64_t>(handle.length, 1));
  }
  // Of one that is not possible.
  absl::Status WhyImpossible(const layout::HandleBits& handle) const;
  absl::StatusOr<uint64_t> CheckedLength(const layout::HandleBits& handle);
  // Rule 1, of a block whose word is `word`, private.
  void ShareAs(uint32_t slot, PoolOffset offset, uint64_t length, layout::BlockWord word);
  // Rule 2. Waits a little while the word is frozen.
  absl::StatusOr<Opened> OpenSlot(PoolOffset offset, uint64_t generation);
  Dropped AfterRelease(layout::ReleaseResult released, Held held, PoolOffset offset);
  void Enlist(const Pending& pending) ABSL_LOCKS_EXCLUDED(mu_);
  void EnlistTransit(const Transit& transit) ABSL_LOCKS_EXCLUDED(mu_);
  // The slot's open has a Pending with `taken`: it is finished, or will be before the release.
  // True: the release is enlisted too.
  bool DeferRelease(uint32_t slot) ABSL_LOCKS_EXCLUDED(mu_);
  bool IsUnderWay(const Transit& transit);
  // True if nothing is left to do but, unless `released` is kFrozen, what follows a release.
  bool FinishLocked(Pending* pending, layout::ReleaseResult* released)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // If it looks at all transits: blocks of those still under way no longer keep their spans here.
  Freed SettleSome(size_t most_transits) ABSL_LOCKS_EXCLUDED(mu_);
  void NoteWaitingLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const uint32_t incarnation_;
  layout::SharedSlot* const slot_words_;
  layout::SlotNote* const notes_;
  AddressRange* const range_;
  const BlockTables tables_;  // the range's
  SessionCache* const cache_;
  const std::function<void()> deferred_;
  SlotStocks slots_;

  RankedMutex mu_{LockRank::kLeaf};
  std::vector<Pending> pending_ ABSL_GUARDED_BY(mu_);
  // What was sent, oldest first.
  std::deque<Transit> transits_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> any_waiting_{false};
  std::atomic<bool> any_untaken_{false};  // a Pending with `taken`
};

// Inline: what a hand-over consists of. Nothing here calls anything but in branches that are hardly
// ever taken.

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void References::ShareAs(uint32_t slot, PoolOffset offset,
                                                             uint64_t length,
                                                             layout::BlockWord word) {
  const GranuleId granule = GranuleOf(offset);
  StoreLength(offset, length);
  // If this process dies before the word is changed, refs 0 proves the slot uncounted.
  SPANPOOL_STEP("share.1a");
  SlotAt(slot).store(layout::Slot(layout::SlotState::kHeld, granule).bits(),
                     std::memory_order_release);
  SPANPOOL_STEP("share.1b");
  // Nobody but its owner changes a private word. release: the slot, and what was written to the
  // block, come before; pairs with the acquire of openers and of a recount.
  tables_.WordOf(granule).store(word.Shared().bits(), std::memory_order_release);
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool References::TryShare(SlotStocks::Stock& mine,
                                                              PoolOffset offset, uint64_t length,
                                                              Held* held, Handle* handle) {
  const layout::BlockWord word(tables_.WordOf(GranuleOf(offset)).load(std::memory_order_acquire));
  if (ABSL_PREDICT_FALSE(any_waiting() || !mine.can_take() || !word.is_private())) return false;
  const uint32_t slot = SlotStocks::TakeAtHand(mine);
  ShareAs(slot, offset, length, word);
  mine.CountShare();
  const layout::HandleBits bits = HandleOf(offset, length, word);
  *handle = Handle{{bits.low(), bits.high()}};
  *held = Held(slot, /*owned=*/true);
  return true;
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline bool References::TryOpen(SlotStocks::Stock& mine,
                                                             const layout::HandleBits& handle,
                                                             Opened* opened) {
  const PoolOffset offset = handle.offset();
  if (ABSL_PREDICT_FALSE(!IsPossible(handle) || !mine.can_take())) return false;
  uint64_t length = handle.length;
  if (length == 0) {
    // It was stored before the handle was made, and another only after this generation.
    if (ABSL_PREDICT_FALSE(!range_->IsMapped(ArenaOf(offset)))) return false;
    length = layout::LengthOf(tables_.MarksOf(ArenaOf(offset)), PageOf(offset))
                 .load(std::memory_order_acquire);
    if (ABSL_PREDICT_FALSE(length == 0 || !range_->Covers(offset, length))) return false;
  }
  if (ABSL_PREDICT_FALSE(!range_->IsMapped(offset, length))) return false;
  // It will be looked at; so its first line may come while the word does.
  __builtin_prefetch(range_->PointerTo(offset));
  const uint32_t slot = SlotStocks::TakeAtHand(mine);
  const layout::Opening opening =
      layout::OpenBlock(SlotAt(slot), tables_.WordOf(handle.granule), handle.granule,
                        handle.generation, layout::kMaxClientRefs);
  if (ABSL_PREDICT_FALSE(opening.result != layout::OpenResult::kOpened)) {
    SlotStocks::GiveAtHand(mine, slot);  // FREE again
    return false;
  }
  *opened = {.held = Held(slot, /*owned=*/false),
             .offset = offset,
             .length = length,
             .counted = opening.counted};
  mine.CountOpen();
  return true;
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline References::Begun References::BeginRelease(
    SlotStocks::Stock& mine, Held held, PoolOffset offset) {
  if (ABSL_PREDICT_FALSE(any_untaken_.load(std::memory_order_relaxed) || !mine.can_give())) {
    return Begun::kNothing;
  }
  const GranuleId granule = GranuleOf(offset);
  layout::SharedWord& shared = tables_.WordOf(granule);
  layout::SharedSlot& own = SlotAt(held.slot());
  layout::PrefetchForChange(shared);
  layout::BeginRelease(own, granule);
  if (ABSL_PREDICT_FALSE(
          !layout::TryReleaseBlock(own, shared, granule, /*collects=*/held.owned()))) {
    return Begun::kReleasing;
  }
  // Before the block is reused, so that the slot cannot be taken for its next life.
  layout::FreeSlot(own);
  SlotStocks::GiveAtHand(mine, held.slot());
  mine.CountRelease();
  return Begun::kFinished;
}

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_REFERENCES_H_

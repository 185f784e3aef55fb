#include "client/references.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "allocator/check.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"

namespace spanpool::internal {
namespace {

using layout::BlockWord;
using layout::HandleBits;
using layout::Slot;
using layout::SlotState;

// A recount takes microseconds; one that takes this long has died with its daemon.
constexpr absl::Duration kFrozenPatience = absl::Seconds(1);

// How many sent handles are looked at for each one sent: more than one, so that the list shrinks.
constexpr size_t kParkedPerSettle = 8;

}  // namespace

References::References(uint32_t incarnation, layout::SessionSegment* segment,
                       uint32_t slot_capacity, AddressRange* range, SessionCache* cache)
    : incarnation_(incarnation),
      segment_(segment),
      slots_(layout::SlotsOf(segment)),
      slot_capacity_(slot_capacity),
      range_(range),
      cache_(cache) {}

References::~References() {
  for (Shard& shard : shards_) {
    RankedMutexLock lock(&shard.mu);
    for (auto& [granule, reference] : shard.by_granule) delete reference;
  }
}

absl::StatusOr<uint32_t> References::NewSlot() {
  RankedMutexLock lock(&slots_mu_);
  if (!free_slots_.empty()) {
    const uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }
  if (slots_used_ == slot_capacity_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this process refers to ", slot_capacity_,
                     " shared blocks, the most there can be; drop Buffers first"));
  }
  const uint32_t slot = slots_used_++;
  // Before the slot is used: the daemon reads no further than this. seq_cst: ahead of the slot's
  // first intent in the order that the daemon's scan is part of.
  segment_->slots_used.store(slots_used_, std::memory_order_seq_cst);
  return slot;
}

void References::FreeSlot(uint32_t slot) {
  // release: the reference that the slot spoke of is gone before the slot is.
  SlotAt(slot).store(Slot().bits(), std::memory_order_release);
  RankedMutexLock lock(&slots_mu_);
  free_slots_.push_back(slot);
}

uint32_t References::slots_in_use() {
  RankedMutexLock lock(&slots_mu_);
  return slots_used_ - static_cast<uint32_t>(free_slots_.size());
}

absl::StatusOr<HandleBits> References::Share(Reference* reference, uint64_t length) {
  const GranuleId granule = reference->granule();
  Shard& shard = ShardOf(granule);
  RankedMutexLock lock(&shard.mu);
  if (reference->slot_ == Reference::kNoSlot) {
    absl::StatusOr<uint32_t> slot = NewSlot();
    if (!slot.ok()) return slot.status();
    // Rule 1: HELD first. If this process dies before the CAS, refs 0 proves the slot uncounted.
    SlotAt(*slot).store(Slot(SlotState::kHeld, granule).bits(), std::memory_order_seq_cst);
    layout::SharedWord& shared = range_->WordOf(granule);
    uint64_t bits = shared.load(std::memory_order_seq_cst);
    if (length > layout::kMaxHandleLength) {
      // Before the word: whoever opens the block finds it.
      layout::LengthOf(range_->TableOf(ArenaOf(granule)), PageOf(granule))
          .store(length, std::memory_order_release);
    }
    do {
      if (!BlockWord(bits).is_private()) {
        FreeSlot(*slot);
        return absl::FailedPreconditionError(
            absl::StrCat("block word ", absl::Hex(bits), " of granule ", granule.value(),
                         " is not private although this process owns the block: some process of "
                         "the pool wrote over the block table; drop the buffer"));
      }
      // release: what was written to the block comes before; pairs with the acquire in Acquire.
    } while (!shared.compare_exchange_weak(bits, BlockWord(bits).Shared().bits(),
                                           std::memory_order_seq_cst));
    reference->slot_ = *slot;
    reference->generation_ = BlockWord(bits).generation();
    reference->length_ = length;
    shard.by_granule.emplace(granule.value(), reference);
    counters().shares.fetch_add(1, std::memory_order_relaxed);
  }
  HandleBits handle;
  handle.incarnation = incarnation_;
  handle.granule = granule;
  handle.start = static_cast<uint32_t>(reference->offset_.value() % kGranuleBytes);
  handle.length =
      reference->length_ > layout::kMaxHandleLength ? 0 : static_cast<uint32_t>(reference->length_);
  handle.generation = reference->generation_;
  return handle;
}

bool References::IsShared(Reference* reference) {
  RankedMutexLock lock(&ShardOf(reference->granule()).mu);
  return reference->slot_ != Reference::kNoSlot;
}

References::Acquired References::Acquire(uint32_t slot, GranuleId granule, uint64_t generation) {
  std::atomic<uint64_t>& own = SlotAt(slot);
  layout::SharedWord& shared = range_->WordOf(granule);
  const uint64_t acquiring = Slot(SlotState::kAcquiring, granule).bits();
  const auto refuse = [&](Acquired why) {
    own.store(Slot().bits(), std::memory_order_release);  // f
    return why;
  };
  own.store(acquiring, std::memory_order_seq_cst);         // a
  uint64_t bits = shared.load(std::memory_order_seq_cst);  // b
  for (;;) {
    const BlockWord word(bits);
    if (word.frozen()) return refuse(Acquired::kFrozen);
    if (word.generation() != generation || !word.is_shared()) return refuse(Acquired::kRefused);
    if (word.refs() == layout::kMaxRefs) return refuse(Acquired::kFull);
    if (own.load(std::memory_order_seq_cst) != acquiring) return refuse(Acquired::kFrozen);  // c
    // d. acquire: pairs with the release of the sharer; its writes to the block are seen.
    if (shared.compare_exchange_weak(bits, word.Acquired().bits(), std::memory_order_seq_cst)) {
      break;
    }
  }
  uint64_t expected = acquiring;  // e
  if (!own.compare_exchange_strong(expected, Slot(SlotState::kHeld, granule).bits(),
                                   std::memory_order_seq_cst)) {
    return refuse(Acquired::kFrozen);  // the recount left this reference out: nothing to undo
  }
  return Acquired::kDone;
}

References::Released References::ReleaseWord(uint32_t slot, GranuleId granule) {
  std::atomic<uint64_t>& own = SlotAt(slot);
  layout::SharedWord& shared = range_->WordOf(granule);
  const uint64_t releasing = Slot(SlotState::kReleasing, granule).bits();
  uint64_t bits = shared.load(std::memory_order_seq_cst);  // b
  for (;;) {
    const BlockWord word(bits);
    if (word.frozen()) return Released::kFrozen;
    if (own.load(std::memory_order_seq_cst) != releasing) return Released::kNone;  // c
    if (word.refs() == 0) return Released::kNone;  // written over: nothing of ours is in it
    // d. release: this process's reads and writes of the block come before its reuse.
    if (shared.compare_exchange_weak(bits, word.Released().bits(), std::memory_order_seq_cst)) {
      return word.refs() == 1 ? Released::kFreed : Released::kLivesOn;
    }
  }
}

References::Dropped References::AfterRelease(Released released, uint32_t slot, PoolOffset offset,
                                             bool owned) {
  if (released == Released::kFrozen) {
    RankedMutexLock lock(&waiting_mu_);
    pending_.push_back(Pending{slot, offset, owned});
    any_waiting_.store(true, std::memory_order_relaxed);
    return Dropped::kNothing;
  }
  const GranuleId granule = GranuleOf(offset);
  layout::BlockTable& table = range_->TableOf(ArenaOf(granule));
  if (released == Released::kFreed && !owned) layout::SetHint(table, PageOf(granule));
  FreeSlot(slot);  // before the block is reused, so that the slot cannot be taken for its next life
  counters().releases.fetch_add(1, std::memory_order_relaxed);
  if (!owned) return Dropped::kNothing;
  if (released == Released::kFreed && layout::CollectBlock(layout::WordOf(table, granule))) {
    return Dropped::kFreeBlock;
  }
  cache_->LetGo(offset);
  return Dropped::kNothing;
}

References::Dropped References::Drop(Reference* reference) {
  uint32_t owners = reference->owners_.load(std::memory_order_relaxed);
  while (owners > 1) {
    // release: pairs with the acquire below; this owner's accesses come before the release.
    if (reference->owners_.compare_exchange_weak(owners, owners - 1, std::memory_order_release,
                                                 std::memory_order_relaxed)) {
      return Dropped::kNothing;
    }
  }
  const GranuleId granule = reference->granule();
  Shard& shard = ShardOf(granule);
  const PoolOffset offset = reference->offset_;
  const bool owned = reference->owned_;
  uint32_t slot;
  Released released;
  {
    RankedMutexLock lock(&shard.mu);
    // An open of this process may have come in between.
    if (reference->owners_.fetch_sub(1, std::memory_order_acq_rel) > 1) return Dropped::kNothing;
    slot = reference->slot_;
    if (slot == Reference::kNoSlot) {
      released = Released::kNone;
    } else {
      shard.by_granule.erase(granule.value());
      uint64_t held = Slot(SlotState::kHeld, granule).bits();  // a
      // Only a recount changes another's slot, and never a HELD one.
      const bool ours = SlotAt(slot).compare_exchange_strong(
          held, Slot(SlotState::kReleasing, granule).bits(), std::memory_order_seq_cst);
      released = ours ? ReleaseWord(slot, granule) : Released::kNone;
    }
  }
  delete reference;
  if (slot == Reference::kNoSlot) return owned ? Dropped::kFreeBlock : Dropped::kNothing;
  return AfterRelease(released, slot, offset, owned);
}

absl::StatusOr<uint64_t> References::CheckedLength(const HandleBits& handle) {
  uint64_t length = handle.length;
  if (length == 0) {
    length = layout::LengthOf(range_->TableOf(ArenaOf(handle.granule)), PageOf(handle.granule))
                 .load(std::memory_order_acquire);
  }
  if (length == 0 || !range_->Covers(handle.offset(), length)) {
    return absl::DataLossError(
        absl::StrCat("a length of ", length, " at offset ", handle.offset().value(),
                     " leaves the pool: some process wrote over the block table"));
  }
  return length;
}

absl::StatusOr<References::Opened> References::OpenOnce(const HandleBits& handle, bool* frozen) {
  const GranuleId granule = handle.granule;
  Shard& shard = ShardOf(granule);
  const auto freed = [] {
    return absl::NotFoundError("the block was freed: nobody held it when this handle was opened");
  };
  Reference* reference;
  {
    RankedMutexLock lock(&shard.mu);
    if (auto it = shard.by_granule.find(granule.value()); it != shard.by_granule.end()) {
      reference = it->second;
      if (reference->generation_ != handle.generation || reference->offset_ != handle.offset()) {
        return freed();
      }
      // A handle that was sent and comes back takes the place that was kept for it.
      if (reference->parked_) {
        reference->parked_ = false;
      } else {
        AddOwner(reference);
      }
      counters().opens.fetch_add(1, std::memory_order_relaxed);
      return Opened{reference, reference->length_};
    }
    absl::StatusOr<uint32_t> slot = NewSlot();
    if (!slot.ok()) return slot.status();
    const Acquired acquired = Acquire(*slot, granule, handle.generation);
    if (acquired != Acquired::kDone) FreeSlot(*slot);
    switch (acquired) {
      case Acquired::kRefused:
        return freed();
      case Acquired::kFull:
        return absl::ResourceExhaustedError(
            absl::StrCat("the block has ", layout::kMaxRefs, " references, the most there can be"));
      case Acquired::kFrozen:
        *frozen = true;
        return absl::UnavailableError(
            "the block's references are being recounted after a death; try again");
      case Acquired::kDone:
        break;
    }
    reference = new Reference(handle.offset(), /*owned=*/false);
    reference->slot_ = *slot;
    reference->generation_ = handle.generation;
    absl::StatusOr<uint64_t> length = CheckedLength(handle);
    reference->length_ = length.ok() ? *length : 0;
    shard.by_granule.emplace(granule.value(), reference);
  }
  absl::Status status = reference->length_ != 0
                            ? range_->EnsureMapped(handle.offset(), reference->length_)
                            : CheckedLength(handle).status();
  if (status.ok() && reference->length_ == 0) status = absl::DataLossError("the length changed");
  if (!status.ok()) {
    (void)Drop(reference);  // not owned: there is nothing to free
    return status;
  }
  counters().opens.fetch_add(1, std::memory_order_relaxed);
  return Opened{reference, reference->length_};
}

absl::StatusOr<References::Opened> References::Open(const HandleBits& handle) {
  if (handle.incarnation != incarnation_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the handle is of pool incarnation ", handle.incarnation, ", this session is attached to ",
        incarnation_, ": another pool, or this one before it was lost"));
  }
  if (handle.length > layout::kMaxHandleLength ||
      (handle.length == 0 && OffsetOf(handle.granule).value() % kPageBytes != 0) ||
      !range_->Covers(handle.offset(), std::max<uint64_t>(handle.length, 1))) {
    return absl::InvalidArgumentError("no pool gave out this handle: it names no place in it");
  }
  absl::Status mapped = range_->EnsureMapped(handle.offset(), 1);
  if (!mapped.ok()) return mapped;
  absl::Time deadline = absl::InfiniteFuture();
  absl::Duration pause = absl::Microseconds(50);
  for (;;) {
    bool frozen = false;
    absl::StatusOr<Opened> opened = OpenOnce(handle, &frozen);
    if (!frozen) return opened;
    const absl::Time now = absl::Now();
    deadline = std::min(deadline, now + kFrozenPatience);
    if (now >= deadline) return opened;
    absl::SleepFor(pause);
    pause = std::min(2 * pause, absl::Milliseconds(5));
  }
}

void References::Park(Reference* reference) {
  const GranuleId granule = reference->granule();
  Shard& shard = ShardOf(granule);
  {
    RankedMutexLock lock(&shard.mu);
    if (!reference->parked_) {
      reference->parked_ = true;
      reference->parked_refs_ =
          BlockWord(range_->WordOf(granule).load(std::memory_order_acquire)).refs();
      RankedMutexLock waiting(&waiting_mu_);
      parked_.push_back(granule);
      any_waiting_.store(true, std::memory_order_relaxed);
      return;
    }
  }
  // Parked already: one place is kept for all handles of a block that are on their way.
  const Dropped dropped = Drop(reference);
  SPANPOOL_CHECK(dropped == Dropped::kNothing);  // the parked owner remains
}

bool References::TryUnpark(GranuleId granule, bool always, std::vector<PoolOffset>* to_free) {
  Reference* reference;
  {
    RankedMutexLock lock(&ShardOf(granule).mu);
    auto& by_granule = ShardOf(granule).by_granule;
    const auto it = by_granule.find(granule.value());
    if (it == by_granule.end() || !it->second->parked_) return true;
    reference = it->second;
    const BlockWord word(range_->WordOf(granule).load(std::memory_order_acquire));
    if (!always && word.refs() <= reference->parked_refs_) return false;
    reference->parked_ = false;
  }
  const PoolOffset offset = reference->offset_;
  if (Drop(reference) == Dropped::kFreeBlock) to_free->push_back(offset);
  return true;
}

std::vector<PoolOffset> References::Settle() {
  if (!any_waiting_.load(std::memory_order_relaxed)) return {};
  return SettleSome(kParkedPerSettle, /*always=*/false);
}

std::vector<PoolOffset> References::SettleSome(size_t most_parked, bool always) {
  std::vector<PoolOffset> to_free;
  std::vector<Pending> pending;
  std::vector<GranuleId> parked;
  {
    RankedMutexLock lock(&waiting_mu_);
    pending.swap(pending_);
    while (!parked_.empty() && parked.size() < most_parked) {
      parked.push_back(parked_.front());
      parked_.pop_front();
    }
  }
  for (const Pending& release : pending) {
    const Released released = ReleaseWord(release.slot, GranuleOf(release.offset));
    if (AfterRelease(released, release.slot, release.offset, release.owned) ==
        Dropped::kFreeBlock) {
      to_free.push_back(release.offset);
    }
  }
  std::vector<GranuleId> still_parked;
  for (const GranuleId granule : parked) {
    if (!TryUnpark(granule, always, &to_free)) still_parked.push_back(granule);
  }
  RankedMutexLock lock(&waiting_mu_);
  parked_.insert(parked_.end(), still_parked.begin(), still_parked.end());
  any_waiting_.store(!pending_.empty() || !parked_.empty(), std::memory_order_relaxed);
  return to_free;
}

absl::Status References::Close() {
  const absl::Time deadline = absl::Now() + kFrozenPatience;
  for (;;) {
    // Blocks that come free are in spans which are all returned next.
    (void)SettleSome(SIZE_MAX, /*always=*/true);
    if (!any_waiting_.load(std::memory_order_relaxed)) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return absl::UnavailableError("a block is still being recounted after a death");
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
}

}  // namespace spanpool::internal

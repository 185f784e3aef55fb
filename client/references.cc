#include "client/references.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "allocator/check.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/reference_protocol.h"
#include "proto/layout/step.h"

namespace spanpool::internal {
namespace {

using layout::BlockWord;
using layout::HandleBits;
using layout::OpenResult;
using layout::ReleaseResult;
using layout::Slot;
using layout::SlotState;
using layout::TakeResult;

// A recount takes microseconds; one that takes this long has died with its daemon.
constexpr absl::Duration kFrozenPatience = absl::Seconds(1);

// Waits for a word that is frozen, longer each time, but not for ever.
class FrozenWait {
 public:
  // False: that was long enough.
  bool Again() {
    const absl::Time now = absl::Now();
    deadline_ = std::min(deadline_, now + kFrozenPatience);
    if (now >= deadline_) return false;
    absl::SleepFor(pause_);
    pause_ = std::min(2 * pause_, absl::Milliseconds(5));
    return true;
  }

 private:
  absl::Time deadline_ = absl::InfiniteFuture();
  absl::Duration pause_ = absl::Microseconds(50);
};

absl::Status BeingRecounted() {
  return absl::UnavailableError(
      "the block's references are being recounted after a death; try again");
}

absl::Status WrittenOver(GranuleId granule, BlockWord word, const char* what) {
  return absl::FailedPreconditionError(
      absl::StrCat("block word ", absl::Hex(word.bits()), " of granule ", granule.value(), " ",
                   what, ": some process of the pool wrote over the block table; drop the buffer"));
}

absl::Status NotPrivate(GranuleId granule, BlockWord word) {
  return WrittenOver(granule, word, "is not private although this process owns it");
}

}  // namespace

References::References(uint32_t incarnation, layout::SessionSegment* segment,
                       uint32_t slot_capacity, AddressRange* range, SessionCache* cache,
                       std::function<void()> deferred)
    : incarnation_(incarnation),
      slot_words_(layout::SlotsOf(segment)),
      notes_(layout::NotesOf(segment)),
      range_(range),
      tables_(range->tables()),
      cache_(cache),
      deferred_(std::move(deferred)),
      slots_(segment, slot_capacity) {}

absl::Status References::NoSlot() {
  return absl::ResourceExhaustedError(
      "this process holds as many references to shared blocks as there can be; drop Buffers first");
}

uint32_t References::slots_in_use() {
  uint32_t in_use = 0;
  const uint32_t end = slots_.slots_used();
  for (uint32_t slot = 0; slot < end; ++slot) {
    if (Slot(SlotAt(slot).load(std::memory_order_relaxed)).state() != SlotState::kFree) ++in_use;
  }
  return in_use;
}

absl::Status References::Share(PoolOffset offset, uint64_t length, Held* held, HandleBits* handle) {
  const GranuleId granule = GranuleOf(offset);
  const BlockWord word(tables_.WordOf(granule).load(std::memory_order_acquire));
  if (!word.is_private()) return NotPrivate(granule, word);
  SlotStocks::Stock& mine = slots_.Mine();
  const uint32_t slot = slots_.Take(mine);
  if (slot == SlotStocks::kNoSlot) return NoSlot();
  ShareAs(slot, offset, length, word);
  mine.CountShare();
  *handle = HandleOf(offset, length, word);
  *held = Held(slot, /*owned=*/true);
  return absl::OkStatus();
}

absl::StatusOr<References::Opened> References::OpenSlot(PoolOffset offset, uint64_t generation) {
  const GranuleId granule = GranuleOf(offset);
  layout::SharedWord& shared = tables_.WordOf(granule);
  SlotStocks::Stock& mine = slots_.Mine();
  const uint32_t slot = slots_.Take(mine);
  if (slot == SlotStocks::kNoSlot) return NoSlot();
  FrozenWait wait;
  layout::Opening opening;
  do {
    opening = layout::OpenBlock(SlotAt(slot), shared, granule, generation, layout::kMaxClientRefs);
  } while (opening.result == OpenResult::kFrozen && wait.Again());
  if (opening.result != OpenResult::kOpened) slots_.Give(mine, slot);
  switch (opening.result) {
    case OpenResult::kRefused:
      return absl::NotFoundError("the block was freed: nobody held it when this handle was opened");
    case OpenResult::kFull:
      return absl::ResourceExhaustedError(absl::StrCat("the block has ", layout::kMaxClientRefs,
                                                       " references, the most there can "
                                                       "be; Buffer::Ref needs none"));
    case OpenResult::kFrozen:
      return BeingRecounted();
    case OpenResult::kOpened:
      break;
  }
  return Opened{.held = Held(slot, /*owned=*/false), .offset = offset, .counted = opening.counted};
}

bool References::Take(const Opened& opened) {
  if (!opened.counted.sent()) return false;
  layout::SharedWord& shared = tables_.WordOf(GranuleOf(opened.offset));
  const uint32_t number = opened.counted.send_number();
  FrozenWait wait;
  TakeResult result;
  do {
    result = layout::TakeSent(shared, number);
  } while (result == TakeResult::kFrozen && wait.Again());
  if (result == TakeResult::kFrozen) {
    // The reference is held, and good. The sender is told later.
    Enlist({.slot = opened.held.slot(),
            .offset = opened.offset,
            .owned = false,
            .taken = true,
            .number = number});
  }
  return result == TakeResult::kTaken;
}

absl::StatusOr<uint64_t> References::CheckedLength(const HandleBits& handle) {
  uint64_t length = handle.length;
  if (length == 0) {
    length = layout::LengthOf(tables_.MarksOf(ArenaOf(handle.granule)), PageOf(handle.granule))
                 .load(std::memory_order_acquire);
  }
  if (length == 0 || !range_->Covers(handle.offset(), length)) {
    return absl::DataLossError(
        absl::StrCat("a length of ", length, " at offset ", handle.offset().value(),
                     " leaves the pool: some process wrote over the block table"));
  }
  return length;
}

absl::Status References::WhyImpossible(const HandleBits& handle) const {
  if (handle.incarnation != incarnation_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the handle is of pool incarnation ", handle.incarnation, ", this session is attached to ",
        incarnation_, ": another pool, or this one before it was lost"));
  }
  return absl::InvalidArgumentError("no pool gave out this handle: it names no place in it");
}

absl::Status References::Open(const HandleBits& handle, Opened* opened, bool takes) {
  if (!IsPossible(handle)) return WhyImpossible(handle);
  const PoolOffset offset = handle.offset();
  const uint64_t known_length = handle.length;  // 0: it stands in the block table
  absl::Status status = range_->EnsureMapped(offset, std::max<uint64_t>(known_length, 1));
  if (!status.ok()) return status;
  // It will be looked at; so its first line may come while the word does.
  __builtin_prefetch(range_->PointerTo(offset));
  const absl::StatusOr<Opened> in_slot = OpenSlot(offset, handle.generation);
  if (!in_slot.ok()) return in_slot.status();
  *opened = *in_slot;
  if (takes) (void)Take(*opened);
  opened->length = known_length;
  if (known_length == 0) {
    const absl::StatusOr<uint64_t> length = CheckedLength(handle);
    status = length.status();
    if (status.ok()) status = range_->EnsureMapped(offset, *length);
    if (!status.ok()) {
      (void)Release(opened->held, offset);  // there is nothing to free
      return status;
    }
    opened->length = *length;
  }
  slots_.Mine().CountOpen();
  return absl::OkStatus();
}

absl::StatusOr<Held> References::OpenAgain(PoolOffset offset) {
  const BlockWord word(tables_.WordOf(GranuleOf(offset)).load(std::memory_order_acquire));
  const absl::StatusOr<Opened> opened = OpenSlot(offset, word.generation());
  if (opened.ok()) return opened->held;
  if (!absl::IsNotFound(opened.status())) return opened.status();
  return absl::DataLossError("the block table was written over");  // we hold the block
}

uint32_t References::OthersOf(PoolOffset offset) const {
  // acquire: pairs with the release of those who let go, whose use of the block is over.
  const BlockWord word(tables_.WordOf(GranuleOf(offset)).load(std::memory_order_acquire));
  // Less than one is not what an honest process leaves there.
  return word.refs() <= 1 ? 0 : word.refs() - 1;
}

References::Dropped References::FinishRelease(Begun begun, Held held, PoolOffset offset) {
  const GranuleId granule = GranuleOf(offset);
  layout::SharedWord& shared = tables_.WordOf(granule);
  layout::SharedSlot& own = SlotAt(held.slot());
  switch (begun) {
    case Begun::kFinished:
      return held.owned() ? Dropped::kFreeBlock : Dropped::kNothing;
    case Begun::kNothing:
      if (any_untaken_.load(std::memory_order_relaxed) && DeferRelease(held.slot())) {
        return Dropped::kNothing;
      }
      layout::PrefetchForChange(shared);
      layout::BeginRelease(own, granule);
      break;
    case Begun::kReleasing:
      break;
  }
  return AfterRelease(layout::ReleaseBlock(own, shared, granule, /*collects=*/held.owned()), held,
                      offset);
}

References::Dropped References::AfterRelease(ReleaseResult released, Held held, PoolOffset offset) {
  if (released == ReleaseResult::kFrozen) {
    Enlist({.slot = held.slot(), .offset = offset, .owned = held.owned()});
    return Dropped::kNothing;
  }
  if (released == ReleaseResult::kFreed && !held.owned()) {
    layout::SetHint(tables_.MarksOf(ArenaOf(offset)), PageOf(offset));
  }
  // Before the block is reused, so that the slot cannot be taken for its next life.
  layout::FreeSlot(SlotAt(held.slot()));
  SlotStocks::Stock& mine = slots_.Mine();
  slots_.Give(mine, held.slot());
  mine.CountRelease();
  if (released == ReleaseResult::kCollected) return Dropped::kFreeBlock;
  // Others have it; or, freed at the largest generation, nobody ever will again.
  if (held.owned()) cache_->LetGo(offset);
  return Dropped::kNothing;
}

absl::Status References::Send(Held held, PoolOffset offset) {
  if (any_untaken_.load(std::memory_order_relaxed)) (void)SettleSome(0);
  const GranuleId granule = GranuleOf(offset);
  layout::SharedWord& shared = tables_.WordOf(granule);
  layout::SharedSlot& own = SlotAt(held.slot());
  FrozenWait wait;
  const auto refuse = [&](absl::Status status) {
    SPANPOOL_STEP("send.undo");
    own.store(Slot(SlotState::kHeld, granule).bits(), std::memory_order_release);
    return status;
  };
  uint64_t bits = shared.load(std::memory_order_acquire);
  for (int tries = 0;; ++tries) {
    const BlockWord word(bits);
    if (word.frozen() || tries == layout::kMaxWordTries) {
      if (!wait.Again()) return refuse(BeingRecounted());
      bits = shared.load(std::memory_order_acquire);
      tries = 0;
      continue;
    }
    if (!word.is_shared()) return refuse(WrittenOver(granule, word, "says that nobody holds it"));
    if (word.sent()) {
      return refuse(absl::FailedPreconditionError(
          "the block was sent before, and nobody has opened it since; send it again when it was, "
          "or Share() it and keep the Buffer"));
    }
    SPANPOOL_STEP("send.10a");
    own.store(Slot::Transit(granule, word.next_send_number()).bits(), std::memory_order_release);
    SPANPOOL_STEP("send.10b");
    if (shared.compare_exchange_weak(bits, word.Sent().bits(), std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      break;
    }
  }
  slots_.Mine().CountSend();
  EnlistTransit({.slot = held.slot(), .offset = offset, .owned = held.owned()});
  return absl::OkStatus();
}

absl::Status References::SendPrivate(PoolOffset offset, uint64_t length) {
  const GranuleId granule = GranuleOf(offset);
  layout::SharedWord& shared = tables_.WordOf(granule);
  const BlockWord word(shared.load(std::memory_order_acquire));
  if (!word.is_private()) return NotPrivate(granule, word);
  SlotStocks::Stock& mine = slots_.Mine();
  const uint32_t slot = slots_.Take(mine);
  if (slot == SlotStocks::kNoSlot) return NoSlot();
  StoreLength(offset, length);
  SPANPOOL_STEP("send.10a");
  SlotAt(slot).store(Slot::Transit(granule, word.next_send_number()).bits(),
                     std::memory_order_release);
  SPANPOOL_STEP("send.10b");
  // As in ShareAs.
  shared.store(word.Shared().Sent().bits(), std::memory_order_release);
  mine.CountSend();
  EnlistTransit({.slot = slot, .offset = offset, .owned = true});
  return absl::OkStatus();
}

absl::StatusOr<References::Opened> References::TakeBack(const HandleBits& handle) {
  const absl::Status not_there = absl::NotFoundError(
      "the handle is not under way from this process: it was opened, or never sent");
  if (!IsPossible(handle)) return WhyImpossible(handle);
  const PoolOffset offset = handle.offset();
  const GranuleId granule = handle.granule;
  if (!range_->IsMapped(ArenaOf(offset))) return not_there;
  const BlockWord word(tables_.WordOf(granule).load(std::memory_order_acquire));
  if (word.generation() != handle.generation || !word.sent()) return not_there;
  const uint64_t under_way = Slot::Transit(granule, word.send_number()).bits();
  const uint32_t end = slots_.slots_used();
  uint32_t mine = 0;
  while (mine < end && SlotAt(mine).load(std::memory_order_relaxed) != under_way) ++mine;
  if (mine == end) return not_there;
  // What the receiver would do. The slot that was in transit is released as if it had.
  absl::StatusOr<Opened> opened = OpenSlot(offset, handle.generation);
  if (absl::IsNotFound(opened.status())) return not_there;
  if (!opened.ok()) return opened;
  const bool taken = Take(*opened);
  const absl::StatusOr<uint64_t> length = CheckedLength(handle);
  if (taken && length.ok()) {
    opened->length = *length;
    return opened;
  }
  (void)Release(opened->held, offset);
  return taken ? length.status() : not_there;
}

void References::Retarget(const Transit& transit, const TransitNote& note) {
  SPANPOOL_DCHECK(range_->IsMapped(ArenaOf(note.entry)) && note.entry.value() % 8 == 0);
  layout::SlotNote& written = notes_[transit.slot];
  SPANPOOL_STEP("transit.12a.entry");
  written.entry.store(note.entry.value(), std::memory_order_relaxed);
  SPANPOOL_STEP("transit.12a.value");
  written.value.store(note.value, std::memory_order_relaxed);
  SPANPOOL_STEP("transit.12a");
  // release: the note comes first.
  SlotAt(transit.slot)
      .store(Slot::NotedTransit(GranuleOf(transit.offset)).bits(), std::memory_order_release);
}

void References::EndTransit(const Transit& transit) {
  slots_.Mine().CountSend();
  EnlistTransit(transit);
}

Held References::CancelTransit(const Transit& transit) {
  SPANPOOL_STEP("transit.cancel");
  SlotAt(transit.slot)
      .store(Slot(SlotState::kHeld, GranuleOf(transit.offset)).bits(), std::memory_order_release);
  return Held(transit.slot, transit.owned);
}

bool References::IsUnderWay(const Transit& transit) {
  const Slot slot(SlotAt(transit.slot).load(std::memory_order_relaxed));
  if (!slot.noted()) {
    const uint64_t bits = tables_.WordOf(GranuleOf(transit.offset)).load(std::memory_order_acquire);
    return BlockWord(bits).IsUnderWay(slot.send_number());
  }
  if (transit.channel.has_value()) {
    // A channel that nobody has open: its entries are left as they were, for whoever gets the
    // block.
    const BlockWord word(tables_.WordOf(transit.channel->granule).load(std::memory_order_acquire));
    if (word.generation() != transit.channel->generation || !word.is_shared()) return false;
  }
  const layout::SlotNote& note = notes_[transit.slot];
  auto* const entry = reinterpret_cast<uint64_t*>(
      range_->PointerTo(PoolOffset(note.entry.load(std::memory_order_relaxed))));
  // acquire: pairs with whoever emptied the entry, after it opened the block.
  return std::atomic_ref<uint64_t>(*entry).load(std::memory_order_acquire) ==
         note.value.load(std::memory_order_relaxed);
}

void References::NoteWaitingLocked() {
  any_waiting_.store(!pending_.empty() || !transits_.empty(), std::memory_order_seq_cst);
  any_untaken_.store(std::any_of(pending_.begin(), pending_.end(),
                                 [](const Pending& pending) { return pending.taken; }),
                     std::memory_order_relaxed);
}

void References::Enlist(const Pending& pending) {
  {
    RankedMutexLock lock(&mu_);
    pending_.push_back(pending);
    NoteWaitingLocked();
  }
  deferred_();
}

void References::EnlistTransit(const Transit& transit) {
  RankedMutexLock lock(&mu_);
  transits_.push_back(transit);
  if (!any_waiting()) NoteWaitingLocked();
}

bool References::DeferRelease(uint32_t slot) {
  RankedMutexLock lock(&mu_);
  for (Pending& pending : pending_) {
    if (pending.slot != slot || !pending.taken) continue;
    pending.then_release = true;
    return true;
  }
  return false;
}

bool References::FinishLocked(Pending* pending, ReleaseResult* released) {
  const GranuleId granule = GranuleOf(pending->offset);
  layout::SharedWord& shared = tables_.WordOf(granule);
  layout::SharedSlot& own = SlotAt(pending->slot);
  if (pending->taken) {
    if (layout::TakeSent(shared, pending->number) == TakeResult::kFrozen) return false;
    if (!pending->then_release) return true;
    pending->taken = false;
    layout::BeginRelease(own, granule);
  }
  *released = layout::ReleaseBlock(own, shared, granule, /*collects=*/pending->owned);
  return *released != ReleaseResult::kFrozen;
}

References::Freed References::SettleSome(size_t most_transits) {
  struct Finished {
    Pending pending;
    ReleaseResult released;
  };
  absl::InlinedVector<Finished, 2> finished;
  absl::InlinedVector<Transit, 2> transits;
  {
    RankedMutexLock lock(&mu_);
    for (size_t i = 0; i < pending_.size();) {
      Finished each{pending_[i], ReleaseResult::kFrozen};
      if (FinishLocked(&each.pending, &each.released)) {
        if (each.released != ReleaseResult::kFrozen) finished.push_back(each);
        pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(i));
      } else {
        pending_[i++] = each.pending;
      }
    }
    const size_t count = std::min(most_transits, transits_.size());
    transits.assign(transits_.begin(), transits_.begin() + static_cast<ptrdiff_t>(count));
    transits_.erase(transits_.begin(), transits_.begin() + static_cast<ptrdiff_t>(count));
    if (pending_.empty() || transits_.empty()) NoteWaitingLocked();
  }
  Freed to_free;
  for (const Finished& each : finished) {
    if (AfterRelease(each.released, Held(each.pending.slot, each.pending.owned),
                     each.pending.offset) == Dropped::kFreeBlock) {
      to_free.push_back(each.pending.offset);
    }
  }
  // To the end, so that the next call looks at others.
  const auto gone = std::partition(transits.begin(), transits.end(),
                                   [this](const Transit& each) { return IsUnderWay(each); });
  if (gone != transits.begin()) {
    if (most_transits == SIZE_MAX) {
      for (auto each = transits.begin(); each != gone; ++each) {
        if (std::exchange(each->owned, false)) cache_->LetGo(each->offset);
      }
    }
    RankedMutexLock lock(&mu_);
    transits_.insert(transits_.end(), transits.begin(), gone);
    NoteWaitingLocked();
  }
  for (auto each = gone; each != transits.end(); ++each) {
    if (Release(Held(each->slot, each->owned), each->offset) == Dropped::kFreeBlock) {
      to_free.push_back(each->offset);
    }
  }
  return to_free;
}

absl::Status References::Close() {
  FrozenWait wait;
  for (;;) {
    // Blocks that come free are in spans which are all returned next.
    (void)SettleSome(SIZE_MAX);
    {
      RankedMutexLock lock(&mu_);
      if (pending_.empty()) return absl::OkStatus();
    }
    if (!wait.Again()) return BeingRecounted();
  }
}

}  // namespace spanpool::internal

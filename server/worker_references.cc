#include "server/worker_references.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "allocator/check.h"
#include "proto/layout/block_word.h"
#include "proto/layout/reference_protocol.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/step.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::OpenResult;
using layout::ReleaseResult;
using layout::Slot;
using layout::SlotState;
using layout::TakeResult;

// A recount is over in a moment; then Open is tried again.
constexpr absl::Duration kFrozenPatience = absl::Milliseconds(100);
constexpr absl::Duration kFrozenPause = absl::Microseconds(200);
// How often to look whether what is under way was taken.
constexpr absl::Duration kLookInterval = absl::Milliseconds(10);
// At how many at a time.
constexpr size_t kLooksAtOnce = 4096;

// Takes up to kLooksAtOnce out of the front of `queue`.
template <typename T>
std::vector<T> TakeSome(std::deque<T>* queue) {
  const auto end = queue->begin() + static_cast<ptrdiff_t>(std::min(queue->size(), kLooksAtOnce));
  std::vector<T> some(queue->begin(), end);
  queue->erase(queue->begin(), end);
  return some;
}

}  // namespace

WorkerReferences::WorkerReferences(PoolArenas* arenas, std::unique_ptr<SessionMemory> memory)
    : arenas_(arenas), memory_(std::move(memory)) {}

void WorkerReferences::Resume(const absl::flat_hash_set<uint32_t>& named, absl::Time deadline) {
  if (memory_ == nullptr) return;
  std::vector<uint32_t> in_use;
  for (SessionMemory::SlotRange range = memory_->WrittenSlots(0);
       range.first < layout::kSlotCapacity; range = memory_->WrittenSlots(range.end)) {
    for (uint32_t i = range.first; i < range.end; ++i) {
      if (memory_->slot(i).load(std::memory_order_acquire) != 0) in_use.push_back(i);
    }
  }
  RankedMutexLock lock(&mu_);
  for (const uint32_t index : in_use) {
    for (; used_ < index; ++used_) free_.push_back(used_);
    used_ = index + 1;
    layout::SharedSlot& shared = memory_->slot(index);
    const Slot slot(shared.load(std::memory_order_acquire));
    // Only the daemon writes here, and only blocks that there are.
    SPANPOOL_CHECK(arenas_->WordOf(slot.granule()) != nullptr || slot.state() == SlotState::kFree);
    switch (slot.state()) {
      case SlotState::kHeld:
        if (named.contains(index)) break;
        // Rule 13: it was opened for a name that was never stored, or is gone.
        layout::BeginRelease(shared, slot.granule());
        ReleaseOrEnlistLocked(index);
        break;
      case SlotState::kTransit:
        transits_.push_back({index, deadline});
        break;
      case SlotState::kAcquiring:
      case SlotState::kReleasing:
        if (TryClear(index)) {
          free_.push_back(index);
        } else {
          unclear_.push_back(index);
        }
        break;
      default:  // FREE or VOID
        layout::FreeSlot(shared);
        free_.push_back(index);
    }
  }
}

bool WorkerReferences::TryClear(uint32_t index) {
  layout::SharedSlot& shared = memory_->slot(index);
  const Slot slot(shared.load(std::memory_order_acquire));
  if (slot.in_flight()) {
    const BlockWord word(arenas_->WordOf(slot.granule())->load(std::memory_order_acquire));
    if (word.refs() != 0) return false;
    if (word.freed()) {
      const PageId page = PageOf(slot.granule());
      layout::SetHint(arenas_->TableOf(ArenaOf(page))->marks, page);
      took_last_.store(true, std::memory_order_relaxed);
    }
  }
  layout::FreeSlot(shared);
  return true;
}

std::vector<GranuleId> WorkerReferences::Unclear() const {
  absl::flat_hash_set<GranuleId> granules;
  RankedMutexLock lock(&mu_);
  for (const uint32_t index : unclear_)
    granules.insert(Slot(memory_->slot(index).load()).granule());
  return std::vector<GranuleId>(granules.begin(), granules.end());
}

void WorkerReferences::SettleUnclear(const absl::flat_hash_set<GranuleId>& lost) {
  RankedMutexLock lock(&mu_);
  std::erase_if(unclear_, [&](uint32_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    layout::SharedSlot& shared = memory_->slot(index);
    if (lost.contains(Slot(shared.load()).granule())) layout::FreeSlot(shared);
    if (!TryClear(index)) return false;
    free_.push_back(index);
    return true;
  });
}

absl::StatusOr<uint32_t> WorkerReferences::NewSlot() {
  RankedMutexLock lock(&mu_);
  if (!free_.empty()) {
    const uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  if (memory_ == nullptr || used_ == layout::kSlotCapacity) {
    return absl::ResourceExhaustedError("the daemon can hold no more references of its own");
  }
  return used_++;
}

void WorkerReferences::GiveSlot(uint32_t slot) {
  RankedMutexLock lock(&mu_);
  free_.push_back(slot);
}

absl::StatusOr<uint32_t> WorkerReferences::Open(GranuleId granule, uint64_t generation) {
  // What clients leave is for Adopt.
  return OpenWithin(granule, generation, layout::kMaxClientRefs, kFrozenPatience);
}

absl::StatusOr<uint32_t> WorkerReferences::OpenWithin(GranuleId granule, uint64_t generation,
                                                      uint32_t most_refs, absl::Duration patience) {
  layout::SharedWord* const word = arenas_->WordOf(granule);
  if (word == nullptr) return absl::NotFoundError("there never was such a block");
  absl::StatusOr<uint32_t> slot = NewSlot();
  if (!slot.ok()) return slot.status();
  const absl::Time deadline = absl::Now() + patience;
  for (;;) {
    switch (layout::OpenBlock(memory_->slot(*slot), *word, granule, generation, most_refs).result) {
      case OpenResult::kOpened:
        return slot;
      case OpenResult::kRefused:
        GiveSlot(*slot);
        return absl::NotFoundError("the block was freed");
      case OpenResult::kFull:
        GiveSlot(*slot);
        return absl::ResourceExhaustedError(
            "the block has as many references as there can be; drop some");
      case OpenResult::kFrozen:
        if (absl::Now() < deadline) break;
        GiveSlot(*slot);
        return absl::UnavailableError(
            "the block's references are being recounted after a death; try again");
    }
    absl::SleepFor(kFrozenPause);
  }
}

bool WorkerReferences::TryRelease(uint32_t index) {
  layout::SharedSlot& slot = memory_->slot(index);
  // By now it may say VOID; the granule is the same.
  const GranuleId granule = Slot(slot.load(std::memory_order_acquire)).granule();
  layout::SharedWord* const word = arenas_->WordOf(granule);
  SPANPOOL_CHECK(word != nullptr);
  const ReleaseResult released = layout::ReleaseBlock(slot, *word, granule);
  if (released == ReleaseResult::kFrozen) return false;
  if (released == ReleaseResult::kFreed) {
    const PageId page = PageOf(granule);
    layout::SetHint(arenas_->TableOf(ArenaOf(page))->marks, page);
    took_last_.store(true, std::memory_order_relaxed);
  }
  layout::FreeSlot(slot);
  return true;
}

void WorkerReferences::Release(uint32_t index) {
  layout::SharedSlot& slot = memory_->slot(index);
  layout::BeginRelease(slot, Slot(slot.load(std::memory_order_relaxed)).granule());
  RankedMutexLock lock(&mu_);
  // Under the lock: if the recount ends after this look, the Settle that follows it finds the slot
  // on the list.
  ReleaseOrEnlistLocked(index);
}

void WorkerReferences::ReleaseOrEnlistLocked(uint32_t index) {
  if (TryRelease(index)) {
    free_.push_back(index);
  } else {
    pending_.push_back(index);
  }
}

bool WorkerReferences::IsUnderWay(Slot slot, const layout::SlotNote& note) {
  if (slot.noted()) {
    const uint64_t entry = note.entry.load(std::memory_order_relaxed);
    const absl::StatusOr<uint64_t> value = arenas_->ReadData(PoolOffset(entry));
    return value.ok() && *value == note.value.load(std::memory_order_relaxed);
  }
  const layout::SharedWord* const word = arenas_->WordOf(slot.granule());
  return word != nullptr &&
         BlockWord(word->load(std::memory_order_acquire)).IsUnderWay(slot.send_number());
}

absl::Status WorkerReferences::Adopt(Slot dead, const layout::SlotNote& note, absl::Time deadline) {
  const layout::SharedWord* const word = arenas_->WordOf(dead.granule());
  if (word == nullptr) return absl::NotFoundError("there never was such a block");
  const BlockWord now(word->load(std::memory_order_acquire));
  // The reaper recounts, and does not now: a word that is frozen all the same will stay so.
  absl::StatusOr<uint32_t> heir =
      OpenWithin(dead.granule(), now.generation(), layout::kMaxRefs, absl::ZeroDuration());
  if (!heir.ok()) return heir.status();
  layout::SlotNote& own = memory_->note(*heir);
  own.entry.store(note.entry.load(std::memory_order_relaxed), std::memory_order_relaxed);
  own.value.store(note.value.load(std::memory_order_relaxed), std::memory_order_relaxed);
  SPANPOOL_STEP("adopt.11c");
  // release: the note comes first.
  memory_->slot(*heir).store(dead.bits(), std::memory_order_release);
  RankedMutexLock lock(&mu_);
  transits_.push_back({*heir, deadline});
  return absl::OkStatus();
}

bool WorkerReferences::TryLetGo(const Transit& transit, absl::Time now) {
  const Slot slot(memory_->slot(transit.slot).load(std::memory_order_acquire));
  layout::SharedWord* const word = arenas_->WordOf(slot.granule());
  SPANPOOL_CHECK(word != nullptr);
  if (IsUnderWay(slot, memory_->note(transit.slot))) {
    if (now < transit.deadline) return false;
    // An entry of a channel is left to whoever finds that its handle opens no more.
    if (!slot.noted() && layout::TakeSent(*word, slot.send_number()) == TakeResult::kFrozen) {
      return false;
    }
  }
  Release(transit.slot);
  return true;
}

absl::Time WorkerReferences::Settle(absl::Time now) {
  std::vector<Transit> transits;
  {
    RankedMutexLock lock(&mu_);
    transits = TakeSome(&transits_);
  }
  std::erase_if(transits, [this, now](const Transit& each) { return TryLetGo(each, now); });
  RankedMutexLock lock(&mu_);
  for (const uint32_t slot : TakeSome(&pending_)) ReleaseOrEnlistLocked(slot);
  transits_.insert(transits_.end(), transits.begin(), transits.end());
  return pending_.empty() && transits_.empty() && unclear_.empty() ? absl::InfiniteFuture()
                                                                   : now + kLookInterval;
}

uint64_t WorkerReferences::transits() const {
  RankedMutexLock lock(&mu_);
  return transits_.size();
}

}  // namespace spanpool

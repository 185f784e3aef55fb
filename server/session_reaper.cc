#include "server/session_reaper.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/clock.h"
#include "proto/layout/block_word.h"
#include "proto/layout/reference_protocol.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/step.h"
#include "server/session_memory.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;

// Words in one recount. An honest process dies with one for each of its threads, and a few.
constexpr size_t kMaxBatch = 65536;
// So many make room for every slot there can be.
constexpr int kMaxRecounts = 64;
static_assert(kMaxRecounts * kMaxBatch > layout::kSlotCapacity);
constexpr uint32_t kSpansAtATime = 64;
// Blocks that are swept in about the time that a slot takes.
constexpr uint32_t kBlocksSweptPerSlot = 8;
// Slots that are read before the first of them is judged: so many words are on their way from
// memory at once, which is where most of the time would go.
constexpr uint32_t kSlotsAtATime = 32;

}  // namespace

ReapProgress SessionReaper::Reap(Session& session, uint32_t budget) {
  Session::Reaping& reaping = session.reaping;
  while (reaping.slots.first < layout::kSlotCapacity) {
    SessionMemory::SlotRange& left = reaping.slots;
    // Asked once for each run, and not for each piece of it: the kernel looks at every page.
    if (left.first == left.end) left = session.memory().WrittenSlots(left.end);
    while (left.first < left.end) {
      if (budget == 0) return ReapProgress::kMore;
      const uint32_t count = std::min({kSlotsAtATime, budget, left.end - left.first});
      ReapSlots(session, left.first, count);
      left.first += count;
      budget -= count;
    }
  }
  if (!reaping.ambiguous.empty()) {
    if (!RecountAmbiguous(session)) return ReapProgress::kPutOff;
    // A round is long: others have their turn now.
    if (!reaping.ambiguous.empty()) return ReapProgress::kMore;
  }
  // Every slot is FREE: only now may the spans be used again.
  while (session.loan_count() != 0) {
    if (budget == 0) return ReapProgress::kMore;
    const std::vector<Span*> spans = session.TakeLoans(kSpansAtATime);
    uint32_t cost = 0;
    for (const Span* span : spans) cost += 1 + span->blocks / kBlocksSweptPerSlot;
    options_.heap->ReturnAll(spans);
    options_.returned(spans.size());
    reaping.spans += spans.size();
    budget -= std::min(budget, cost);
  }
  return ReapProgress::kDone;
}

void SessionReaper::ReapSlots(Session& session, uint32_t first, uint32_t count) {
  std::array<Found, kSlotsAtATime> found;
  for (uint32_t i = 0; i < count; ++i) found[i] = ReadSlot(session, first + i);
  for (uint32_t i = 0; i < count; ++i) {
    if (!ReapSlot(session, first + i, found[i])) session.reaping.ambiguous.push_back(first + i);
  }
}

SessionReaper::Found SessionReaper::ReadSlot(Session& session, uint32_t index) {
  const Slot slot(session.memory().slot(index).load(std::memory_order_acquire));
  if (slot.bits() == 0) return {slot, nullptr};
  layout::SharedWord* const word = options_.arenas->WordOf(slot.granule());
  if (word != nullptr) layout::PrefetchForChange(*word);
  return {slot, word};
}

bool SessionReaper::ReapSlot(Session& session, uint32_t index, Found found) {
  layout::SharedSlot& shared = session.memory().slot(index);
  const auto [slot, word] = found;
  switch (slot.state()) {
    case SlotState::kFree:
      if (slot.bits() != 0) layout::FreeSlot(shared);  // free with a granule: harmless
      return true;
    case SlotState::kVoid:
      layout::FreeSlot(shared);
      return true;
    case SlotState::kHeld:
    case SlotState::kTransit:
    case SlotState::kAcquiring:
    case SlotState::kReleasing:
      break;
    default:
      options_.lie(session, "a slot in no known state");
      layout::FreeSlot(shared);
      return true;
  }
  if (word == nullptr) {
    options_.lie(session, "a slot that names a granule never lent");
    layout::FreeSlot(shared);
    return true;
  }
  if (slot.in_flight()) {
    const BlockWord now(word->load(std::memory_order_acquire));
    if (now.refs() != 0) return false;
    // The process may have set FREED and died before it set the hint.
    const PageId page = PageOf(slot.granule());
    if (now.freed()) layout::SetHint(options_.arenas->TableOf(ArenaOf(page))->marks, page);
    layout::FreeSlot(shared);
    return true;
  }
  ++session.reaping.references;
  if (slot.state() == SlotState::kTransit) ReapTransit(session, index, slot);
  DropReference(shared, *word, slot.granule());
  return true;
}

void SessionReaper::ReapTransit(Session& session, uint32_t index, Slot slot) {
  const layout::SlotNote& note = session.memory().note(index);
  if (!options_.worker->IsUnderWay(slot, note)) return;
  absl::Status adopted = options_.worker->Adopt(slot, note, absl::Now() + options_.transit_grace);
  if (adopted.ok()) return;
  options_.lost_transit(session, adopted);
  if (!slot.noted()) {
    (void)layout::TakeSent(*options_.arenas->WordOf(slot.granule()), slot.send_number());
  }
}

void SessionReaper::DropReference(layout::SharedSlot& slot, layout::SharedWord& word,
                                  GranuleId granule) {
  // The intent first: should this process die too, its successor finds it in the slot.
  layout::BeginRelease(slot, granule);
  uint64_t bits = word.load(std::memory_order_acquire);
  for (int tries = 0;; ++tries) {
    const BlockWord current(bits);
    // A sharer that died before its word said so.
    if (current.refs() == 0) break;
    if (current.frozen() || current.freed()) {
      // Nobody is recounting, and a freed word has no references: somebody scribbled.
      options_.quarantine(granule, "its word makes no sense");
      break;
    }
    if (tries == layout::kMaxWordTries) {
      options_.quarantine(granule, "its word never stood still");
      break;
    }
    SPANPOOL_STEP("reap.5c");
    if (word.compare_exchange_weak(bits, current.Released().bits(), std::memory_order_acq_rel,
                                   std::memory_order_acquire)) {
      if (current.refs() == 1) {
        const PageId page = PageOf(granule);
        layout::SetHint(options_.arenas->TableOf(ArenaOf(page))->marks, page);
      }
      break;
    }
  }
  layout::FreeSlot(slot);
}

bool SessionReaper::RecountAmbiguous(Session& session) {
  std::vector<uint32_t>& ambiguous = session.reaping.ambiguous;
  SessionMemory& memory = session.memory();
  std::vector<GranuleId> batch;
  absl::flat_hash_map<GranuleId, size_t> index;
  for (const uint32_t slot : ambiguous) {
    const GranuleId granule = Slot(memory.slot(slot).load()).granule();
    // A slot that changed since it was read is one of a liar that is not dead.
    if (options_.arenas->WordOf(granule) == nullptr || batch.size() == kMaxBatch) continue;
    if (index.emplace(granule, batch.size()).second) batch.push_back(granule);
  }
  const std::vector<Recounter::Result> results = options_.recounter->Recount(batch);
  bool any_put_off = false;
  for (size_t i = 0; i < batch.size(); ++i) {
    if (results[i] == Recounter::Result::kLost) {
      options_.quarantine(batch[i], "somebody writes over its word");
    }
    any_put_off |= results[i] == Recounter::Result::kPutOff;
  }
  std::vector<uint32_t> left;
  for (const uint32_t slot : ambiguous) {
    const auto found = index.find(Slot(memory.slot(slot).load()).granule());
    if (found != index.end() && results[found->second] == Recounter::Result::kLost) {
      layout::FreeSlot(memory.slot(slot));
    } else if (!ReapSlot(session, slot, ReadSlot(session, slot))) {
      left.push_back(slot);
    }
  }
  ambiguous.swap(left);
  if (any_put_off) return false;
  // Each round settles what it looked at. Unless what it looked at changes.
  if (++session.reaping.recounts >= kMaxRecounts && !ambiguous.empty()) {
    options_.lie(session, "slots that change although its process is dead");
    for (const uint32_t slot : ambiguous) layout::FreeSlot(memory.slot(slot));
    ambiguous.clear();
  }
  return true;
}

}  // namespace spanpool

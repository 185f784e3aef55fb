#include "server/recounter.h"

#include <algorithm>
#include <utility>

#include "allocator/check.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/reference_protocol.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/step.h"
#include "server/session_memory.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::kMaxWordTries;
using layout::Slot;
using layout::SlotState;

// A client's slot is one step further after each failure, and there are few.
constexpr int kMaxSlotTries = 1000;
// Slots of one session that are remembered after they were turned. An honest process is in the
// middle of at most a step for each reference that a block can have.
constexpr size_t kMaxTurned = layout::kMaxRefs;

// The next era after `era` that is not in `taken`; kEras: there is none.
uint32_t NextEra(uint32_t era, uint32_t taken) {
  for (uint32_t i = 1; i < layout::kEras; ++i) {
    const uint32_t next = (era + i) % layout::kEras;
    if ((taken >> next & 1) == 0) return next;
  }
  return layout::kEras;
}

}  // namespace

bool Recounter::Stands(const Turned& turned) const {
  if (turned.worker) return options_.worker->memory()->slot(turned.slot).load() == turned.bits;
  const std::shared_ptr<Session> session = turned.session.lock();
  return session != nullptr && session->memory().slot(turned.slot).load() == turned.bits;
}

uint32_t Recounter::TakenEras(GranuleId granule) {
  const auto found = turned_.find(granule);
  if (found == turned_.end()) return 0;
  remembered_ -= std::erase_if(found->second, [this](const Turned& each) { return !Stands(each); });
  uint32_t taken = 0;
  for (const Turned& each : found->second) taken |= 1u << Slot(each.bits).era() % layout::kEras;
  if (found->second.empty()) turned_.erase(found);
  return taken;
}

void Recounter::Forget() {
  remembered_ = 0;
  absl::flat_hash_map<Session*, size_t> stand;  // of each session, so far
  absl::erase_if(turned_, [&](auto& entry) {
    std::erase_if(entry.second, [&](const Turned& each) {
      if (!Stands(each)) return true;
      if (each.worker) return false;
      const std::shared_ptr<Session> session = each.session.lock();
      return session == nullptr || ++stand[session.get()] > kMaxTurned;
    });
    remembered_ += entry.second.size();
    return entry.second.empty();
  });
  forget_at_ = std::max(kFirstForget, 2 * remembered_);
}

void Recounter::Freeze(Word* word) {
  const uint32_t taken = TakenEras(word->granule);
  uint64_t bits = word->shared->load(std::memory_order_acquire);
  for (int tries = 0; tries < kMaxWordTries; ++tries) {
    const BlockWord current(bits);
    if (current.refs() == 0) return;  // nothing to recount
    if (current.frozen() || current.freed()) break;
    if (NextEra(current.era(), taken) == layout::kEras) {
      word->result = Result::kPutOff;
      return;
    }
    SPANPOOL_STEP("recount.6a");
    // acq_rel: what clients wrote to their slots before they changed this word is seen from here
    // on.
    if (word->shared->compare_exchange_weak(bits, current.Frozen().bits(),
                                            std::memory_order_acq_rel, std::memory_order_acquire)) {
      word->frozen = true;
      word->era = current.era();
      return;
    }
  }
  word->result = Result::kLost;
}

void Recounter::ScanMemory(SessionMemory& memory, const std::shared_ptr<Session>& session,
                           bool dead, std::vector<Word>* words) {
  size_t turned_here = 0;
  for (SessionMemory::SlotRange range = memory.WrittenSlots(0); range.first < layout::kSlotCapacity;
       range = memory.WrittenSlots(range.end)) {
    for (uint32_t i = range.first; i < range.end; ++i) {
      layout::SharedSlot& shared = memory.slot(i);
      uint64_t bits = shared.load(std::memory_order_acquire);
      for (int tries = 0;; ++tries) {
        const Slot slot(bits);
        if (!slot.counts() && !slot.in_flight()) break;
        const auto found = index_.find(slot.granule());
        if (found == index_.end()) break;
        Word& word = (*words)[found->second];
        if (!word.frozen) break;
        if (slot.counts()) {
          ++word.count;
          break;
        }
        if (tries == kMaxSlotTries) {
          if (session != nullptr) options_.lie(*session, "a slot that never stood still");
          break;
        }
        const Slot turned = dead ? Slot() : Slot::Void(slot.granule(), word.era);
        SPANPOOL_STEP("recount.6b");
        if (shared.compare_exchange_strong(bits, turned.bits(), std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
          if (!dead && ++turned_here <= kMaxTurned) {
            ++remembered_;
            turned_[slot.granule()].push_back({.session = session,
                                               .worker = session == nullptr,
                                               .slot = i,
                                               .bits = turned.bits()});
          }
          break;
        }
      }
    }
  }
  if (turned_here > kMaxTurned && session != nullptr) {
    options_.lie(*session, "more slots in the middle of a step than a block can have references");
  }
}

void Recounter::Thaw(Word* word) {
  uint32_t era = NextEra(word->era, TakenEras(word->granule));
  if (era == layout::kEras) {
    // There was one when the word was frozen, and only slots of word->era were turned since. Unless
    // the word is one that the last worker left: then slots say what their owners would have it.
    word->result = Result::kLost;
    era = (word->era + 1) % layout::kEras;
  }
  uint64_t bits = word->shared->load(std::memory_order_acquire);
  for (int tries = 0; tries < kMaxWordTries; ++tries) {
    const BlockWord current(bits);
    // Nobody else changes a frozen word: somebody scribbles.
    if (!current.frozen() || current.era() != word->era) break;
    const uint32_t count = std::min(word->count, layout::kMaxRefs);
    if (count != word->count) word->result = Result::kLost;  // more slots than references can be
    SPANPOOL_STEP("recount.6c");
    // release: what was made of the slots comes before; pairs with whoever looks at the word, and
    // then at its own slot.
    if (word->shared->compare_exchange_weak(bits, current.Recounted(count, era).bits(),
                                            std::memory_order_acq_rel, std::memory_order_acquire)) {
      if (count == 0) {
        const PageId page = PageOf(word->granule);
        layout::SetHint(options_.arenas->TableOf(ArenaOf(page))->marks, page);
      }
      return;
    }
  }
  word->result = Result::kLost;
}

void Recounter::CountAndThaw(std::vector<Word>* words) {
  index_.clear();
  for (uint32_t i = 0; i < words->size(); ++i) index_[(*words)[i].granule] = i;
  // Which sessions there are is asked only now: one that comes later cannot count up a frozen word.
  for (const std::shared_ptr<Session>& session : options_.sessions()) {
    ScanMemory(session->memory(), session, session->state() == SessionState::kDead, words);
  }
  // The daemon's own threads are alive.
  if (SessionMemory* const memory = options_.worker->memory(); memory != nullptr) {
    ScanMemory(*memory, nullptr, /*dead=*/false, words);
  }
  for (Word& word : *words) {
    if (word.frozen) Thaw(&word);
  }
  index_.clear();
  recounts_.fetch_add(1, std::memory_order_relaxed);
}

std::vector<Recounter::Result> Recounter::Recount(absl::Span<const GranuleId> granules) {
  std::vector<Word> words;
  words.reserve(granules.size());
  for (const GranuleId granule : granules) {
    words.push_back({.granule = granule, .shared = options_.arenas->WordOf(granule)});
    SPANPOOL_CHECK(words.back().shared != nullptr);
  }
  options_.journal->Begin(granules);
  for (Word& word : words) Freeze(&word);
  if (std::any_of(words.begin(), words.end(), [](const Word& word) { return word.frozen; })) {
    CountAndThaw(&words);
  }
  options_.journal->End();
  if (remembered_ > forget_at_) Forget();
  std::vector<Result> results;
  results.reserve(words.size());
  for (const Word& word : words) results.push_back(word.result);
  return results;
}

void Recounter::Resume() {
  const auto learn = [this](SessionMemory& memory, const std::shared_ptr<Session>& session) {
    for (SessionMemory::SlotRange range = memory.WrittenSlots(0);
         range.first < layout::kSlotCapacity; range = memory.WrittenSlots(range.end)) {
      for (uint32_t i = range.first; i < range.end; ++i) {
        const Slot slot(memory.slot(i).load());
        if (slot.state() != SlotState::kVoid) continue;
        ++remembered_;
        turned_[slot.granule()].push_back(
            {.session = session, .worker = session == nullptr, .slot = i, .bits = slot.bits()});
      }
    }
  };
  for (const std::shared_ptr<Session>& session : options_.sessions()) {
    learn(session->memory(), session);
  }
  if (SessionMemory* const memory = options_.worker->memory(); memory != nullptr) {
    learn(*memory, nullptr);
  }
  std::vector<Word> words;
  for (const GranuleId granule : options_.journal->Unfinished()) {
    layout::SharedWord* const shared = options_.arenas->WordOf(granule);
    if (shared == nullptr) continue;
    const BlockWord word(shared->load());
    if (!word.frozen()) continue;
    words.push_back({.granule = granule, .shared = shared, .frozen = true, .era = word.era()});
  }
  if (!words.empty()) CountAndThaw(&words);
  options_.journal->End();
  if (remembered_ > forget_at_) Forget();
}

}  // namespace spanpool

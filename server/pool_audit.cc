#include "server/pool_audit.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"
#include "server/block_states.h"
#include "server/name_table.h"
#include "server/session_memory.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;

constexpr size_t kMostFindings = 20;

class Audit {
 public:
  Audit(Pool& pool, AuditDepth depth) : pool_(pool), depth_(depth) {}

  std::vector<std::string> Run() {
    const std::vector<std::shared_ptr<Session>> sessions = pool_.Sessions();
    for (const std::shared_ptr<Session>& session : sessions) {
      if (session->state() == SessionState::kDead) Find(session->Describe(), " is not reaped yet");
      ReadSlots(session->memory(), session->Describe());
    }
    if (SessionMemory* const own = pool_.worker_references().memory(); own != nullptr) {
      ReadSlots(*own, "session 0");
      CompareNames(*own);
    }
    for (uint32_t i = 0; i < pool_.address_bytes() / kArenaBytes; ++i) {
      if (pool_.arenas().TableOf(ArenaIndex(i)) != nullptr) ReadArena(ArenaIndex(i));
    }
    for (const auto& [granule, held] : held_) {
      if (!held.seen) Find("granule ", granule.value(), " has slots and is no block");
    }
    CompareSums(sessions);
    return std::move(findings_);
  }

 private:
  // The slots that name a granule.
  struct HeldBlock {
    uint32_t slots = 0;
    uint32_t send_numbers = 0;  // bit n: one is in transit under number n
    bool seen = false;
  };

  template <typename... Parts>
  void Find(const Parts&... parts) {
    if (findings_.size() < kMostFindings) findings_.push_back(absl::StrCat(parts...));
  }

  void ReadSlots(SessionMemory& memory, const std::string& whose) {
    if (depth_ == AuditDepth::kBooks) return;
    for (SessionMemory::SlotRange range = memory.WrittenSlots(0);
         range.first < layout::kSlotCapacity; range = memory.WrittenSlots(range.end)) {
      for (uint32_t i = range.first; i < range.end; ++i) {
        const Slot slot(memory.slot(i).load());
        if (slot.state() == SlotState::kFree) continue;
        if (!slot.counts()) {
          Find("slot ", i, " of ", whose, " is ", static_cast<int>(slot.state()), " on granule ",
               slot.granule().value());
          continue;
        }
        HeldBlock& held = held_[slot.granule()];
        ++held.slots;
        if (slot.state() == SlotState::kTransit && !slot.noted()) {
          held.send_numbers |= 1u << slot.send_number() % layout::kSendNumbers;
        }
      }
    }
  }

  void CompareNames(SessionMemory& own) {
    pool_.names().CheckInvariants();
    absl::flat_hash_set<uint32_t> of_names;
    for (const auto& [index, block] : pool_.names().Slots()) {
      if (!of_names.insert(index).second) Find("two names have slot ", index, " of session 0");
      const Slot slot(own.slot(index).load());
      if (slot.state() != SlotState::kHeld || slot.granule() != block.handle.granule) {
        Find("slot ", index, " of session 0 does not hold the block of name ", block.name);
      }
      const layout::SharedWord* const word = pool_.arenas().WordOf(block.handle.granule);
      if (word == nullptr || BlockWord(word->load()).generation() != block.handle.generation) {
        Find("name ", block.name, " stands for a block that is gone");
      }
    }
    for (SessionMemory::SlotRange range = own.WrittenSlots(0); range.first < layout::kSlotCapacity;
         range = own.WrittenSlots(range.end)) {
      for (uint32_t i = range.first; i < range.end; ++i) {
        if (Slot(own.slot(i).load()).state() == SlotState::kHeld && !of_names.contains(i)) {
          Find("slot ", i, " of session 0 is held for no name");
        }
      }
    }
  }

  void ReadArena(ArenaIndex arena) {
    const PageId end = FirstPageOf(arena) + PageCount(kPagesPerArena);
    for (PageId page = FirstPageOf(arena); page < end;) {
      const Span* const span = pool_.heap().SpanOf(page);
      if (span == nullptr) {
        ReadWords(page, PageCount(1), nullptr);
        page = page + PageCount(1);
        continue;
      }
      if (span->first_page == page) {
        (span->loan_session != 0 ? loan_bytes_[span->loan_session] : listed_bytes_) +=
            Bytes(span->pages);
        ReadWords(page, span->pages, span);
      }
      page = page + PageCount(1);
    }
  }

  void ReadWords(PageId first, PageCount pages, const Span* span) {
    if (depth_ == AuditDepth::kBooks) return;
    const uint64_t from = GranuleOf(first).value();
    // Only the first granule of a large span has a word that is in use.
    const uint64_t count = span != nullptr && span->large() ? 1 : pages.value() * kGranulesPerPage;
    const bool has_blocks = span != nullptr && span->block_bytes >= kGranuleBytes;
    uint32_t block = 0;
    for (uint64_t granule = from; granule < from + count; ++granule) {
      const layout::SharedWord* const shared = pool_.arenas().WordOf(GranuleId(granule));
      const bool is_block =
          has_blocks && block < span->blocks && GranuleOfBlock(*span, block) == GranuleId(granule);
      if (is_block) ++block;
      if (shared == nullptr) continue;
      JudgeWord(GranuleId(granule), BlockWord(shared->load()), is_block);
    }
  }

  void JudgeWord(GranuleId granule, BlockWord word, bool is_block) {
    const auto found = held_.find(granule);
    HeldBlock none;
    HeldBlock& held = found == held_.end() ? none : found->second;
    held.seen = is_block;
    const auto wrong = [&](const char* what) {
      Find("the word of granule ", granule.value(), " is ",
           absl::Hex(word.bits(), absl::kZeroPad16), ": ", what,
           "; slots that name it: ", held.slots);
    };
    if (word.refs() != held.slots) wrong("its count is not that of the slots");
    if (word.frozen()) wrong("FROZEN");
    if (word.freed() && word.refs() != 0) wrong("FREED with references");
    if (word.sent() && (held.send_numbers >> word.send_number() & 1) == 0) {
      wrong("SENT, and no slot is in transit under its number");
    }
    if (!is_block && (word.refs() != 0 || word.freed())) wrong("there is no block");
  }

  void CompareSums(const std::vector<std::shared_ptr<Session>>& sessions) {
    const HeapStats stats = pool_.heap().stats();
    uint64_t on_loan = 0;
    for (const std::shared_ptr<Session>& session : sessions) {
      const uint64_t bytes = session->loan_bytes();
      on_loan += bytes;
      const auto found = loan_bytes_.find(session->id());
      const uint64_t seen = found == loan_bytes_.end() ? 0 : found->second;
      if (seen != bytes) Find(session->Describe(), " has ", bytes, " on loan; its spans: ", seen);
      if (found != loan_bytes_.end()) loan_bytes_.erase(found);
    }
    for (const auto& [id, bytes] : loan_bytes_) {
      Find(bytes, " bytes are on loan to session ", id, ", which is gone");
    }
    const auto same = [this](const char* what, uint64_t a, uint64_t b) {
      if (a != b) Find(what, ": ", a, " and ", b);
    };
    same("on loan, by the heap and by the sessions", stats.on_loan_bytes, on_loan);
    same("in lists, by the heap and by its spans", stats.in_lists_bytes, listed_bytes_);
    same("reserved, and the sum of its parts", stats.reserved_bytes,
         stats.on_loan_bytes + stats.in_lists_bytes + stats.free_bytes + stats.scavenged_bytes);
  }

  Pool& pool_;
  const AuditDepth depth_;
  absl::flat_hash_map<GranuleId, HeldBlock> held_;
  absl::flat_hash_map<uint64_t, uint64_t> loan_bytes_;  // by session
  uint64_t listed_bytes_ = 0;
  std::vector<std::string> findings_;
};

}  // namespace

std::vector<std::string> AuditPool(Pool& pool, AuditDepth depth) {
  return Audit(pool, depth).Run();
}

}  // namespace spanpool

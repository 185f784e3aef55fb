// libFuzzer's door to the reaper: the input is what stands in the segments of some sessions and in
// the words of the blocks they can reach, while they live and when they die.
//
// Some sessions are honest and keep to blocks that no liar names. Afterwards their words are exact;
// nothing is on loan, no session is left, and the pool's books are in order.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "allocator/check.h"
#include "allocator/units.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/packet.h"
#include "proto/layout/reference_protocol.h"
#include "proto/layout/slot.h"
#include "server/config.h"
#include "server/fuzz_input.h"
#include "server/pool.h"
#include "server/pool_audit.h"
#include "server/session.h"
#include "server/session_table.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::SharedWord;
using layout::Slot;
using layout::SlotState;

constexpr uint32_t kClassOf64 = 6 * 2 + 1;
constexpr uint32_t kLarge = 1;
constexpr uint32_t kSlots = 12;
constexpr uint32_t kHonestBlocks = 4;

class Deaths {
 public:
  explicit Deaths(FuzzInput input) : input_(input), pool_(Config(), nullptr, &sessions_) {
    owner_ = Attach();
    reader_ = Attach();
    honest_ = Grant(*owner_, kClassOf64, 0);
    for (uint32_t block = 0; block < kHonestBlocks; ++block) {
      owner_->memory().slot(block) = Slot(SlotState::kHeld, Honest(block)).bits();
      Word(Honest(block)) = BlockWord(Word(Honest(block))).Shared().bits();
    }
    for (int i = 0; i < 3; ++i) NewLiar();
  }

  void Run() {
    while (!input_.empty()) Act();
    // A recount may wait for somebody who is alive.
    for (const auto& liar : liars_) (void)pool_.ProcessDied(*liar);
    bool any_left = true;
    for (int rounds = 0; any_left; ++rounds) {
      SPANPOOL_CHECK_LT(rounds, 10'000) << "the reaper does not get on";
      any_left = false;
      for (const auto& liar : liars_) any_left |= !Reaped(*liar);
    }
    while (pool_.SettleReferences(absl::Now() + absl::Hours(1)) != absl::InfiniteFuture()) {
      SPANPOOL_CHECK_LT(++settled_, 10'000) << "there is no end of what is under way";
      // What is frozen stays so, and so does what waits for it.
      if (frozen_) break;
    }
    pool_.heap().CheckInvariants();
    SPANPOOL_CHECK_EQ(absl::StrJoin(AuditPool(pool_, AuditDepth::kBooks), "; "), "");
    SPANPOOL_CHECK_EQ(pool_.Sessions().size(), 2u);
    for (uint32_t block = 0; block < kHonestBlocks; ++block) {
      const BlockWord word(Word(Honest(block)));
      SPANPOOL_CHECK(!word.frozen() && word.is_shared());
      SPANPOOL_CHECK_EQ(word.refs(), 1u + held_[block]);
    }
    Die(*reader_);
    Die(*owner_);
    SPANPOOL_CHECK_EQ(pool_.stats().heap.on_loan_bytes, 0u);
    pool_.Sweep();
    pool_.heap().CheckInvariants();
    SPANPOOL_CHECK_EQ(absl::StrJoin(AuditPool(pool_, AuditDepth::kBooks), "; "), "");
  }

 private:
  static PoolConfig Config() {
    PoolConfig config;
    config.limit_bytes = uint64_t{4} << 20;
    config.reserve_bytes = 0;
    config.session_limit_bytes = config.limit_bytes;
    return config;
  }

  std::shared_ptr<Session> Attach() {
    auto session = pool_.Attach({.pid = 1, .uid = 0, .gids = {}}, layout::AccessMode::kWrite,
                                layout::UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    SPANPOOL_CHECK(session.ok()) << session.status();
    return *std::move(session);
  }
  PageId Grant(Session& session, uint32_t span_class, uint64_t pages) {
    const auto result = pool_.Exchange(session, {.returns = {}, .wants = {{span_class, 1, pages}}});
    SPANPOOL_CHECK(result.ok() && result->grants.size() == 1) << result.status();
    return result->grants[0].first_page;
  }
  void NewLiar() {
    liars_.push_back(Attach());
    const auto result =
        pool_.Exchange(*liars_.back(), {.returns = {}, .wants = {{kClassOf64, 1}, {kLarge, 1, 3}}});
    SPANPOOL_CHECK(result.ok()) << result.status();
    for (const ExchangeGrant& grant : result->grants) pages_.push_back(grant.first_page);
  }
  SharedWord& Word(GranuleId granule) { return *pool_.arenas().WordOf(granule); }
  GranuleId Honest(uint32_t block) const { return GranuleId(GranuleOf(honest_).value() + block); }

  // A granule of the liars', or one that is nobody's.
  GranuleId SomeGranule() {
    if (input_.Below(8) == 0) {
      const uint64_t granule = input_.Number();
      const uint64_t first = GranuleOf(honest_).value();
      return GranuleId(granule - first < kGranulesPerPage ? granule + kGranulesPerPage : granule);
    }
    return GranuleId(GranuleOf(pages_[input_.Byte() % pages_.size()]).value() + input_.Below(4));
  }
  Session& SomeLiar() { return *liars_[input_.Byte() % liars_.size()]; }

  void Act() {
    switch (input_.Below(10)) {
      case 0:
      case 1:
      case 2:
        SomeLiar().memory().slot(input_.Below(kSlots)) =
            uint64_t{input_.Byte()} << 56 | uint64_t{input_.Below(8)} << 53 |
            (SomeGranule().value() & ((uint64_t{1} << 53) - 1));
        return;
      case 3: {
        layout::SlotNote& note = SomeLiar().memory().note(input_.Below(kSlots));
        note.entry = input_.Below(2) == 0 ? input_.Number() : OffsetOf(SomeGranule()).value();
        note.value = input_.Number();
        return;
      }
      case 4:
      case 5:
        if (SharedWord* const word = pool_.arenas().WordOf(SomeGranule()); word != nullptr) {
          const uint64_t bits = uint64_t{input_.Byte()} << 56 | uint64_t{input_.Byte()} << 40 |
                                (input_.Number() & layout::kMaxGeneration);
          *word = bits;
          frozen_ |= BlockWord(bits).frozen();
        }
        return;
      case 6: {
        Session& liar = SomeLiar();
        if (pool_.ProcessDied(liar)) (void)Reaped(liar);
        return;
      }
      case 7:
        if (liars_.size() < 8) NewLiar();
        return;
      case 8:
        HonestStep();
        return;
      default:
        pool_.SettleReferences(absl::Now());
        if (input_.Below(2) == 0) pool_.Sweep();
    }
  }

  // The reader opens one of the owner's blocks, or lets go of it.
  void HonestStep() {
    const uint32_t block = input_.Below(kHonestBlocks);
    layout::SharedSlot& slot = reader_->memory().slot(block);
    SharedWord& word = Word(Honest(block));
    if (held_[block] == 0) {
      const layout::Opening opening = layout::OpenBlock(
          slot, word, Honest(block), BlockWord(word).generation(), layout::kMaxClientRefs);
      SPANPOOL_CHECK(opening.result == layout::OpenResult::kOpened);
      held_[block] = 1;
    } else {
      layout::BeginRelease(slot, Honest(block));
      SPANPOOL_CHECK(layout::ReleaseBlock(slot, word, Honest(block)) ==
                     layout::ReleaseResult::kLivesOn);
      layout::FreeSlot(slot);
      held_[block] = 0;
    }
  }

  // A round of reaping. True: the session is over.
  bool Reaped(Session& session) {
    if (session.state() != SessionState::kDead) return session.state() == SessionState::kEnded;
    return pool_.ReapSome(session, 50) == ReapProgress::kDone;
  }
  void Die(Session& session) {
    SPANPOOL_CHECK(pool_.ProcessDied(session));
    while (!Reaped(session)) {
    }
  }

  FuzzInput input_;
  SessionTable sessions_{1000};
  Pool pool_;
  std::shared_ptr<Session> owner_;
  std::shared_ptr<Session> reader_;
  PageId honest_;
  uint32_t held_[kHonestBlocks] = {};  // by the reader
  std::vector<std::shared_ptr<Session>> liars_;
  std::vector<PageId> pages_;  // the liars'
  bool frozen_ = false;        // a liar wrote so
  int settled_ = 0;
};

}  // namespace
}  // namespace spanpool

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  spanpool::Deaths(spanpool::FuzzInput(data, size)).Run();
  return 0;
}

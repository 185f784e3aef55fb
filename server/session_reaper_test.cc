#include "server/session_reaper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "proto/layout/reference_protocol.h"
#include "server/pool_audit.h"
#include "server/pool_fixture.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class SessionReaperTest : public PoolTest {
 protected:
  explicit SessionReaperTest(PoolConfig config = DefaultConfig()) : PoolTest(std::move(config)) {}

  // Each session is a process with a few slots, of which a test names one.
  layout::SharedSlot& SlotOf(Session& session, uint32_t slot) {
    return session.memory().slot(slot);
  }
  Slot SlotNow(Session& session, uint32_t slot) { return Slot(SlotOf(session, slot)); }
  void SetSlot(Session& session, uint32_t slot, Slot value) {
    SlotOf(session, slot) = value.bits();
  }
  // Rule 10, whole.
  void Send(Session& session, uint32_t slot, GranuleId granule) {
    SetSlot(session, slot, Slot::Transit(granule, WordNow(granule).next_send_number()));
    Word(granule) = WordNow(granule).Sent().bits();
  }
  layout::Opening ReallyOpen(Session& session, uint32_t slot, GranuleId granule) {
    const layout::Opening opening =
        layout::OpenBlock(SlotOf(session, slot), Word(granule), granule,
                          WordNow(granule).generation(), layout::kMaxClientRefs);
    if (opening.counted.sent()) layout::TakeSent(Word(granule), opening.counted.send_number());
    return opening;
  }
  void ReallyRelease(Session& session, uint32_t slot, GranuleId granule) {
    layout::BeginRelease(SlotOf(session, slot), granule);
    layout::ReleaseBlock(SlotOf(session, slot), Word(granule), granule);
    layout::FreeSlot(SlotOf(session, slot));
  }
  SlotState OwnState(uint32_t slot) {
    return Slot(pool_.worker_references().memory()->slot(slot)).state();
  }
};

TEST_F(SessionReaperTest, AnIntentIsCountedOutOrInByARecount) {
  const auto sharer = Attach();
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*sharer);
  for (uint32_t block = 0; block < 4; ++block) Share(*sharer, block, Granule(grant, block));
  // Opening, before and after it was counted up; releasing, before and after it was counted down.
  SetSlot(*session, 0, Slot(SlotState::kAcquiring, Granule(grant, 0)));
  SetSlot(*session, 1, Slot(SlotState::kAcquiring, Granule(grant, 1)));
  Word(Granule(grant, 1)) = WordNow(Granule(grant, 1)).Acquired().bits();
  SetSlot(*session, 2, Slot(SlotState::kReleasing, Granule(grant, 2)));
  Word(Granule(grant, 2)) = WordNow(Granule(grant, 2)).Acquired().bits();
  SetSlot(*session, 3, Slot(SlotState::kReleasing, Granule(grant, 3)));
  Reap(*session);
  for (uint32_t block = 0; block < 4; ++block) {
    EXPECT_EQ(WordNow(Granule(grant, block)).refs(), 1u) << block;
    EXPECT_EQ(WordNow(Granule(grant, block)).era(), 1u) << block;
    EXPECT_FALSE(WordNow(Granule(grant, block)).frozen()) << block;
  }
  EXPECT_EQ(pool_.stats().recounts_total, 1u) << "one pass over the slots for all of them";
  EXPECT_EQ(pool_.stats().suspect_blocks, 0u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, ADeathWithoutAnIntentNeedsNoRecount) {
  const auto sharer = Attach();
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*sharer);
  Share(*sharer, 0, Granule(grant, 0));
  Open(*session, 0, Granule(grant, 0));
  Reap(*session);
  EXPECT_EQ(pool_.stats().recounts_total, 0u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, ARecountThatFindsNobodyFreesTheBlock) {
  const auto session = Attach();
  const auto other = Attach();
  const ExchangeGrant grant = GrantOne(*session);
  const GranuleId granule = Granule(grant, 5);
  Share(*session, 0, granule);
  ReallyOpen(*other, 0, granule);
  SetSlot(*session, 0, Slot(SlotState::kReleasing, granule));
  SetSlot(*other, 0, Slot(SlotState::kReleasing, granule));
  Reap(*other);
  EXPECT_TRUE(WordNow(granule).freed());
  EXPECT_EQ(WordNow(granule).refs(), 0u);
  EXPECT_EQ(SlotNow(*session, 0), Slot::Void(granule, 0)) << "left out, and told so";
  // The owner finds itself left out, and its span's sweep finds the block.
  EXPECT_EQ(layout::ReleaseBlock(SlotOf(*session, 0), Word(granule), granule),
            layout::ReleaseResult::kNone);
  layout::FreeSlot(SlotOf(*session, 0));
  EXPECT_TRUE(layout::CollectBlock(Word(granule)));
  EXPECT_EQ(WordNow(granule).era(), 1u) << "the era outlives the generation";
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, AnEraIsNotUsedAgainWhileSomebodyMayRememberIt) {
  const auto owner = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 0);
  Share(*owner, 0, granule);
  const auto recount = [&] {
    const auto victim = Attach();
    SetSlot(*victim, 0, Slot(SlotState::kAcquiring, granule));
    EXPECT_TRUE(pool_.ProcessDied(*victim));
    ReapProgress progress = ReapProgress::kMore;
    while (progress == ReapProgress::kMore) progress = pool_.ReapSome(*victim, 100);
    return std::pair(victim, progress);
  };
  // A process is stopped in the middle of an open in every era but one.
  std::vector<std::shared_ptr<Session>> stopped;
  for (uint32_t era = 0; era + 1 < layout::kEras; ++era) {
    stopped.push_back(Attach());
    SetSlot(*stopped.back(), 9, Slot(SlotState::kAcquiring, granule));
    EXPECT_EQ(recount().second, ReapProgress::kDone);
    EXPECT_EQ(SlotNow(*stopped.back(), 9), Slot::Void(granule, era));
    EXPECT_EQ(WordNow(granule).era(), era + 1);
  }
  // Of all eras only the word's own is not remembered: the next recount is put off, unfrozen.
  const auto [victim, progress] = recount();
  EXPECT_EQ(progress, ReapProgress::kPutOff);
  EXPECT_FALSE(WordNow(granule).frozen());
  EXPECT_EQ(pool_.ReapSome(*victim, 100), ReapProgress::kPutOff);
  EXPECT_EQ(pool_.stats().sessions_reaped_total, layout::kEras - 1);
  // One of them goes on.
  layout::FreeSlot(SlotOf(*stopped[3], 9));
  EXPECT_EQ(pool_.ReapSome(*victim, 100), ReapProgress::kDone);
  EXPECT_EQ(WordNow(granule).era(), 3u);
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  for (const auto& session : stopped) Reap(*session);
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, ARecountCountsHeldAndTransitAndTurnsOnlyWhatIsInFlightOnItsBlocks) {
  const auto owner = Attach();
  const auto held = Attach();
  const auto other = Attach();
  const auto victim = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 0);
  const GranuleId neighbour = Granule(grant, 1);
  Share(*owner, 0, granule);
  Share(*owner, 1, neighbour);
  ReallyOpen(*held, 3, granule);
  Send(*held, 3, granule);
  ReallyOpen(*other, 3, neighbour);
  SetSlot(*other, 3, Slot(SlotState::kReleasing, neighbour));
  SetSlot(*victim, 0, Slot(SlotState::kAcquiring, granule));
  Reap(*victim);
  EXPECT_EQ(WordNow(granule).refs(), 2u);
  EXPECT_TRUE(WordNow(granule).IsUnderWay(1)) << "a recount keeps SENT and its number";
  EXPECT_EQ(SlotNow(*other, 3).state(), SlotState::kReleasing);
  EXPECT_EQ(WordNow(neighbour).refs(), 2u);
}

TEST_F(SessionReaperTest, LivingThreadsOfTheDaemonAreTurnedLikeAnyProcess) {
  const auto owner = Attach();
  const auto victim = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 0);
  Share(*owner, 0, granule);
  const auto name = pool_.worker_references().Open(granule, 0);
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_EQ(WordNow(granule).refs(), 2u);
  layout::SharedSlot& own = pool_.worker_references().memory()->slot(*name);
  layout::BeginRelease(own, granule);  // and no further yet
  SetSlot(*victim, 0, Slot(SlotState::kAcquiring, granule));
  Reap(*victim);
  EXPECT_EQ(Slot(own).state(), SlotState::kVoid);
  EXPECT_EQ(WordNow(granule).refs(), 1u);
}

TEST_F(SessionReaperTest, TheDaemonHoldsReferencesOfItsOwnForNames) {
  const auto owner = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 0);
  WorkerReferences& worker = pool_.worker_references();
  EXPECT_EQ(worker.Open(granule, 0).status().code(), absl::StatusCode::kNotFound) << "private";
  EXPECT_EQ(worker.Open(GranuleId(1), 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(worker.Open(GranuleId(uint64_t{1} << 50), 0).status().code(),
            absl::StatusCode::kNotFound);
  Share(*owner, 0, granule);
  Send(*owner, 0, granule);
  EXPECT_EQ(worker.Open(granule, 1).status().code(), absl::StatusCode::kNotFound);
  const auto slot = worker.Open(granule, 0);
  ASSERT_TRUE(slot.ok()) << slot.status();
  EXPECT_TRUE(WordNow(granule).sent()) << "what is under way stays so";
  EXPECT_THAT(AuditPool(pool_), ElementsAre(HasSubstr("is held for no name")));
  ReallyOpen(*owner, 1, granule);
  ReallyRelease(*owner, 0, granule);
  ReallyRelease(*owner, 1, granule);
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  Return(*owner, grant);
  EXPECT_EQ(HeapNow().in_lists_bytes, kPageBytes);
  worker.Release(*slot);
  EXPECT_TRUE(WordNow(granule).freed());
  EXPECT_TRUE(worker.TookLast());
  pool_.Sweep();
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, AReleaseOfTheDaemonsOwnThatMeetsAFrozenWordIsFinishedLater) {
  const auto owner = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 0);
  Share(*owner, 0, granule);
  WorkerReferences& worker = pool_.worker_references();
  const auto slot = worker.Open(granule, 0);
  ASSERT_TRUE(slot.ok());
  Word(granule) = WordNow(granule).Frozen().bits();
  EXPECT_EQ(worker.Open(granule, 0).status().code(), absl::StatusCode::kUnavailable);
  worker.Release(*slot);
  EXPECT_LT(pool_.SettleReferences(absl::Now()), absl::InfiniteFuture());
  EXPECT_EQ(WordNow(granule).refs(), 2u);
  Word(granule) = WordNow(granule).Recounted(2, 1).bits();
  EXPECT_EQ(pool_.SettleReferences(absl::Now()), absl::InfiniteFuture());
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

// --- What is under way when its sender dies ------------------------------------------------------

TEST_F(SessionReaperTest, AHandleOutlivesItsSenderUntilItIsOpened) {
  const auto sender = Attach();
  const auto receiver = Attach();
  const ExchangeGrant grant = GrantOne(*sender);
  const GranuleId granule = Granule(grant, 0);
  Share(*sender, 0, granule);
  Send(*sender, 0, granule);
  Reap(*sender);
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  EXPECT_TRUE(WordNow(granule).IsUnderWay(1));
  EXPECT_EQ(pool_.stats().adopted_references, 1u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
  const absl::Time now = absl::Now();
  EXPECT_LT(pool_.SettleReferences(now), absl::InfiniteFuture());
  EXPECT_EQ(ReallyOpen(*receiver, 0, granule).result, layout::OpenResult::kOpened);
  EXPECT_EQ(pool_.SettleReferences(now), absl::InfiniteFuture());
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  EXPECT_EQ(pool_.stats().adopted_references, 0u);
  ReallyRelease(*receiver, 0, granule);
  pool_.Sweep();
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, AHandleThatNobodyOpensIsGivenUpAfterTheGracePeriod) {
  const auto sender = Attach();
  const ExchangeGrant grant = GrantOne(*sender);
  const GranuleId granule = Granule(grant, 0);
  Share(*sender, 0, granule);
  Send(*sender, 0, granule);
  Reap(*sender);
  const absl::Time now = absl::Now();
  EXPECT_LT(pool_.SettleReferences(now), absl::InfiniteFuture());
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  EXPECT_EQ(pool_.SettleReferences(now + absl::Seconds(11)), absl::InfiniteFuture());
  EXPECT_TRUE(WordNow(granule).freed());
  EXPECT_FALSE(WordNow(granule).sent()) << "it was taken back first";
  pool_.Sweep();
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
}

TEST_F(SessionReaperTest, ASendThatWasTakenOrNeverDoneIsNoneOfTheDaemons) {
  const auto sender = Attach();
  const auto receiver = Attach();
  const ExchangeGrant grant = GrantOne(*sender);
  const GranuleId taken = Granule(grant, 0);
  const GranuleId not_sent = Granule(grant, 1);
  const GranuleId still_private = Granule(grant, 2);
  Share(*sender, 0, taken);
  Send(*sender, 0, taken);
  ReallyOpen(*receiver, 0, taken);
  Share(*sender, 1, not_sent);
  ReallyOpen(*receiver, 1, not_sent);
  SetSlot(*sender, 1, Slot::Transit(not_sent, 1));  // died before the word said so
  SetSlot(*sender, 2, Slot::Transit(still_private, 1));
  Reap(*sender);
  EXPECT_EQ(pool_.stats().adopted_references, 0u);
  EXPECT_EQ(WordNow(taken).refs(), 1u);
  EXPECT_EQ(WordNow(not_sent).refs(), 1u);
  EXPECT_TRUE(WordNow(still_private).is_private());
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, AnEntryOfAChannelKeepsWhatItsDeadSenderPutThere) {
  const auto sender = Attach();
  const ExchangeGrant queue = GrantOne(*sender, kLarge, 1);
  const ExchangeGrant grant = GrantOne(*sender);
  const uint64_t entry = OffsetOf(queue.first_page).value() + 64;
  const auto set_entry = [&](uint64_t value) {
    const int fd = pool_.arenas().FilesOf(ArenaIndex(0), true)->data;
    ASSERT_EQ(pwrite(fd, &value, 8, static_cast<off_t>(entry)), 8);
  };
  const auto put = [&](uint32_t slot, uint32_t block, uint64_t at, uint64_t value) {
    Share(*sender, slot, Granule(grant, block));
    layout::SlotNote& note = sender->memory().note(slot);
    note.entry = at;
    note.value = value;
    SetSlot(*sender, slot, Slot::NotedTransit(Granule(grant, block)));
  };
  set_entry(4711);
  put(0, 0, entry, 4711);                   // stands
  put(1, 1, entry, 4710);                   // was taken
  put(2, 2, entry + 4, 4711);               // lies: no place for an entry
  put(3, 3, uint64_t{1} << 60, 4711);       // lies: outside the pool
  put(4, 4, pool_.address_bytes() - 8, 0);  // lies: an arena that was never made
  Reap(*sender);
  EXPECT_EQ(pool_.stats().adopted_references, 1u);
  EXPECT_EQ(WordNow(Granule(grant, 0)).refs(), 1u);
  for (uint32_t block = 1; block < 5; ++block) {
    EXPECT_EQ(WordNow(Granule(grant, block)).refs(), 0u) << block;
  }
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
  const absl::Time now = absl::Now();
  EXPECT_LT(pool_.SettleReferences(now), absl::InfiniteFuture());
  set_entry(4712);
  EXPECT_EQ(pool_.SettleReferences(now), absl::InfiniteFuture());
  EXPECT_EQ(WordNow(Granule(grant, 0)).refs(), 0u);
}

TEST_F(SessionReaperTest, WhereNoReferenceIsLeftForTheDaemonTheHandleIsLostAndTheCountExact) {
  const auto sender = Attach();
  const auto other = Attach();
  const ExchangeGrant grant = GrantOne(*sender);
  const GranuleId granule = Granule(grant, 0);
  Share(*sender, 0, granule);
  for (uint32_t slot = 0; slot < layout::kMaxRefs - 1; ++slot) Open(*other, slot, granule);
  Send(*sender, 0, granule);
  Reap(*sender);
  EXPECT_EQ(WordNow(granule).refs(), layout::kMaxRefs - 1);
  EXPECT_FALSE(WordNow(granule).sent());
  EXPECT_EQ(pool_.stats().adopted_references, 0u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, ACleanDetachLeavesWhatIsUnderWayToTheDaemon) {
  const auto sender = Attach();
  const auto receiver = Attach();
  const ExchangeGrant grant = GrantOne(*sender);
  const GranuleId granule = Granule(grant, 0);
  Share(*sender, 0, granule);
  Send(*sender, 0, granule);
  EXPECT_EQ(pool_.Detach(*sender).code(), absl::StatusCode::kFailedPrecondition) << "a loan";
  Return(*sender, grant);
  EXPECT_TRUE(pool_.Detach(*sender).ok());
  EXPECT_EQ(sender->state(), SessionState::kDead);
  EXPECT_EQ(pool_.ReapSome(*sender, 100000), ReapProgress::kDone);
  EXPECT_EQ(sender->state(), SessionState::kEnded);
  EXPECT_EQ(pool_.stats().adopted_references, 1u);
  EXPECT_EQ(ReallyOpen(*receiver, 0, granule).result, layout::OpenResult::kOpened);
  pool_.SettleReferences(absl::Now());
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

// --- Words that make no sense --------------------------------------------------------------------

TEST_F(SessionReaperTest, TheSpanOfAWordThatMakesNoSenseIsNeverUsedAgain) {
  const auto owner = Attach();
  const auto reader = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 3);
  Share(*owner, 0, granule);
  ReallyOpen(*reader, 0, granule);
  Word(granule) = WordNow(granule).Frozen().bits();
  Reap(*reader);
  EXPECT_EQ(pool_.stats().suspect_blocks, 1u);
  // Whatever is written there later.
  Word(granule) = 0;
  Reap(*owner);
  EXPECT_EQ(HeapNow().in_lists_bytes, kPageBytes);
  EXPECT_EQ(HeapNow().live_listed_blocks, 128u);
  const auto other = Attach();
  EXPECT_NE(GrantOne(*other).first_page, grant.first_page);
  pool_.Sweep();
  EXPECT_EQ(HeapNow().in_lists_bytes, kPageBytes);
}

TEST_F(SessionReaperTest, HoweverManyWordsOfAPageMakeNoSenseItIsRememberedOnce) {
  const auto owner = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  for (uint32_t block = 0; block < 128; ++block) {
    Share(*owner, block, Granule(grant, block));
    Word(Granule(grant, block)) = WordNow(Granule(grant, block)).Frozen().bits();
  }
  Reap(*owner);
  EXPECT_EQ(pool_.stats().suspect_blocks, 1u);
}

TEST_F(SessionReaperTest, HandlesUnderWayOnFrozenWordsAreLostWithoutAWait) {
  const auto sender = Attach();
  // Each would otherwise wait a tenth of a second for a recount that nobody makes; all together
  // for longer than this test may take.
  for (uint32_t slot = 0; slot < 1024; ++slot) {
    const GranuleId granule = Granule(GrantOne(*sender, kLarge, 1), 0);
    Share(*sender, slot, granule);
    Send(*sender, slot, granule);
    Word(granule) = WordNow(granule).Frozen().bits();
  }
  Reap(*sender);
  EXPECT_EQ(pool_.stats().adopted_references, 0u);
  EXPECT_EQ(pool_.stats().suspect_blocks, 1024u);
}

TEST_F(SessionReaperTest, WhatIsUnderWayIsLookedAtInTurnHoweverMuchThereIs) {
  const auto sender = Attach();
  const ExchangeGrant queue = GrantOne(*sender, kLarge, 1);
  const ExchangeGrant grant = GrantOne(*sender);
  // An entry that says what the notes say: nothing is ever taken.
  constexpr uint32_t kSent = 10'000;
  for (uint32_t slot = 0; slot < kSent; ++slot) {
    const GranuleId granule = Granule(grant, slot % 128);
    if (slot < 128) {
      Share(*sender, slot, granule);
    } else {
      Open(*sender, slot, granule);
    }
    sender->memory().note(slot).entry = OffsetOf(queue.first_page).value();
    SetSlot(*sender, slot, Slot::NotedTransit(granule));
  }
  Reap(*sender);
  EXPECT_EQ(pool_.stats().adopted_references, kSent);
  const absl::Time late = absl::Now() + absl::Seconds(60);
  pool_.SettleReferences(late);
  const uint64_t left = pool_.stats().adopted_references;
  EXPECT_GT(left, 0u);
  EXPECT_LT(left, kSent);
  while (pool_.SettleReferences(late) != absl::InfiniteFuture()) {
  }
  EXPECT_EQ(pool_.stats().adopted_references, 0u);
  pool_.Sweep();
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

TEST_F(SessionReaperTest, ALiarThatARecountFindsIsEvictedAndLittleOfItRemembered) {
  const auto owner = Attach();
  const auto liar = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  constexpr uint32_t kSlots = 40'000;  // each in the middle of a step
  uint32_t evictions = 0;
  pool_.SetEvictedCallback([&](const Session& session) {
    EXPECT_EQ(&session, liar.get());
    ++evictions;
  });
  for (uint32_t block = 0; block < 8; ++block) {
    const GranuleId granule = Granule(grant, block);
    Share(*owner, block, granule);
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      SetSlot(*liar, slot, Slot(SlotState::kAcquiring, granule));
    }
    const auto victim = Attach();
    SetSlot(*victim, 0, Slot(SlotState::kAcquiring, granule));
    Reap(*victim);
    EXPECT_EQ(WordNow(granule).refs(), 1u);
    EXPECT_EQ(SlotNow(*liar, kSlots - 1).state(), SlotState::kVoid);
  }
  EXPECT_EQ(evictions, 1u);
  EXPECT_EQ(liar->state(), SessionState::kDetached) << "its process lives";
  EXPECT_EQ(pool_.stats().evictions_total, 1u);
  EXPECT_EQ(pool_.stats().lies_total, 8u);
  Reap(*liar);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
}

// Some thousand references whose slots lie in several runs, on blocks of the session's own, of
// which some live on, and of another's.
TEST_F(SessionReaperTest, HowMuchIsTakenBackAtATimeChangesNothing) {
  for (const uint32_t budget : {1u, 31u, 32u, 33u, 1000u, 1'000'000u}) {
    const auto owner = Attach();
    const auto victim = Attach();
    std::vector<GranuleId> own, read, opened;
    uint32_t slot = 0;
    // Slot after slot, then a stretch of memory that was never written.
    const auto next_slot = [&] {
      if (slot % 100'000 == 700) slot += 100'000 - 700;
      return slot++;
    };
    for (int i = 0; i < 12; ++i) {
      const ExchangeGrant of_victim = GrantOne(*victim);
      const ExchangeGrant of_owner = GrantOne(*owner);
      GrantOne(*victim, kLarge, 3 + i);
      for (uint32_t block = 0; block < 128; ++block) {
        own.push_back(Granule(of_victim, block));
        Share(*victim, next_slot(), own.back());
        if (block % 64 == 5) {
          read.push_back(own.back());
          own.pop_back();
          Open(*owner, 10'000 + static_cast<uint32_t>(read.size()), read.back());
        }
        opened.push_back(Granule(of_owner, block));
        Share(*owner, static_cast<uint32_t>(opened.size()), opened.back());
        Open(*victim, next_slot(), opened.back());
      }
    }
    ASSERT_TRUE(pool_.ProcessDied(*victim));
    uint32_t pieces = 1;
    while (pool_.ReapSome(*victim, budget) == ReapProgress::kMore) ++pieces;
    EXPECT_EQ(victim->state(), SessionState::kEnded);
    EXPECT_EQ(victim->reaping.references, own.size() + read.size() + opened.size());
    EXPECT_EQ(victim->reaping.spans, 24u);
    EXPECT_GE(pieces, victim->reaping.references / budget);
    for (const GranuleId granule : own) {
      EXPECT_TRUE(WordNow(granule).is_private());
    }
    for (const GranuleId granule : read) EXPECT_EQ(WordNow(granule).refs(), 1u);
    for (const GranuleId granule : opened) EXPECT_EQ(WordNow(granule).refs(), 1u);
    EXPECT_EQ(HeapNow().spans_in_lists, 12u) << "those of the blocks that are read on";
    EXPECT_THAT(AuditPool(pool_), IsEmpty());
    Reap(*owner);
    pool_.Sweep();
    EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
  }
}

TEST_F(SessionReaperTest, LoansComeBackOldestFirstAndNoneTwice) {
  const auto session = Attach();
  std::vector<PageId> granted;
  for (int i = 0; i < 100; ++i) granted.push_back(GrantOne(*session).first_page);
  ASSERT_TRUE(session->Kill());
  std::vector<PageId> taken;
  for (uint32_t most = 1; session->loan_count() != 0; most *= 3) {
    const std::vector<Span*> spans = session->TakeLoans(most);
    EXPECT_LE(spans.size(), most);
    for (const Span* span : spans) taken.push_back(span->first_page);
    EXPECT_EQ(session->loan_bytes(), (100 - taken.size()) * kPageBytes);
  }
  EXPECT_EQ(taken, granted);
  EXPECT_THAT(session->TakeLoans(1), IsEmpty());
}

TEST_F(SessionReaperTest, AMemberThatHammersAWordHoldsNobodyUp) {
  const auto owner = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 0);
  Share(*owner, 0, granule);
  const uint64_t truth = Word(granule);
  std::atomic<bool> stop{false};
  std::thread hammer([&] {
    while (!stop) {
      for (int i = 0; i < 100; ++i) Word(granule) = truth + (uint64_t{1} << 40 << (i % 8));
    }
  });
  for (int i = 0; i < 20; ++i) {
    const auto victim = Attach();
    SetSlot(*victim, 0, Slot(i % 2 == 0 ? SlotState::kAcquiring : SlotState::kHeld, granule));
    Reap(*victim);
  }
  stop = true;
  hammer.join();
  HeapNow();
}

// --- A worker that died in the middle of a recount -----------------------------------------------

class RecounterTest : public SessionReaperTest {
 protected:
  struct Journal : RecountJournal {
    std::function<void()> on_begin = [] {};
    std::function<void()> on_end = [] {};
    std::vector<GranuleId> words;
    void Begin(absl::Span<const GranuleId> begun) override {
      words.assign(begun.begin(), begun.end());
      on_begin();
    }
    void End() override {
      words.clear();
      on_end();
    }
    std::vector<GranuleId> Unfinished() const override { return words; }
  };

  Journal journal_;
  Recounter recounter_{{.sessions = [this] { return pool_.Sessions(); },
                        .worker = &pool_.worker_references(),
                        .arenas = &pool_.arenas(),
                        .journal = &journal_,
                        .lie = [](Session&, const char*) {}}};
};

TEST_F(RecounterTest, TheJournalIsWrittenBeforeAWordIsFrozenAndClearedAfterTheLast) {
  const auto owner = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  Share(*owner, 0, Granule(grant, 0));
  Share(*owner, 1, Granule(grant, 1));
  bool begun = false;
  journal_.on_begin = [&] {
    begun = true;
    EXPECT_FALSE(WordNow(Granule(grant, 0)).frozen());
    EXPECT_FALSE(WordNow(Granule(grant, 1)).frozen());
  };
  recounter_.Recount({Granule(grant, 0), Granule(grant, 1)});
  EXPECT_TRUE(begun);
  EXPECT_TRUE(journal_.words.empty());
  EXPECT_EQ(WordNow(Granule(grant, 0)).refs(), 1u);
}

TEST_F(RecounterTest, WhatTheLastWorkerLeftFrozenIsRecountedFromZero) {
  const auto owner = Attach();
  const auto reader = Attach();
  const auto stopped = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId frozen = Granule(grant, 0);
  const GranuleId not_yet = Granule(grant, 1);
  const GranuleId never_lent(uint64_t{1} << 30);
  Share(*owner, 0, frozen);
  Share(*owner, 1, not_yet);
  ReallyOpen(*reader, 0, frozen);
  // Turned by the last worker, in another recount and in this one; and not looked at yet.
  SetSlot(*stopped, 0, Slot::Void(frozen, 1));
  SetSlot(*stopped, 1, Slot::Void(frozen, 0));
  SetSlot(*reader, 1, Slot(SlotState::kAcquiring, frozen));
  Word(frozen) = BlockWord(Word(frozen)).Frozen().bits();
  journal_.words = {frozen, not_yet, never_lent};
  recounter_.Resume();
  EXPECT_TRUE(journal_.words.empty());
  EXPECT_FALSE(WordNow(frozen).frozen());
  EXPECT_EQ(WordNow(frozen).refs(), 2u);
  EXPECT_EQ(WordNow(frozen).era(), 2u) << "0 and 1 are remembered by slots";
  EXPECT_EQ(SlotNow(*reader, 1), Slot::Void(frozen, 0));
  EXPECT_EQ(WordNow(not_yet).era(), 0u);
}

TEST_F(RecounterTest, WhoWritesToADeadProcessesSegmentCannotKeepItFromBeingReaped) {
  const auto owner = Attach();
  const auto victim = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  Share(*owner, 0, Granule(grant, 0));
  int lies = 0;
  SessionReaper reaper({.arenas = &pool_.arenas(),
                        .heap = nullptr,  // the session has no spans
                        .worker = &pool_.worker_references(),
                        .recounter = &recounter_,
                        .transit_grace = absl::Seconds(1),
                        .lie = [&](Session&, const char*) { ++lies; },
                        .quarantine = [](GranuleId, const char*) {},
                        .lost_transit = [](const Session&, const absl::Status&) {},
                        .returned = [](uint64_t) {}});
  const auto scribble = [&] {
    for (uint32_t slot = 0; slot < 64; ++slot) {
      SetSlot(*victim, slot, Slot(SlotState::kAcquiring, Granule(grant, 0)));
    }
  };
  scribble();
  journal_.on_end = scribble;
  ASSERT_TRUE(pool_.ProcessDied(*victim));
  for (int rounds = 0; reaper.Reap(*victim, 1000) != ReapProgress::kDone; ++rounds) {
    ASSERT_LT(rounds, 1000);
  }
  EXPECT_EQ(lies, 1);
  EXPECT_EQ(SlotNow(*victim, 63), Slot());
  EXPECT_EQ(WordNow(Granule(grant, 0)).refs(), 1u);
}

TEST_F(RecounterTest, OfSlotsThatWereWrittenSinceTheyWereTurnedNothingIsKept) {
  const auto owner = Attach();
  const auto liar = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  for (uint32_t block = 0; block < 16; ++block) {
    Share(*owner, block, Granule(grant, block));
    for (uint32_t slot = 0; slot < 10'000; ++slot) {
      SetSlot(*liar, slot, Slot(SlotState::kReleasing, Granule(grant, block)));
    }
    recounter_.Recount({Granule(grant, block)});
    EXPECT_LE(recounter_.remembered(), 30'000u);
  }
}

TEST_F(RecounterTest, SlotsThatSayEveryEraCannotStopAWorkerThatGoesOnWhereTheLastOneDied) {
  const auto owner = Attach();
  const auto liar = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  const GranuleId granule = Granule(grant, 0);
  Share(*owner, 0, granule);
  for (uint32_t era = 0; era < layout::kEras; ++era) {
    SetSlot(*liar, era, Slot::Void(granule, era));
  }
  Word(granule) = WordNow(granule).Frozen().bits();
  journal_.words = {granule};
  recounter_.Resume();
  EXPECT_FALSE(WordNow(granule).frozen());
  EXPECT_EQ(WordNow(granule).refs(), 1u);
}

// --- Anything at all -----------------------------------------------------------------------------

// Processes of a few threads each take the steps of the protocol one by one, at random, and die
// between any two.
TEST_F(SessionReaperTest, DeathsBetweenAnyTwoStepsLeaveExactCounts) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  constexpr uint32_t kBlocks = 5;
  constexpr uint32_t kThreads = 3;

  // What one thread, and its slot, is about to do.
  enum class Next { kChoose, kOpenWord, kOpenHeld, kTaken, kHolds, kReleaseWord, kFree, kSendWord };
  struct Thread {
    Next next = Next::kChoose;
    GranuleId granule;
    BlockWord seen;
  };
  struct Process {
    std::shared_ptr<Session> session;
    Thread threads[kThreads];
  };

  const auto owner = Attach();
  const ExchangeGrant grant = GrantOne(*owner);
  std::vector<Process> processes(4);
  for (Process& process : processes) process.session = Attach();

  const auto step = [&](Process& process, uint32_t index) {
    Thread& thread = process.threads[index];
    layout::SharedSlot& slot = SlotOf(*process.session, index);
    layout::SharedWord& word = Word(thread.granule);
    const auto change = [&](BlockWord to) {
      uint64_t expected = thread.seen.bits();
      return word.compare_exchange_strong(expected, to.bits());
    };
    switch (thread.next) {
      case Next::kChoose:
        thread.granule = Granule(grant, static_cast<uint32_t>(random() % kBlocks));
        slot = Slot(SlotState::kAcquiring, thread.granule).bits();
        thread.next = Next::kOpenWord;
        break;
      case Next::kOpenWord:
        thread.seen = BlockWord(word);
        if (random() % 4 == 0) break;  // it is slow, and what it saw may be old
        if (!thread.seen.is_shared() || thread.seen.frozen() ||
            Slot(slot) != Slot(SlotState::kAcquiring, thread.granule)) {
          thread.next = Next::kFree;
        } else if (change(thread.seen.Acquired())) {
          thread.next = Next::kOpenHeld;
        }
        break;
      case Next::kOpenHeld: {
        uint64_t acquiring = Slot(SlotState::kAcquiring, thread.granule).bits();
        const bool held =
            slot.compare_exchange_strong(acquiring, Slot(SlotState::kHeld, thread.granule).bits());
        thread.next = held ? Next::kTaken : Next::kFree;
        break;
      }
      case Next::kTaken:
        if (thread.seen.sent()) layout::TakeSent(word, thread.seen.send_number());
        thread.next = Next::kHolds;
        break;
      case Next::kHolds:
        thread.seen = BlockWord(word);
        ASSERT_GT(thread.seen.refs(), 0u);
        if (random() % 3 != 0) {
          slot = Slot(SlotState::kReleasing, thread.granule).bits();
          thread.next = Next::kReleaseWord;
        } else if (!thread.seen.sent()) {
          slot = Slot::Transit(thread.granule, thread.seen.next_send_number()).bits();
          thread.next = Next::kSendWord;
        }
        break;
      case Next::kSendWord:
        if (Slot(slot).state() == SlotState::kTransit && !thread.seen.sent() &&
            thread.seen.next_send_number() == Slot(slot).send_number() &&
            change(thread.seen.Sent())) {
          thread.seen = thread.seen.Sent();
        } else if (thread.seen.sent() && BlockWord(word).IsUnderWay(thread.seen.send_number())) {
          break;  // it waits for somebody to open it
        } else {
          slot = Slot(SlotState::kReleasing, thread.granule).bits();
          thread.next = Next::kReleaseWord;
        }
        break;
      case Next::kReleaseWord:
        thread.seen = BlockWord(word);
        if (random() % 4 == 0 || thread.seen.frozen()) break;
        if (Slot(slot) != Slot(SlotState::kReleasing, thread.granule)) {
          thread.next = Next::kFree;
        } else {
          ASSERT_GT(thread.seen.refs(), 0u) << "counted down twice";
          if (change(thread.seen.Released())) thread.next = Next::kFree;
        }
        break;
      case Next::kFree:
        layout::FreeSlot(slot);
        thread = Thread();
        break;
    }
  };

  absl::Time now = absl::Now();
  for (int i = 0; i < 60'000; ++i) {
    // The owner keeps blocks shared, with references of its own, or shares them anew.
    const uint32_t block = static_cast<uint32_t>(random() % kBlocks);
    const GranuleId granule = Granule(grant, block);
    if (random() % 50 == 0) {
      if (SlotNow(*owner, block).state() == SlotState::kHeld) {
        ReallyRelease(*owner, block, granule);
      } else if (layout::CollectBlock(Word(granule))) {
        Share(*owner, block, granule);
      }
    }
    Process& process = processes[random() % processes.size()];
    step(process, static_cast<uint32_t>(random() % kThreads));
    if (HasFatalFailure()) return;
    if (random() % 300 == 0) {
      ASSERT_TRUE(pool_.ProcessDied(*process.session));
      while (pool_.ReapSome(*process.session, 1 + random() % 8) != ReapProgress::kDone) {
        // Put off: the others go on.
        Process& other = processes[random() % processes.size()];
        if (&other != &process) step(other, static_cast<uint32_t>(random() % kThreads));
      }
      process = Process{Attach(), {}};
    }
    if (random() % 500 == 0) {
      now += absl::Seconds(random() % 20);
      pool_.SettleReferences(now);
    }
  }
  for (Process& process : processes) Reap(*process.session);
  pool_.SettleReferences(now + absl::Hours(1));
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
  EXPECT_EQ(pool_.stats().lies_total, 0u);
  EXPECT_EQ(pool_.stats().suspect_blocks, 0u);
  EXPECT_GT(pool_.stats().recounts_total, 0u);
  Reap(*owner);
  EXPECT_THAT(AuditPool(pool_), IsEmpty());
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
}

}  // namespace
}  // namespace spanpool

#include "server/pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/slot.h"
#include "server/pool_fixture.h"

namespace spanpool {
namespace {

using layout::AccessMode;
using layout::BlockWord;
using layout::Slot;
using layout::SlotState;
using testing::HasSubstr;

constexpr uint64_t kFrozen = uint64_t{1} << 63;

TEST_F(PoolTest, GrantsAreNumberedRecordedAndTakenBackByNumber) {
  const auto session = Attach();
  const ExchangeResult result =
      Exchange(*session, {.returns = {}, .wants = {{kClassOf64, 3, 0, 0}, {kLarge, 1, 5, 0}}});
  ASSERT_EQ(result.grants.size(), 4u);
  EXPECT_TRUE(result.shortfalls.empty());
  std::set<uint64_t> sequences;
  for (const ExchangeGrant& grant : result.grants) sequences.insert(grant.sequence);
  EXPECT_EQ(sequences.size(), 4u);
  EXPECT_EQ(result.grants[3].want, 1u);
  EXPECT_EQ(result.grants[3].pages, PageCount(5));
  EXPECT_EQ(session->loan_bytes(), 8 * kPageBytes);
  EXPECT_EQ(HeapNow().on_loan_bytes, 8 * kPageBytes);

  for (const uint64_t sequence : sequences) {
    Exchange(*session, {.returns = {sequence}, .wants = {}});
  }
  EXPECT_EQ(session->loan_bytes(), 0u);
  EXPECT_EQ(HeapNow().on_loan_bytes, 0u);
  EXPECT_EQ(pool_.stats().returns_total, 4u);
}

TEST_F(PoolTest, AnOldReturnCannotTakeBackANewerGrantNorAnothersSpan) {
  const auto session = Attach();
  const auto other = Attach();
  const ExchangeGrant first = GrantOne(*session);
  Return(*session, first);
  const ExchangeGrant second = GrantOne(*session);  // the same pages again
  EXPECT_EQ(second.first_page, first.first_page);
  Exchange(*session, {.returns = {first.sequence, 0, UINT64_MAX}, .wants = {}});
  Exchange(*other, {.returns = {second.sequence}, .wants = {}});
  EXPECT_EQ(HeapNow().on_loan_bytes, kPageBytes);
  EXPECT_EQ(session->loan_bytes(), kPageBytes);
}

TEST_F(PoolTest, ReturnsAreCarriedOutBeforeWants) {
  const auto session = Attach();
  const ExchangeGrant all = GrantOne(*session, kLarge, kLimit / kPageBytes);
  const ExchangeResult result = Exchange(
      *session, {.returns = {all.sequence}, .wants = {{kLarge, 1, kLimit / kPageBytes, 0}}});
  EXPECT_EQ(result.grants.size(), 1u);
}

TEST_F(PoolTest, EveryRuleOfABatchIsChecked) {
  const auto session = Attach();
  const ExchangeWant good{kClassOf64, 1, 0, 0};
  std::vector<ExchangeBatch> bad(8);
  bad[0].returns.assign(Pool::kMaxReturns + 1, 1);
  bad[1].wants.assign(Pool::kMaxWants + 1, good);
  bad[2].wants = {{kNumSpanClasses, 1, 0, 0}};
  bad[3].wants = {{kClassOf64, 0, 0, 0}};
  bad[4].wants = {{kClassOf64, Pool::kMaxSpansPerWant + 1, 0, 0}};
  bad[5].wants = {{kLarge, 1, 0, 0}};
  bad[6].wants = {{kLarge, 1, 1, 3}};
  bad[7].wants = {{kLarge, 1, 1, 2 * Pool::kMaxAlignmentPages}};
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(pool_.Exchange(*session, bad[i]).status().code(), absl::StatusCode::kInvalidArgument)
        << i;
  }
  EXPECT_EQ(HeapNow().on_loan_bytes, 0u);
}

TEST_F(PoolTest, RandomBatchesNeverBreakTheHeap) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<std::shared_ptr<Session>> sessions = {Attach(), Attach(AccessMode::kRead), Attach()};
  // Small numbers are likely to be valid, large ones to be absurd.
  const auto number = [&] { return random() >> (random() % 64); };
  for (int i = 0; i < 3000; ++i) {
    ExchangeBatch batch;
    for (uint64_t n = random() % 4; n > 0; --n) batch.returns.push_back(number());
    for (uint64_t n = random() % 4; n > 0; --n) {
      batch.wants.push_back({static_cast<uint32_t>(random() % 140), static_cast<uint32_t>(number()),
                             number(), number()});
    }
    std::shared_ptr<Session>& session = sessions[random() % sessions.size()];
    const auto result = pool_.Exchange(*session, batch);
    if (!result.ok()) {
      EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
      pool_.Evict(*session, result.status());
      Reap(*session);
      session = Attach();
    }
    if (i % 100 == 0) HeapNow();
  }
  for (const auto& session : sessions) Reap(*session);
  EXPECT_EQ(HeapNow().on_loan_bytes, 0u);
}

TEST_F(PoolTest, AFullPoolSaysWhatIsShortWhoHoldsItAndWhatToDo) {
  const auto holder = Attach();
  const auto session = Attach();
  GrantOne(*holder, kLarge, kLimit / kPageBytes);
  const ExchangeResult result =
      Exchange(*session, {.returns = {}, .wants = {{kClassOf64, 3, 0, 0}}});
  EXPECT_TRUE(result.grants.empty());
  ASSERT_EQ(result.shortfalls.size(), 1u);
  EXPECT_EQ(result.shortfalls[0].spans_missing, 3u);
  EXPECT_EQ(result.shortfalls[0].status.code(), absl::StatusCode::kResourceExhausted);
  const std::string message(result.shortfalls[0].status.message());
  EXPECT_THAT(message, HasSubstr("limit 16.0 MiB"));
  EXPECT_THAT(message,
              HasSubstr(absl::StrCat("session ", holder->id(), " (pid 1, uid 0) holds most")));
  EXPECT_THAT(message, HasSubstr("give back idle spans"));
  EXPECT_EQ(pool_.stats().refusals_total, 1u);
}

TEST_F(PoolTest, WhatCanNeverBeGrantedIsToldFromWhatCannotBeGrantedNow) {
  const auto session = Attach();
  for (const uint64_t pages : {kLimit / kPageBytes + 1, uint64_t{1} << 51, UINT64_MAX}) {
    const ExchangeResult result =
        Exchange(*session, {.returns = {}, .wants = {{kLarge, 1, pages, 0}}});
    ASSERT_EQ(result.shortfalls.size(), 1u);
    EXPECT_EQ(result.shortfalls[0].status.code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(PoolTest, OneMessageGrantsAtMostSoManySpans) {
  PoolConfig config = DefaultConfig();
  config.limit_bytes = config.session_limit_bytes = uint64_t{256} << 20;
  Pool pool(config, nullptr, &sessions_);
  const auto session = *pool.Attach({}, AccessMode::kWrite, layout::UniqueFd());
  const auto result = pool.Exchange(
      *session, {.returns = {}, .wants = std::vector<ExchangeWant>(5, {kClassOf8, 1000, 0, 0})});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->grants.size(), Pool::kMaxGrants);
  ASSERT_EQ(result->shortfalls.size(), 1u);
  EXPECT_EQ(result->shortfalls[0].want, 4u);
  EXPECT_EQ(result->shortfalls[0].spans_missing, 5000 - Pool::kMaxGrants);
}

TEST_F(PoolTest, AReaderIsGrantedNothing) {
  const auto session = Attach(AccessMode::kRead);
  const ExchangeResult result =
      Exchange(*session, {.returns = {}, .wants = {{kClassOf64, 1, 0, 0}}});
  ASSERT_EQ(result.shortfalls.size(), 1u);
  EXPECT_EQ(result.shortfalls[0].status.code(), absl::StatusCode::kPermissionDenied);
}

class SessionLimitTest : public PoolTest {
 protected:
  SessionLimitTest()
      : PoolTest([] {
          PoolConfig config = DefaultConfig();
          config.session_limit_bytes = 4 * kPageBytes;
          return config;
        }()) {}
};

TEST_F(SessionLimitTest, OneSessionCannotTakeWhatIsLeftForOthers) {
  const auto greedy = Attach();
  const ExchangeResult result =
      Exchange(*greedy, {.returns = {}, .wants = {{kClassOf64, 10, 0, 0}}});
  EXPECT_EQ(result.grants.size(), 4u);
  ASSERT_EQ(result.shortfalls.size(), 1u);
  EXPECT_EQ(result.shortfalls[0].spans_missing, 6u);
  EXPECT_THAT(std::string(result.shortfalls[0].status.message()), HasSubstr("session_limit_bytes"));
  const auto other = Attach();
  GrantOne(*other);
  Return(*greedy, result.grants[0]);
  GrantOne(*greedy);
}

TEST_F(PoolTest, ASessionThatMayHaveThePoolIsToldToRaiseThePoolsLimit) {
  const auto session = Attach();
  const uint64_t half = pool_.config().limit_bytes / kPageBytes / 2;
  const ExchangeResult result =
      Exchange(*session, {.returns = {}, .wants = {{kLarge, 3, half, 0}}});
  ASSERT_EQ(result.shortfalls.size(), 1u);
  const std::string message(result.shortfalls[0].status.message());
  EXPECT_THAT(message, HasSubstr("the pool's limit"));
  EXPECT_THAT(message, HasSubstr("raise limit_bytes of pool"));
}

TEST_F(PoolTest, ADetachedSessionKeepsItsMemoryUntilItsProcessIsDead) {
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*session);
  pool_.LifelineEnded(*session);
  EXPECT_EQ(session->state(), SessionState::kDetached);
  EXPECT_EQ(pool_.Exchange(*session, {.returns = {grant.sequence}, .wants = {}}).status().code(),
            absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(pool_.stats().quarantined_bytes, kPageBytes);
  EXPECT_EQ(HeapNow().on_loan_bytes, kPageBytes);
  Reap(*session);
  EXPECT_EQ(pool_.stats().quarantined_bytes, 0u);
  EXPECT_EQ(HeapNow().on_loan_bytes, 0u);
  EXPECT_EQ(pool_.stats().sessions_reaped_total, 1u);
}

TEST_F(PoolTest, ACleanDetachNeedsEverythingReturnedAndEverySlotFree) {
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*session);
  EXPECT_EQ(pool_.Detach(*session).code(), absl::StatusCode::kFailedPrecondition);
  Return(*session, grant);
  session->memory().slot(5) = Slot(SlotState::kHeld, GranuleId(1)).bits();
  EXPECT_THAT(std::string(pool_.Detach(*session).message()), HasSubstr("slot 5"));
  session->memory().slot(5) = 0;
  session->memory().slot(layout::kSlotCapacity - 1) = Slot(SlotState::kVoid, GranuleId(1)).bits();
  EXPECT_THAT(std::string(pool_.Detach(*session).message()),
              HasSubstr(absl::StrCat("slot ", layout::kSlotCapacity - 1)));
  session->memory().slot(layout::kSlotCapacity - 1) = 0;
  EXPECT_TRUE(pool_.Detach(*session).ok());
  EXPECT_EQ(pool_.stats().sessions, 0u);
  // The death of its process, later, is no news.
  EXPECT_FALSE(pool_.ProcessDied(*session));
}

TEST(SessionTable, LooksSessionsUpByTokenAndKeepsToItsLimit) {
  SessionTable table(8);
  PoolConfig config;
  config.limit_bytes = config.session_limit_bytes = kLimit;
  Pool pool(config, nullptr, &table);
  std::vector<std::shared_ptr<Session>> sessions;
  for (int i = 0; i < 8; ++i) {
    sessions.push_back(*pool.Attach({}, AccessMode::kWrite, layout::UniqueFd()));
  }
  EXPECT_EQ(table.RoomFor(0).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.Attach({}, AccessMode::kWrite, layout::UniqueFd()).status().code(),
            absl::StatusCode::kResourceExhausted);
  const SessionToken& token = sessions[3]->token();
  std::string bytes(token.begin(), token.end());
  EXPECT_EQ(table.Find(bytes), sessions[3]);
  bytes[3] ^= 1;
  EXPECT_EQ(table.Find(bytes), nullptr);
  EXPECT_EQ(table.Find(""), nullptr);
  EXPECT_EQ(table.Find(std::string(17, 'x')), nullptr);
  EXPECT_TRUE(pool.Detach(*sessions[3]).ok());
  EXPECT_TRUE(pool.Attach({}, AccessMode::kWrite, layout::UniqueFd()).ok());
}

TEST(SessionTable, OneUserCannotShutTheOthersOut) {
  SessionTable table(16, /*daemon_uid=*/500);
  PoolConfig config;
  config.limit_bytes = config.session_limit_bytes = kLimit;
  Pool pool(config, nullptr, &table);
  const auto attach = [&](uid_t uid) {
    return pool.Attach({.pid = 1, .uid = uid, .gids = {}}, AccessMode::kWrite, layout::UniqueFd());
  };
  for (int i = 0; i < 14; ++i) ASSERT_TRUE(attach(1000).ok()) << i;
  const auto refused = attach(1000);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("uid 1000 has 14"));
  EXPECT_TRUE(attach(1001).ok());
  EXPECT_TRUE(attach(500).ok());
  EXPECT_FALSE(attach(0).ok()) << "full is full";
}

// What the reaper makes of each state that a death can leave behind.

TEST_F(PoolTest, ReapingPrivateBlocksFreesTheirSpansAtOnce) {
  const auto session = Attach();
  GrantOne(*session, kClassOf64);
  GrantOne(*session, kClassOf8);
  GrantOne(*session, kLarge, 100);
  Reap(*session);
  const HeapStats stats = HeapNow();
  EXPECT_EQ(stats.on_loan_bytes, 0u);
  EXPECT_EQ(stats.in_lists_bytes, 0u);
}

TEST_F(PoolTest, ReapingTheOnlyHolderOfASharedBlockFreesItUnderANewGeneration) {
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*session);
  Share(*session, 0, Granule(grant, 3));
  Reap(*session);
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
  EXPECT_TRUE(WordNow(Granule(grant, 3)).is_private());
  EXPECT_EQ(WordNow(Granule(grant, 3)).generation(), 1u) << "old handles must find nothing";
  EXPECT_EQ(pool_.stats().suspect_blocks, 0u);
}

TEST_F(PoolTest, ABlockThatOthersHoldOutlivesItsSharerAndIsFreedByItsLastReader) {
  const auto sharer = Attach();
  const auto reader = Attach();
  const ExchangeGrant grant = GrantOne(*sharer);
  const GranuleId granule = Granule(grant, 7);
  Share(*sharer, 0, granule);
  Open(*reader, 9, granule);
  Reap(*sharer);
  EXPECT_EQ(WordNow(granule).refs(), 1u);
  HeapStats stats = HeapNow();
  EXPECT_EQ(stats.in_lists_bytes, kPageBytes);
  EXPECT_EQ(stats.live_listed_blocks, 1u);

  // The span is lent again; its holder is told which block is not its own.
  const auto other = Attach();
  const ExchangeGrant again = GrantOne(*other);
  EXPECT_EQ(again.first_page, grant.first_page);
  ASSERT_EQ(again.in_use.size(), 1u);
  EXPECT_EQ(again.in_use[0], uint64_t{1} << 7);
  Return(*other, again);

  Release(*reader, 9, granule);
  EXPECT_GT(pool_.Sweep().value(), 0u);
  stats = HeapNow();
  EXPECT_EQ(stats.in_lists_bytes, 0u);
  EXPECT_EQ(stats.live_listed_blocks, 0u);
}

TEST_F(PoolTest, AReadersDeathTakesBackExactlyItsOwnReference) {
  const auto sharer = Attach();
  const auto reader = Attach();
  const ExchangeGrant grant = GrantOne(*sharer);
  Share(*sharer, 0, Granule(grant, 1));
  Open(*reader, 0, Granule(grant, 1));
  Open(*reader, 4000, Granule(grant, 1));  // a second reference of the same process
  EXPECT_EQ(WordNow(Granule(grant, 1)).refs(), 3u);
  Reap(*reader);
  EXPECT_EQ(WordNow(Granule(grant, 1)).refs(), 1u);
  EXPECT_FALSE(WordNow(Granule(grant, 1)).freed());
  EXPECT_EQ(pool_.stats().sessions, 1u);
}

TEST_F(PoolTest, ASharerThatDiedBeforeItsWordSaidSoLosesNothingOfOthers) {
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*session);
  session->memory().slot(0) = Slot(SlotState::kHeld, Granule(grant, 2)).bits();
  Reap(*session);
  EXPECT_TRUE(WordNow(Granule(grant, 2)).is_private());
  EXPECT_EQ(WordNow(Granule(grant, 2)).generation(), 0u);
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
}

TEST_F(PoolTest, AnIntentOnAWordWithoutReferencesIsProvenUncounted) {
  const auto sharer = Attach();
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*sharer);
  session->memory().slot(0) = Slot(SlotState::kAcquiring, Granule(grant, 0)).bits();
  session->memory().slot(1) = Slot(SlotState::kReleasing, Granule(grant, 1)).bits();
  Reap(*session);
  EXPECT_EQ(pool_.stats().suspect_blocks, 0u);
  EXPECT_TRUE(WordNow(Granule(grant, 0)).is_private());
}

TEST_F(PoolTest, AVoidSlotIsJustFreed) {
  const auto sharer = Attach();
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*sharer);
  Share(*sharer, 0, Granule(grant, 0));
  session->memory().slot(0) = Slot(SlotState::kVoid, Granule(grant, 0)).bits();
  Reap(*session);
  EXPECT_EQ(WordNow(Granule(grant, 0)).refs(), 1u);
}

TEST_F(PoolTest, SpansAreTakenBackOnlyWhenEverySlotIsFree) {
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*session);
  for (uint32_t i = 0; i < 100; ++i) Share(*session, i, Granule(grant, i));
  ASSERT_TRUE(pool_.ProcessDied(*session));
  for (bool done = false; !done;) {
    bool all_free = true;
    for (uint32_t i = 0; i < 100; ++i) {
      all_free = all_free && Slot(session->memory().slot(i)).state() == SlotState::kFree;
    }
    if (!all_free) {
      EXPECT_EQ(HeapNow().on_loan_bytes, kPageBytes);
    }
    done = pool_.ReapSome(*session, 1) == ReapProgress::kDone;
  }
  EXPECT_EQ(HeapNow().on_loan_bytes, 0u);
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
}

TEST_F(PoolTest, LiesInSlotsAreCountedAndChangeNothing) {
  const auto sharer = Attach();
  const auto liar = Attach();
  const ExchangeGrant grant = GrantOne(*sharer);
  Share(*sharer, 0, Granule(grant, 0));
  uint32_t slot = 0;
  for (uint64_t state = 6; state <= 7; ++state) {
    liar->memory().slot(slot++) = state << 61 | Granule(grant, 0).value();
  }
  for (const uint64_t granule : {uint64_t{kGranulesPerArena} - 1, uint64_t{kGranulesPerArena},
                                 uint64_t{kGranulesPerArena} << 22, (uint64_t{1} << 53) - 1}) {
    liar->memory().slot(slot++) = Slot(SlotState::kHeld, GranuleId(granule)).bits();
  }
  Reap(*liar);
  EXPECT_EQ(pool_.stats().lies_total, 6u);
  EXPECT_EQ(WordNow(Granule(grant, 0)).refs(), 1u);
  HeapNow();
}

TEST_F(PoolTest, AWordThatMakesNoSenseKeepsItsSpanFromBeingUsedAgain) {
  const auto session = Attach();
  const ExchangeGrant frozen = GrantOne(*session, kLarge, 3);
  const ExchangeGrant odd = GrantOne(*session, kLarge, 3);
  Word(Granule(frozen, 0)) = kFrozen;
  Word(Granule(odd, 0)) = BlockWord().Shared().Released().bits() | uint64_t{5} << 40;
  session->memory().slot(0) = Slot(SlotState::kHeld, Granule(frozen, 0)).bits();
  session->memory().slot(1) = Slot(SlotState::kHeld, Granule(odd, 0)).bits();
  Reap(*session);
  EXPECT_EQ(HeapNow().in_lists_bytes, 6 * kPageBytes);
  EXPECT_EQ(pool_.stats().suspect_blocks, 1u) << "frozen without references was never counted";
}

TEST_F(PoolTest, ABlockAtTheLargestGenerationIsNeverUsedAgain) {
  const auto session = Attach();
  const ExchangeGrant grant = GrantOne(*session, kLarge, 1);
  Word(Granule(grant, 0)) = BlockWord(layout::kMaxGeneration).Shared().Released().bits();
  Return(*session, grant);
  EXPECT_EQ(HeapNow().in_lists_bytes, kPageBytes);
  pool_.Sweep();
  EXPECT_EQ(HeapNow().in_lists_bytes, kPageBytes);
}

TEST_F(PoolTest, RandomMemoryOfADeadClientNeverBreaksTheHeap) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 50; ++round) {
    const auto victim = Attach();
    const auto liar = Attach();
    const ExchangeGrant grant = GrantOne(*victim);
    const ExchangeGrant own = GrantOne(*liar, random() % 2 ? kClassOf64 : kLarge, 9);
    for (int i = 0; i < 200; ++i) {
      uint64_t bits = random();
      // Half of them name granules that exist.
      if (random() % 2) {
        bits = (bits & ~((uint64_t{1} << 53) - 1)) |
               (GranuleOf(grant.first_page).value() + random() % 512);
      }
      liar->memory().slot(static_cast<uint32_t>(random() % 20'000)) = bits;
      layout::SharedWord* word =
          pool_.arenas().WordOf(GranuleId(GranuleOf(own.first_page).value() + random() % 128));
      if (word != nullptr) *word = random();
    }
    Reap(*liar);
    Return(*victim, grant);
    Reap(*victim);
    EXPECT_EQ(HeapNow().on_loan_bytes, 0u);
  }
}

TEST_F(PoolTest, AGrantThatWouldFailFirstCollectsWhatOthersDropped) {
  const auto sharer = Attach();
  const auto reader = Attach();
  const ExchangeGrant grant = GrantOne(*sharer, kLarge, kLimit / kPageBytes);
  Share(*sharer, 0, Granule(grant, 0));
  Open(*reader, 0, Granule(grant, 0));
  Release(*sharer, 0, Granule(grant, 0));
  Return(*sharer, grant);
  EXPECT_EQ(HeapNow().in_lists_bytes, kLimit);
  Release(*reader, 0, Granule(grant, 0));
  GrantOne(*sharer);
  EXPECT_EQ(HeapNow().in_lists_bytes, 0u);
}

// What a client holds, and what the daemon has on record.

std::vector<uint64_t> DeltasOf(const std::vector<uint64_t>& sequences, uint64_t after = 0) {
  std::vector<uint64_t> deltas;
  for (const uint64_t sequence : sequences)
    deltas.push_back(sequence - std::exchange(after, sequence));
  return deltas;
}

TEST_F(PoolTest, WhatIsMissingInAnInventoryIsTakenBackAndTheRestStays) {
  const auto session = Attach();
  const auto other = Attach();
  std::vector<uint64_t> kept;
  std::vector<uint64_t> lost;
  for (int i = 0; i < 20; ++i) {
    GrantOne(*other);
    (i % 3 == 0 ? lost : kept).push_back(GrantOne(*session).sequence);
  }
  InventoryProgress progress;
  auto unknown = pool_.Reconcile(*session, {DeltasOf(kept), false}, &progress);
  ASSERT_TRUE(unknown.ok()) << unknown.status();
  EXPECT_TRUE(unknown->empty());
  EXPECT_EQ(session->loan_count(), kept.size());
  EXPECT_EQ(session->loan_bytes(), kept.size() * kPageBytes);
  EXPECT_EQ(other->loan_count(), 20u);
  EXPECT_EQ(HeapNow().on_loan_bytes, (kept.size() + 20) * kPageBytes);
  // Returns that were under way name what is gone, and free nothing that was lent since.
  const ExchangeGrant fresh = GrantOne(*session);
  Exchange(*session, {.returns = lost, .wants = {}});
  EXPECT_EQ(session->loan_count(), kept.size() + 1);
  kept.push_back(fresh.sequence);
  Exchange(*session, {.returns = kept, .wants = {}});
  EXPECT_EQ(session->loan_count(), 0u);
}

TEST_F(PoolTest, AnInventoryInPartsTakesBackAsFarAsEachPartReaches) {
  const auto session = Attach();
  const ExchangeResult result =
      Exchange(*session, {.returns = {}, .wants = {{kClassOf64, 10, 0, 0}}});
  std::vector<uint64_t> all;
  for (const ExchangeGrant& grant : result.grants) all.push_back(grant.sequence);
  InventoryProgress progress;
  // The second and the fourth.
  ASSERT_TRUE(pool_.Reconcile(*session, {DeltasOf({all[1], all[3]}), true}, &progress).ok());
  EXPECT_EQ(session->loan_count(), 8u);
  ASSERT_TRUE(pool_.Reconcile(*session, {DeltasOf({all[4]}, all[3]), true}, &progress).ok());
  EXPECT_EQ(session->loan_count(), 8u);
  ASSERT_TRUE(pool_.Reconcile(*session, {DeltasOf({all[6]}, all[4]), false}, &progress).ok());
  EXPECT_EQ(session->loan_count(), 4u);
  // An empty inventory is one, too.
  progress = {};
  ASSERT_TRUE(pool_.Reconcile(*session, {{}, false}, &progress).ok());
  EXPECT_EQ(session->loan_count(), 0u);
  EXPECT_EQ(HeapNow().on_loan_bytes, 0u);
}

TEST_F(PoolTest, NumbersThatAreNotOnRecordAreNamed) {
  const auto session = Attach();
  const auto other = Attach();
  const uint64_t mine = GrantOne(*session).sequence;
  const uint64_t anothers = GrantOne(*other).sequence;
  const ExchangeGrant returned = GrantOne(*session);
  Return(*session, returned);
  InventoryProgress progress;
  const auto unknown =
      pool_.Reconcile(*session, {DeltasOf({mine, anothers, returned.sequence}), false}, &progress);
  ASSERT_TRUE(unknown.ok());
  EXPECT_EQ(*unknown, (std::vector<uint64_t>{anothers, returned.sequence}));
  EXPECT_EQ(session->loan_count(), 1u);
  EXPECT_EQ(other->loan_count(), 1u);
}

TEST_F(PoolTest, AnInventoryThatCannotBeIsRefusedAndTakesNothingBack) {
  const auto session = Attach();
  std::vector<uint64_t> all;
  for (int i = 0; i < 3; ++i) all.push_back(GrantOne(*session).sequence);
  const std::vector<InventoryPart> wrong = {
      {{all[0], 0}, false},                                        // does not ascend
      {{all[0], UINT64_MAX}, false},                               // round the corner
      {{all[2] + 1}, false},                                       // never given out
      {{UINT64_MAX}, false},                                       //
      {{}, true},                                                  // endless
      {std::vector<uint64_t>(Pool::kMaxInventory + 1, 1), false},  // too long
      {std::vector<uint64_t>(kLimit / kPageBytes + 1, 1), false},  // more than there are
  };
  for (size_t i = 0; i < wrong.size(); ++i) {
    InventoryProgress progress;
    EXPECT_EQ(pool_.Reconcile(*session, wrong[i], &progress).status().code(),
              absl::StatusCode::kInvalidArgument)
        << i;
  }
  // Spread over parts, too.
  InventoryProgress progress{.last = all[0], .count = kLimit / kPageBytes};
  EXPECT_FALSE(pool_.Reconcile(*session, {{1}, false}, &progress).ok());
  EXPECT_EQ(session->loan_count(), 3u);
  pool_.LifelineEnded(*session);
  progress = {};
  EXPECT_EQ(pool_.Reconcile(*session, {{}, false}, &progress).status().code(),
            absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(session->loan_count(), 3u);
}

TEST_F(PoolTest, RandomInventoriesLeaveExactlyWhatTheyName) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const auto session = Attach();
  const auto other = Attach();
  std::vector<uint64_t> mine;
  for (int round = 0; round < 200; ++round) {
    for (uint64_t n = random() % 40; n > 0; --n) {
      if (random() % 4 == 0) {
        const auto result =
            pool_.Exchange(*other, {.returns = {}, .wants = {{kClassOf64, 1, 0, 0}}});
        ASSERT_TRUE(result.ok());
      }
      const auto result =
          pool_.Exchange(*session, {.returns = {}, .wants = {{kClassOf64, 1, 0, 0}}});
      ASSERT_TRUE(result.ok());
      for (const ExchangeGrant& grant : result->grants) mine.push_back(grant.sequence);
    }
    std::erase_if(mine, [&](uint64_t) { return random() % 3 == 0; });
    InventoryProgress progress;
    uint64_t after = 0;
    for (size_t begin = 0;;) {
      const size_t count = std::min<size_t>(1 + random() % 10, mine.size() - begin);
      const std::vector<uint64_t> part(mine.begin() + static_cast<ptrdiff_t>(begin),
                                       mine.begin() + static_cast<ptrdiff_t>(begin + count));
      begin += count;
      const bool more = begin < mine.size();
      const auto unknown = pool_.Reconcile(*session, {DeltasOf(part, after), more}, &progress);
      ASSERT_TRUE(unknown.ok()) << unknown.status();
      ASSERT_TRUE(unknown->empty());
      if (!more) break;
      after = part.back();
    }
    ASSERT_EQ(session->loan_count(), mine.size());
    for (const uint64_t sequence : mine) ASSERT_TRUE(session->NotOnLoan({&sequence, 1}).empty());
  }
  HeapNow();
}

// Streams, one after another.

class FakeStream : public SessionStream {
 public:
  void End(const absl::Status& status) override { ended = status; }
  void MayBegin() override { ++begun; }
  absl::Status ended;
  int begun = 0;
};

TEST_F(PoolTest, AStreamBeginsWhenTheOneBeforeIsOver) {
  const auto session = Attach();
  const auto first = std::make_shared<FakeStream>();
  const auto second = std::make_shared<FakeStream>();
  const auto third = std::make_shared<FakeStream>();
  ASSERT_TRUE(session->SetStream(first));
  EXPECT_EQ(first->begun, 1);
  ASSERT_TRUE(session->SetStream(second));
  EXPECT_EQ(first->ended.code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(session->SetStream(third));
  EXPECT_EQ(second->ended.code(), absl::StatusCode::kAborted);
  session->StreamIsOver(second.get());  // it never began
  EXPECT_EQ(third->begun, 0);
  session->StreamIsOver(first.get());
  session->StreamIsOver(first.get());
  EXPECT_EQ(second->begun, 0);
  EXPECT_EQ(third->begun, 1);
  session->StreamIsOver(third.get());
  const auto fourth = std::make_shared<FakeStream>();
  ASSERT_TRUE(session->SetStream(fourth));
  EXPECT_EQ(fourth->begun, 1);
}

TEST_F(PoolTest, SessionsThatDieWhileOthersWorkLeaveExactCounts) {
  // One thread reaps, as in the daemon; others attach, borrow, share and die.
  std::atomic<bool> stop{false};
  RankedMutex mu(LockRank::kLeaf);
  std::vector<std::shared_ptr<Session>> dead;
  std::thread reaper([&] {
    for (;;) {
      const bool last = stop.load();
      std::vector<std::shared_ptr<Session>> batch;
      {
        RankedMutexLock lock(&mu);
        batch.swap(dead);
      }
      for (const auto& session : batch) {
        while (pool_.ReapSome(*session, 16) != ReapProgress::kDone) {
        }
      }
      if (last && batch.empty()) return;
    }
  });
  std::vector<std::thread> workers;
  for (int w = 0; w < 3; ++w) {
    workers.emplace_back([&, w] {
      std::mt19937_64 random(w);
      for (int i = 0; i < 200; ++i) {
        const auto session = Attach();
        const ExchangeResult result = Exchange(
            *session, {.returns = {}, .wants = {{kClassOf64, 4, 0, 0}, {kLarge, 2, 3, 0}}});
        for (uint32_t g = 0; g < result.grants.size(); ++g) {
          if (random() % 2 && result.grants[g].in_use.empty()) {
            Share(*session, g, Granule(result.grants[g], 0));
          }
        }
        if (random() % 2) pool_.LifelineEnded(*session);
        pool_.ProcessDied(*session);
        RankedMutexLock lock(&mu);
        dead.push_back(session);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  stop = true;
  reaper.join();
  const HeapStats stats = HeapNow();
  EXPECT_EQ(stats.on_loan_bytes, 0u);
  EXPECT_EQ(stats.in_lists_bytes, 0u);
  EXPECT_EQ(pool_.stats().sessions_reaped_total, 600u);
  EXPECT_EQ(pool_.stats().suspect_blocks, 0u);
  EXPECT_EQ(pool_.stats().lies_total, 0u);
}

// A machine with little memory left.

class ShortMemoryTest : public testing::Test {
 protected:
  ShortMemoryTest() : root_(testing::TempDir() + "/short"), memory_(root_) {
    std::filesystem::create_directories(root_ + "/proc");
    SetAvailable(uint64_t{1} << 30);
  }
  void SetAvailable(uint64_t bytes) {
    std::ofstream(root_ + "/proc/meminfo") << "MemAvailable: " << bytes / 1024 << " kB\n";
  }

  const std::string root_;
  const MemoryLimit memory_;
};

TEST_F(ShortMemoryTest, MemoryIsRefusedBeforeTheMachineRunsOutOfIt) {
  SetAvailable(PoolArenas::kMarginBytes + (4 << 20));
  SessionTable sessions(4);
  PoolConfig config;
  config.limit_bytes = config.session_limit_bytes = uint64_t{1} << 30;
  config.reserve_bytes = 0;
  Pool pool(config, &memory_, &sessions);
  const auto session = *pool.Attach({}, AccessMode::kWrite, layout::UniqueFd());
  auto result =
      pool.Exchange(*session, {.returns = {}, .wants = {{kLarge, 1, (64 << 20) / 8192, 0}}});
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result->shortfalls.size(), 1u);
  EXPECT_EQ(result->shortfalls[0].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(result->shortfalls[0].status.message()), HasSubstr("MiB left"));
  pool.heap().CheckInvariants();
  // What fits is granted.
  result = pool.Exchange(*session, {.returns = {}, .wants = {{kClassOf64, 1, 0, 0}}});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->grants.size(), 1u);
}

}  // namespace
}  // namespace spanpool

// A pool whose worker is gone, at any moment, and is made again from what was kept.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"
#include "proto/layout/step.h"
#include "server/memory_fd_store.h"
#include "server/pool.h"
#include "server/pool_audit.h"
#include "server/pool_state.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;
using layout::UniqueFd;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint32_t kClassOf64 = 6 * 2 + 1;  // 64-byte blocks, noscan, 128 a span
constexpr uint32_t kLarge = 1;              // noscan
constexpr uint64_t kHash = 5;

PoolConfig Config() {
  PoolConfig config;
  config.limit_bytes = uint64_t{16} << 20;
  config.reserve_bytes = 0;
  config.session_limit_bytes = config.limit_bytes;
  config.transit_grace = absl::Hours(1);
  return config;
}

// A pool, and what its clients would do to the memory.
class Driver {
 public:
  explicit Driver(FdStore* store) : store_(store) {
    auto pool = Pool::Create(Config(), nullptr, &sessions_, store, kHash);
    SPANPOOL_CHECK(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  Driver(FdStore* store, KeptFds kept) : store_(store) {
    auto state =
        PoolState::Open(std::move(kept[KeptStateName("default")]), "default", kHash, store);
    status_ = state.status();
    if (!status_.ok()) return;
    (*state)->SetWorker((*state)->worker() + 1);
    auto pool = Pool::Restore(Config(), nullptr, &sessions_, *std::move(state), &kept);
    status_ = pool.status();
    if (pool.ok()) pool_ = *std::move(pool);
  }

  const absl::Status& status() const { return status_; }
  Pool& pool() { return *pool_; }

  std::shared_ptr<Session> Attach() {
    auto session = pool_->Attach({.pid = 1, .uid = 0, .gids = {}}, layout::AccessMode::kWrite,
                                 UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)), nothing_.get());
    SPANPOOL_CHECK(session.ok()) << session.status();
    return *session;
  }
  std::shared_ptr<Session> Find(uint32_t id) {
    for (const auto& session : pool_->Sessions()) {
      if (session->id() == id) return session;
    }
    return nullptr;
  }
  std::vector<ExchangeGrant> Grant(Session& session, uint32_t spans, uint32_t span_class,
                                   uint64_t pages = 0) {
    auto result =
        pool_->Exchange(session, {.returns = {}, .wants = {{span_class, spans, pages, 0}}});
    SPANPOOL_CHECK(result.ok() && result->grants.size() == spans);
    return result->grants;
  }
  void Return(Session& session, std::vector<uint64_t> sequences) {
    SPANPOOL_CHECK(pool_->Exchange(session, {.returns = std::move(sequences), .wants = {}}).ok());
  }

  static GranuleId Granule(const ExchangeGrant& grant, uint32_t index) {
    return GranuleId(GranuleOf(grant.first_page).value() + index);
  }
  layout::SharedWord& Word(GranuleId granule) { return *pool_->arenas().WordOf(granule); }
  void SetSlot(Session& session, uint32_t slot, SlotState state, GranuleId granule) {
    session.memory().slot(slot) = Slot(state, granule).bits();
  }
  void Share(Session& session, uint32_t slot, GranuleId granule) {
    SetSlot(session, slot, SlotState::kHeld, granule);
    Word(granule) = BlockWord(Word(granule)).Shared().bits();
  }
  void Open(Session& session, uint32_t slot, GranuleId granule) {
    SetSlot(session, slot, SlotState::kHeld, granule);
    Word(granule) = BlockWord(Word(granule)).Acquired().bits();
  }
  void Release(Session& session, uint32_t slot, GranuleId granule) {
    Word(granule) = BlockWord(Word(granule)).Released().bits();
    session.memory().slot(slot) = 0;
  }
  absl::StatusOr<uint64_t> Publish(Session& session, const std::string& name, GranuleId granule,
                                   bool outlive = false, bool replace = false) {
    return pool_->Publish(session, {.name = name,
                                    .handle = {.incarnation = pool_->incarnation(),
                                               .granule = granule,
                                               .length = 64,
                                               .generation = BlockWord(Word(granule)).generation()},
                                    .outlive_session = outlive,
                                    .replace = replace});
  }
  void Reap(Session& session, uint32_t budget = 1000) {
    while (pool_->ReapSome(session, budget) != ReapProgress::kDone) {
    }
  }
  void ReapTheDead() {
    for (const auto& session : pool_->Sessions()) {
      if (session->state() == SessionState::kDead) Reap(*session);
    }
  }

  // The sequence numbers of what a session has on loan, and where.
  std::map<uint64_t, PageId> LoansOf(const Session& session) {
    std::map<uint64_t, PageId> loans;
    for (const ArenaIndex arena : pool_->state()->Arenas()) {
      for (uint64_t i = 0; i < kPagesPerArena; ++i) {
        const PageId page = FirstPageOf(arena) + PageCount(i);
        const Span* const span = pool_->heap().SpanOf(page);
        if (span != nullptr && span->first_page == page && span->loan_session == session.id()) {
          loans[span->loan_sequence] = page;
        }
      }
    }
    return loans;
  }
  std::string Audit() {
    pool_->heap().CheckInvariants();
    return absl::StrJoin(AuditPool(*pool_), "\n");
  }
  // Everybody dies, and all names go: nothing may be left.
  void EndAll() {
    for (const auto& session : pool_->Sessions()) {
      pool_->ProcessDied(*session);
      Reap(*session);
    }
    for (bool more = true; more;) {
      for (const PublishedBlock& each : pool_->names().List("", "", 100, &more)) {
        EXPECT_TRUE(pool_->Unpublish(each.name).ok());
      }
    }
    pool_->SettleReferences(absl::Now() + absl::Hours(2));
    pool_->Sweep();
    EXPECT_EQ(Audit(), "");
    const HeapStats heap = pool_->heap().stats();
    EXPECT_EQ(heap.on_loan_bytes, 0u);
    EXPECT_EQ(heap.in_lists_bytes, 0u);
    EXPECT_THAT(*pool_->state()->Sessions(), IsEmpty());
    EXPECT_THAT(*pool_->state()->Spans(), IsEmpty());
    EXPECT_THAT(*pool_->state()->Names(), IsEmpty());
  }

 private:
  FdStore* const store_;
  const UniqueFd nothing_{open("/dev/null", O_RDONLY | O_CLOEXEC)};
  absl::Status status_;
  SessionTable sessions_{100};
  std::unique_ptr<Pool> pool_;
};

class PoolRestart : public testing::Test {
 protected:
  PoolRestart() : driver_(std::make_unique<Driver>(&store_)) {}

  // The worker is gone without a word, and the next one begins.
  void Restart() {
    KeptFds kept = store_.Copies();
    driver_.reset();
    driver_ = std::make_unique<Driver>(&store_, std::move(kept));
    ASSERT_TRUE(driver_->status().ok()) << driver_->status();
    driver_->pool().heap().CheckInvariants();
  }
  // Whether a handle of the block opens now.
  bool Opens(const layout::HandleBits& handle) {
    const BlockWord word(driver_->Word(handle.granule));
    return word.generation() == handle.generation && word.is_shared();
  }

  MemoryFdStore store_;
  std::unique_ptr<Driver> driver_;
};

TEST_F(PoolRestart, ANewPoolIsTheSamePoolAgain) {
  const uint32_t incarnation = driver_->pool().incarnation();
  Restart();
  EXPECT_EQ(driver_->pool().incarnation(), incarnation);
  EXPECT_EQ(driver_->Audit(), "");
}

TEST_F(PoolRestart, LoansListsAndNumbersAreAsTheyWere) {
  auto a = driver_->Attach();
  auto b = driver_->Attach();
  const auto small = driver_->Grant(*a, 3, kClassOf64);
  const auto large = driver_->Grant(*b, 2, kLarge, 9);
  driver_->Share(*a, 0, driver_->Granule(small[0], 5));
  driver_->Open(*b, 7, driver_->Granule(small[0], 5));
  driver_->Return(*a, {small[0].sequence, small[1].sequence});
  driver_->Return(*b, {large[0].sequence});
  const auto loans_of_a = driver_->LoansOf(*a);
  const auto loans_of_b = driver_->LoansOf(*b);
  const SessionToken token = a->token();
  const uint32_t a_id = a->id(), b_id = b->id();
  const HeapStats before = driver_->pool().heap().stats();
  a.reset();
  b.reset();
  Restart();
  EXPECT_EQ(driver_->Audit(), "");
  const HeapStats after = driver_->pool().heap().stats();
  EXPECT_EQ(after.on_loan_bytes, before.on_loan_bytes);
  EXPECT_EQ(after.in_lists_bytes, before.in_lists_bytes);
  EXPECT_EQ(after.reserved_bytes, before.reserved_bytes);
  a = driver_->Find(a_id);
  b = driver_->Find(b_id);
  ASSERT_TRUE(a != nullptr && b != nullptr);
  EXPECT_EQ(a->token(), token);
  EXPECT_EQ(a->state(), SessionState::kAttached);
  EXPECT_EQ(driver_->LoansOf(*a), loans_of_a);
  EXPECT_EQ(driver_->LoansOf(*b), loans_of_b);
  EXPECT_EQ(driver_->pool().TakeLifelines().size(), 2u);

  // Old numbers name old grants; new ones are new.
  driver_->Return(*a, {small[0].sequence, small[2].sequence});
  EXPECT_THAT(driver_->LoansOf(*a), IsEmpty());
  const auto fresh = driver_->Grant(*a, 1, kClassOf64);
  EXPECT_GT(fresh[0].sequence, large[1].sequence);
  EXPECT_GT(driver_->Attach()->id(), b_id);
  driver_->EndAll();
}

TEST_F(PoolRestart, ASharedBlockInAListedSpanIsNotGrantedAgain) {
  auto a = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kClassOf64)[0];
  driver_->Share(*a, 0, driver_->Granule(grant, 3));
  driver_->Return(*a, {grant.sequence});
  const uint32_t id = a->id();
  a.reset();
  Restart();
  a = driver_->Find(id);
  driver_->pool().Sweep();
  const auto again = driver_->Grant(*a, 1, kClassOf64)[0];
  EXPECT_EQ(again.first_page, grant.first_page);
  EXPECT_THAT(again.in_use, ElementsAre(uint64_t{1} << 3));
  EXPECT_EQ(driver_->Audit(), "");
}

TEST_F(PoolRestart, NamesOpenAndVersionsGoOn) {
  auto a = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kClassOf64)[0];
  driver_->Share(*a, 0, driver_->Granule(grant, 0));
  ASSERT_TRUE(driver_->Publish(*a, "stays", driver_->Granule(grant, 0), /*outlive=*/true).ok());
  ASSERT_TRUE(driver_->Publish(*a, "goes", driver_->Granule(grant, 0)).ok());
  ASSERT_TRUE(driver_->Publish(*a, "gone", driver_->Granule(grant, 0)).ok());
  ASSERT_TRUE(driver_->pool().Unpublish("gone").ok());
  const uint32_t id = a->id();
  a.reset();
  Restart();
  EXPECT_EQ(driver_->Audit(), "");
  EXPECT_TRUE(driver_->pool().Lookup("stays").ok());
  EXPECT_TRUE(absl::IsNotFound(driver_->pool().Lookup("gone").status()));
  const auto goes = driver_->pool().Lookup("goes");
  ASSERT_TRUE(goes.ok());
  EXPECT_TRUE(Opens(goes->handle));
  EXPECT_EQ(goes->session, id);
  a = driver_->Find(id);
  const auto version = driver_->Publish(*a, "new", driver_->Granule(grant, 0));
  ASSERT_TRUE(version.ok());
  EXPECT_GE(*version, 5u);  // four changes were before
  // As ever, those that do not outlive their session go with it.
  driver_->pool().LifelineEnded(*a);
  EXPECT_FALSE(driver_->pool().Lookup("goes").ok());
  EXPECT_TRUE(driver_->pool().Lookup("stays").ok());
  driver_->EndAll();
}

TEST_F(PoolRestart, AWatchBeginsAnewWithTheNamesThereAre) {
  auto a = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kClassOf64)[0];
  driver_->Share(*a, 0, driver_->Granule(grant, 0));
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(driver_->Publish(*a, absl::StrCat("n", i), driver_->Granule(grant, 0)).ok());
  }
  a.reset();
  Restart();
  NameTable& names = driver_->pool().names();
  const auto watch = names.NewWatch({}, [] {});
  size_t told = 0;
  for (bool current = false; !current;) {  // a few at a time
    const NameTable::News news = names.Take(*watch, 3);
    EXPECT_EQ(news.reset, told == 0);
    told += news.changes.size();
    current = news.current;
  }
  EXPECT_EQ(told, 10u);
}

TEST_F(PoolRestart, ADetachedSessionKeepsItsMemoryUntilItsProcessIsDead) {
  auto a = driver_->Attach();
  driver_->Grant(*a, 2, kClassOf64);
  driver_->pool().LifelineEnded(*a);
  const uint32_t id = a->id();
  a.reset();
  Restart();
  a = driver_->Find(id);
  ASSERT_TRUE(a != nullptr);
  EXPECT_EQ(a->state(), SessionState::kDetached);
  EXPECT_THAT(driver_->pool().TakeLifelines(), IsEmpty());
  EXPECT_EQ(driver_->pool().stats().quarantined_bytes, 2 * 8192u);
  EXPECT_TRUE(driver_->pool().ProcessDied(*a));
  driver_->Reap(*a);
  EXPECT_EQ(driver_->pool().heap().stats().on_loan_bytes, 0u);
  EXPECT_EQ(store_.size(), 3u + 2u);  // state, session 0 and the arena
}

TEST_F(PoolRestart, ReapingGoesOnWhereItWas) {
  for (uint32_t pieces = 0; pieces < 12; ++pieces) {
    auto a = driver_->Attach();
    auto b = driver_->Attach();
    const auto grants = driver_->Grant(*a, 4, kClassOf64);
    for (uint32_t i = 0; i < 8; ++i) driver_->Share(*a, i, driver_->Granule(grants[i % 4], i));
    driver_->Open(*b, 0, driver_->Granule(grants[0], 0));
    driver_->SetSlot(*a, 9, SlotState::kReleasing, driver_->Granule(grants[0], 0));
    driver_->pool().ProcessDied(*a);
    for (uint32_t i = 0; i < pieces; ++i) driver_->pool().ReapSome(*a, 1);
    const uint32_t b_id = b->id();
    a.reset();
    b.reset();
    Restart();
    driver_->ReapTheDead();
    EXPECT_EQ(driver_->Audit(), "") << pieces;
    b = driver_->Find(b_id);
    EXPECT_EQ(driver_->pool().heap().stats().in_lists_bytes, 8192u);
    driver_->Release(*b, 0, driver_->Granule(grants[0], 0));
    b.reset();
    driver_->EndAll();
  }
}

TEST_F(PoolRestart, WordsThatWereFrozenAreRecounted) {
  auto a = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kClassOf64)[0];
  const GranuleId granule = driver_->Granule(grant, 0);
  driver_->Share(*a, 0, granule);
  driver_->pool().state()->BeginRecount({granule, driver_->Granule(grant, 1)});
  driver_->Word(granule) = BlockWord(driver_->Word(granule)).Frozen().bits();
  a.reset();
  Restart();
  EXPECT_EQ(driver_->Audit(), "");
  EXPECT_EQ(BlockWord(driver_->Word(granule)).refs(), 1u);
  EXPECT_THAT(driver_->pool().state()->UnfinishedRecount(), IsEmpty());
}

TEST_F(PoolRestart, WhatSessionZeroWasInTheMiddleOfIsUndone) {
  auto a = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kClassOf64)[0];
  const GranuleId counted = driver_->Granule(grant, 0), uncounted = driver_->Granule(grant, 1);
  const GranuleId held = driver_->Granule(grant, 2), alone = driver_->Granule(grant, 3);
  for (uint32_t i = 0; i < 3; ++i) driver_->Share(*a, i, driver_->Granule(grant, i));
  SessionMemory& own = *driver_->pool().worker_references().memory();
  own.slot(2) = Slot(SlotState::kAcquiring, counted).bits();
  driver_->Word(counted) = BlockWord(driver_->Word(counted)).Acquired().bits();
  own.slot(3) = Slot(SlotState::kAcquiring, uncounted).bits();
  own.slot(4) = Slot(SlotState::kHeld, held).bits();  // for a name that was never stored
  driver_->Word(held) = BlockWord(driver_->Word(held)).Acquired().bits();
  own.slot(6) = Slot(SlotState::kReleasing, alone).bits();  // the last, dropped
  driver_->Word(alone) = BlockWord(driver_->Word(alone)).Shared().Released().bits();
  own.slot(7) = Slot::Void(held, 3).bits();
  a.reset();
  Restart();
  EXPECT_EQ(driver_->Audit(), "");
  for (const GranuleId granule : {counted, uncounted, held}) {
    EXPECT_EQ(BlockWord(driver_->Word(granule)).refs(), 1u);
  }
  for (uint32_t i = 0; i < 10; ++i) {
    EXPECT_EQ(driver_->pool().worker_references().memory()->slot(i).load(), 0u) << i;
  }
  // Slots that were in use are given again.
  const auto session = driver_->Attach();
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(driver_->Publish(*session, absl::StrCat(i), held).ok());
  }
  EXPECT_EQ(driver_->Audit(), "");
  driver_->EndAll();
}

TEST_F(PoolRestart, HandlesUnderWayAreKept) {
  auto a = driver_->Attach();
  auto b = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kClassOf64)[0];
  const GranuleId granule = driver_->Granule(grant, 0);
  driver_->Share(*a, 0, granule);
  const BlockWord sent = BlockWord(driver_->Word(granule)).Sent();
  driver_->Word(granule) = sent.bits();
  a->memory().slot(0) = Slot::Transit(granule, sent.send_number()).bits();
  driver_->pool().ProcessDied(*a);
  driver_->Reap(*a);
  EXPECT_EQ(driver_->pool().stats().adopted_references, 1u);
  a.reset();
  b.reset();
  Restart();
  EXPECT_EQ(driver_->Audit(), "");
  EXPECT_EQ(driver_->pool().stats().adopted_references, 1u);
  EXPECT_EQ(BlockWord(driver_->Word(granule)).refs(), 1u);
  driver_->pool().SettleReferences(absl::Now() + absl::Hours(2));
  EXPECT_EQ(BlockWord(driver_->Word(granule)).refs(), 0u);
  driver_->EndAll();
}

TEST_F(PoolRestart, SpansInQuarantineStayThere) {
  auto a = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kClassOf64)[0];
  const GranuleId granule = driver_->Granule(grant, 0);
  driver_->Share(*a, 0, granule);
  driver_->Word(granule) = BlockWord(driver_->Word(granule)).Frozen().bits();  // a lie
  driver_->pool().ProcessDied(*a);
  driver_->Reap(*a);
  EXPECT_EQ(driver_->pool().stats().suspect_blocks, 1u);
  driver_->Word(granule) = 0;
  a.reset();
  Restart();
  EXPECT_EQ(driver_->pool().stats().suspect_blocks, 1u);
  driver_->pool().Sweep();
  EXPECT_EQ(driver_->pool().heap().stats().in_lists_bytes, 8192u);
}

TEST_F(PoolRestart, WhatIsOnRecordAndWasNotKeptIsRefused) {
  auto a = driver_->Attach();
  driver_->Grant(*a, 1, kClassOf64);
  const uint32_t incarnation = driver_->pool().incarnation();
  const std::vector<std::string> names = {
      KeptArenaName(incarnation, ArenaIndex(0), ArenaFd::kData),
      KeptArenaName(incarnation, ArenaIndex(0), ArenaFd::kTable),
      KeptSessionName(incarnation, a->id(), SessionFd::kSegment),
      KeptSessionName(incarnation, a->id(), SessionFd::kControl),
      KeptSessionName(incarnation, a->id(), SessionFd::kPidfd),
      KeptWorkerName(incarnation, SessionFd::kSegment),
      KeptWorkerName(incarnation, SessionFd::kControl)};
  a.reset();
  driver_.reset();
  for (const std::string& name : names) {
    KeptFds kept = store_.Copies();
    ASSERT_EQ(kept.erase(name), 1u) << name;
    const Driver next(&store_, std::move(kept));
    EXPECT_TRUE(absl::IsDataLoss(next.status())) << name << ": " << next.status();
  }
  // Without a connection the session is as good as detached, which the attach server sees to.
  KeptFds kept = store_.Copies();
  kept.erase(KeptSessionName(incarnation, 1, SessionFd::kLifeline));
  EXPECT_TRUE(Driver(&store_, std::move(kept)).status().ok());
}

TEST_F(PoolRestart, SpansThatLieOverEachOtherAreRefused) {
  auto a = driver_->Attach();
  const auto grant = driver_->Grant(*a, 1, kLarge, 4)[0];
  const Span* const span = driver_->pool().heap().SpanOf(grant.first_page);
  Span other;
  other.first_page = span->first_page + PageCount(2);
  other.pages = PageCount(3);
  other.span_class = span->span_class;
  driver_->pool().state()->RecordListed(other);
  a.reset();
  driver_.reset();
  const Driver next(&store_, store_.Copies());
  EXPECT_TRUE(absl::IsDataLoss(next.status())) << next.status();
  EXPECT_THAT(std::string(next.status().message()), HasSubstr("pool default"));
}

// The worker is gone at random moments, and the next one finds everything.
TEST_F(PoolRestart, ManyRestartsLoseNothing) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  struct Client {
    uint32_t id;
    std::vector<ExchangeGrant> grants;
    std::map<uint32_t, GranuleId> slots;
  };
  std::vector<Client> clients;
  for (int step = 0; step < 3000; ++step) {
    if (below(40) == 0) {
      ASSERT_NO_FATAL_FAILURE(Restart());
      ASSERT_EQ(driver_->Audit(), "");
      for (const Client& client : clients) {
        const auto session = driver_->Find(client.id);
        ASSERT_TRUE(session != nullptr);
        std::map<uint64_t, PageId> expected;
        for (const ExchangeGrant& grant : client.grants) {
          expected[grant.sequence] = grant.first_page;
        }
        ASSERT_EQ(driver_->LoansOf(*session), expected);
      }
    }
    if (clients.size() < 3) clients.push_back({driver_->Attach()->id(), {}, {}});
    Client& client = clients[below(static_cast<uint32_t>(clients.size()))];
    const auto session = driver_->Find(client.id);
    switch (below(8)) {
      case 0:
      case 1:
        if (client.grants.size() >= 8) break;
        for (const auto& grant : driver_->Grant(
                 *session, 1 + below(2), below(3) != 0 ? kClassOf64 : kLarge, 1 + below(20))) {
          client.grants.push_back(grant);
        }
        break;
      case 2: {
        if (client.grants.empty()) break;
        std::swap(client.grants[below(static_cast<uint32_t>(client.grants.size()))],
                  client.grants.back());
        driver_->Return(*session, {client.grants.back().sequence});
        client.grants.pop_back();
        break;
      }
      case 3: {  // shares a private block
        if (client.grants.empty()) break;
        const auto& grant = client.grants[below(static_cast<uint32_t>(client.grants.size()))];
        const GranuleId granule =
            driver_->Granule(grant, grant.span_class.large() ? 0 : below(128));
        const BlockWord word(driver_->Word(granule));
        const uint32_t slot = below(16);
        if (!word.is_private() || client.slots.contains(slot)) break;
        driver_->Share(*session, slot, granule);
        client.slots[slot] = granule;
        break;
      }
      case 4: {  // opens what another has
        const Client& other = clients[below(static_cast<uint32_t>(clients.size()))];
        const uint32_t slot = below(16);
        if (other.slots.empty() || client.slots.contains(slot)) break;
        client.slots[slot] = other.slots.begin()->second;
        driver_->Open(*session, slot, client.slots[slot]);
        break;
      }
      case 5: {
        if (client.slots.empty()) break;
        const auto [slot, granule] = *client.slots.begin();
        driver_->Release(*session, slot, granule);
        client.slots.erase(slot);
        break;
      }
      case 6: {
        if (client.slots.empty()) break;
        const std::string name = absl::StrCat("n", below(6));
        ASSERT_TRUE(driver_
                        ->Publish(*session, name, client.slots.begin()->second, below(2) == 0,
                                  /*replace=*/true)
                        .ok());
        if (below(3) == 0) {
          ASSERT_TRUE(driver_->pool().Unpublish(name).ok());
        }
        break;
      }
      default:
        if (below(10) != 0) break;
        driver_->pool().ProcessDied(*session);
        driver_->Reap(*session);
        std::swap(client, clients.back());
        clients.pop_back();
    }
  }
  driver_->EndAll();
}

// --- killed at every step ---

// The child's end of a socket over which its parent keeps descriptors.
class DistantFdStore : public FdStore {
 public:
  explicit DistantFdStore(int socket) : socket_(socket) {}
  absl::Status Keep(absl::Span<const NamedFd> fds) override {
    for (const NamedFd& each : fds) {
      const std::string text = "+" + each.name;
      const int fd = each.fd;
      SPANPOOL_CHECK(layout::SendPacket(socket_, std::as_bytes(std::span(text)), {&fd, 1}).ok());
    }
    char done;
    SPANPOOL_CHECK(send(socket_, "?", 1, MSG_NOSIGNAL) == 1 && recv(socket_, &done, 1, 0) == 1);
    return absl::OkStatus();
  }
  void Forget(const std::string& name) override {
    const std::string text = "-" + name;
    SPANPOOL_CHECK(layout::SendPacket(socket_, std::as_bytes(std::span(text))).ok());
  }

 private:
  const int socket_;
};

// The parent's end: until the child is gone.
void KeepFor(int socket, FdStore* store) {
  for (;;) {
    char text[256];
    auto packet = layout::ReceivePacket(socket, std::as_writable_bytes(std::span(text)));
    if (!packet.ok() || packet->bytes == 0) return;
    const std::string name(text + 1, packet->bytes - 1);
    if (text[0] == '+') {
      SPANPOOL_CHECK(store->Keep({{.name = name, .fd = packet->fds.at(0).get()}}).ok());
    } else if (text[0] == '-') {
      store->Forget(name);
    } else {
      (void)send(socket, "!", 1, MSG_NOSIGNAL);
    }
  }
}

// What clients know, in memory that outlives the worker.
struct Known {
  struct Grant {
    uint32_t session;
    uint64_t sequence;
    uint64_t page;
    std::atomic<bool> held;  // neither being returned, nor its session dead
  };
  std::atomic<uint32_t> grants;
  Grant grant[64];
  std::atomic<bool> dead[8];   // the process of the session of that number
  std::atomic<bool> named[4];  // "n0" to "n3" stand, for certain
  std::atomic<int> steps_left;
  char step[64];  // at which the worker died
};
Known* known = nullptr;

constexpr int kKilled = 42;

void DieAtStep(const char* step) {
  if (known->steps_left.fetch_sub(1) != 1) return;
  strncpy(known->step, step, sizeof(known->step) - 1);
  _exit(kKilled);
}

class Script {
 public:
  explicit Script(Driver* driver) : d_(*driver) {}

  void Run() {
    const auto a = d_.Attach();
    const auto b = d_.Attach();
    const auto c = d_.Attach();
    const auto ga = Grant(*a, 3, kClassOf64);
    const auto gl = Grant(*a, 1, kLarge, 5);
    const auto gc = Grant(*c, 2, kClassOf64);
    const GranuleId x = d_.Granule(ga[0], 0), y = d_.Granule(ga[0], 1), z = d_.Granule(gc[0], 0);
    d_.Share(*a, 0, x);
    d_.Share(*a, 1, y);
    d_.Open(*b, 0, x);
    Publish(*a, 0, x, /*outlive=*/false);
    Publish(*b, 1, x, /*outlive=*/true);
    Publish(*a, 0, y, /*outlive=*/true);
    Return(*a, {gl[0].sequence, ga[1].sequence});
    Return(*a, {ga[0].sequence});  // x and y live on: listed
    Grant(*b, 1, kClassOf64);      // out of the list
    Unpublish(0);
    // c dies in the middle of a step, with a handle under way, and with a block that b has.
    d_.Share(*c, 0, z);
    d_.Open(*b, 1, z);
    Publish(*c, 2, z, /*outlive=*/false);
    Publish(*c, 3, z, /*outlive=*/true);
    d_.Open(*c, 3, x);
    d_.SetSlot(*c, 3, SlotState::kReleasing, x);
    const GranuleId w = d_.Granule(gc[1], 7);
    d_.Share(*c, 4, w);
    const BlockWord sent = BlockWord(d_.Word(w)).Sent();
    d_.Word(w) = sent.bits();
    c->memory().slot(4) = Slot::Transit(w, sent.send_number()).bits();
    known->named[2] = false;
    NoteDead(*c);
    d_.pool().ProcessDied(*c);
    d_.Reap(*c, 2);
    d_.pool().SettleReferences(absl::Now() + absl::Hours(2));
    d_.pool().Sweep();
    // a leaves in order, b by losing its connection and then its life.
    d_.Release(*a, 0, x);
    d_.Release(*a, 1, y);
    Return(*a, {ga[2].sequence});
    SPANPOOL_CHECK(d_.pool().Detach(*a).ok());
    d_.pool().LifelineEnded(*b);
    NoteDead(*b);
    d_.pool().ProcessDied(*b);
    d_.Reap(*b);
    Unpublish(1);
    Unpublish(3);
    d_.pool().Sweep();
    d_.Attach();
  }

 private:
  std::vector<ExchangeGrant> Grant(Session& session, uint32_t spans, uint32_t span_class,
                                   uint64_t pages = 0) {
    const auto grants = d_.Grant(session, spans, span_class, pages);
    for (const ExchangeGrant& grant : grants) {
      Known::Grant& note = known->grant[known->grants];
      note.session = session.id();
      note.sequence = grant.sequence;
      note.page = grant.first_page.value();
      note.held = true;
      ++known->grants;
    }
    return grants;
  }
  void Return(Session& session, const std::vector<uint64_t>& sequences) {
    for (Known::Grant& note : known->grant) {
      if (std::count(sequences.begin(), sequences.end(), note.sequence) != 0) note.held = false;
    }
    d_.Return(session, sequences);
  }
  void NoteDead(const Session& session) {
    known->dead[session.id()] = true;
    for (Known::Grant& note : known->grant) {
      if (note.session == session.id()) note.held = false;
    }
  }
  void Publish(Session& session, int name, GranuleId granule, bool outlive) {
    SPANPOOL_CHECK(
        d_.Publish(session, absl::StrCat("n", name), granule, outlive, /*replace=*/true).ok());
    known->named[name] = true;
  }
  void Unpublish(int name) {
    known->named[name] = false;
    SPANPOOL_CHECK(d_.pool().Unpublish(absl::StrCat("n", name)).ok());
  }

  Driver& d_;
};

// What the next worker makes of it, and whether anything was lost.
void CheckSuccessor(Driver& next) {
  ASSERT_TRUE(next.status().ok()) << next.status();
  Pool& pool = next.pool();
  pool.heap().CheckInvariants();
  for (const auto& session : pool.Sessions()) {
    if (known->dead[session->id()]) pool.ProcessDied(*session);
  }
  next.ReapTheDead();
  EXPECT_EQ(next.Audit(), "");
  std::map<uint32_t, std::vector<uint64_t>> inventory;
  for (uint32_t i = 0; i < known->grants; ++i) {
    const Known::Grant& note = known->grant[i];
    if (!note.held) continue;
    const Span* const span = pool.heap().SpanOf(PageId(note.page));
    ASSERT_TRUE(span != nullptr) << "grant " << note.sequence << " is lost";
    EXPECT_EQ(span->loan_session, note.session);
    EXPECT_EQ(span->loan_sequence, note.sequence);
    inventory[note.session].push_back(note.sequence);
  }
  for (int i = 0; i < 4; ++i) {
    if (!known->named[i]) continue;
    const auto block = pool.Lookup(absl::StrCat("n", i));
    ASSERT_TRUE(block.ok()) << block.status();
    const BlockWord word(next.Word(block->handle.granule));
    EXPECT_TRUE(word.is_shared() && word.generation() == block->handle.generation);
  }
  // What nobody learnt of goes back, and the pool goes on.
  for (const auto& session : pool.Sessions()) {
    if (session->state() != SessionState::kAttached) continue;
    std::vector<uint64_t> unknown;
    for (const auto& [sequence, page] : next.LoansOf(*session)) {
      const auto& has = inventory[session->id()];
      if (std::count(has.begin(), has.end(), sequence) == 0) unknown.push_back(sequence);
    }
    next.Return(*session, unknown);
    EXPECT_EQ(next.LoansOf(*session).size(), inventory[session->id()].size());
  }
  EXPECT_EQ(next.Audit(), "");
  const auto session = next.Attach();
  next.Grant(*session, 2, kClassOf64);
  next.EndAll();
}

TEST(PoolRestartSteps, AWorkerMayBeKilledAtEveryStep) {
  void* const shared =
      mmap(nullptr, sizeof(Known), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  std::map<std::string, int> died_at;
  for (int step = 1;; ++step) {
    known = new (shared) Known();
    known->steps_left = step;
    int sockets[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    const UniqueFd here(sockets[0]);
    UniqueFd there(sockets[1]);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      DistantFdStore store(there.get());
      Driver driver(&store);
      layout::step_hook = DieAtStep;
      Script(&driver).Run();
      _exit(0);
    }
    there.reset();
    MemoryFdStore store;
    KeepFor(here.get(), &store);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "step " << step;
    SCOPED_TRACE(absl::StrCat("killed at step ", step, ", ", known->step));
    {
      Driver next(&store, store.Copies());
      CheckSuccessor(next);
    }
    if (HasFailure()) break;
    if (WEXITSTATUS(status) == 0) break;
    ASSERT_EQ(WEXITSTATUS(status), kKilled);
    ++died_at[known->step];
  }
  for (const char* step : {"state.keep",
                           "state.arena",
                           "state.loan.sequence",
                           "state.loan",
                           "state.listed",
                           "state.freed",
                           "state.session.number",
                           "state.session",
                           "state.session.state",
                           "state.forget",
                           "state.forget.lifeline",
                           "state.name",
                           "state.name.gone",
                           "state.name.version",
                           "state.8a",
                           "state.8b",
                           "recount.6a",
                           "recount.6b",
                           "recount.6c",
                           "reap.5c",
                           "adopt.11c",
                           "open.2a",
                           "open.2d",
                           "open.2e",
                           "release.3a",
                           "release.3d"}) {
    EXPECT_GT(died_at[step], 0) << step;
  }
  munmap(shared, sizeof(Known));
}

}  // namespace
}  // namespace spanpool

// The daemon's two background threads, with a pool and without sockets.

#include <fcntl.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "proto/layout/block_word.h"
#include "proto/layout/slot.h"
#include "server/housekeeper.h"
#include "server/pool.h"
#include "server/reaper.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;

constexpr uint32_t kClassOf64 = 6 * 2 + 1;

// Asks again until `done`; the test's own time limit is the watchdog.
void WaitUntil(const std::function<bool()>& done) {
  while (!done()) absl::SleepFor(absl::Milliseconds(1));
}

PoolConfig Config(uint64_t reserve_bytes) {
  PoolConfig config;
  config.limit_bytes = config.session_limit_bytes = uint64_t{64} << 20;
  config.reserve_bytes = reserve_bytes;
  return config;
}

std::shared_ptr<Session> Attach(Pool& pool) {
  return *pool.Attach({.pid = 1, .uid = 0, .gids = {}}, layout::AccessMode::kWrite,
                      layout::UniqueFd());
}

TEST(Housekeeper, FreeMemoryIsKeptReadyAheadOfDemand) {
  SessionTable sessions(4);
  Pool pool(Config(uint64_t{8} << 20), nullptr, &sessions);
  Housekeeper housekeeper({&pool});
  WaitUntil([&] { return pool.heap().stats().free_bytes >= uint64_t{8} << 20; });
  const auto session = Attach(pool);
  ASSERT_TRUE(pool.Exchange(*session, {.returns = {}, .wants = {{1, 1, 1024, 0}}}).ok());
  WaitUntil([&] { return pool.heap().stats().free_bytes >= uint64_t{8} << 20; });
  EXPECT_EQ(pool.heap().stats().on_loan_bytes, uint64_t{8} << 20);
  pool.Stop();
}

TEST(Housekeeper, ABlockDroppedByItsLastReaderIsFoundWithoutAnybodyAsking) {
  SessionTable sessions(4);
  Pool pool(Config(0), nullptr, &sessions);
  Housekeeper housekeeper({&pool});
  const auto sharer = Attach(pool);
  for (int round = 0; round < 3; ++round) {
    const auto result = pool.Exchange(*sharer, {.returns = {}, .wants = {{kClassOf64, 1, 0, 0}}});
    ASSERT_TRUE(result.ok());
    layout::SharedWord& word = *pool.arenas().WordOf(GranuleOf(result->grants[0].first_page));
    word = BlockWord(word).Shared().bits();
    ASSERT_TRUE(
        pool.Exchange(*sharer, {.returns = {result->grants[0].sequence}, .wants = {}}).ok());
    EXPECT_EQ(pool.heap().stats().spans_in_lists, 1u);
    word = BlockWord(word).Released().bits();
    WaitUntil([&] { return pool.heap().stats().spans_in_lists == 0; });
  }
}

TEST(Housekeeper, MemoryOfAPeakGoesBackToTheSystem) {
  SessionTable sessions(4);
  Pool pool(Config(0), nullptr, &sessions);
  Housekeeper housekeeper({&pool});
  const auto session = Attach(pool);
  const auto result = pool.Exchange(*session, {.returns = {}, .wants = {{1, 1, 2048, 0}}});
  ASSERT_TRUE(result.ok());
  ASSERT_TRUE(pool.Exchange(*session, {.returns = {result->grants[0].sequence}, .wants = {}}).ok());
  // A tenth of the peak of 16 MiB is kept.
  WaitUntil([&] { return pool.heap().stats().free_bytes <= uint64_t{4} << 20; });
}

TEST(Reaper, EveryDeadSessionIsTakenBackHoweverMuchItHeld) {
  SessionTable sessions(100);
  Pool pool(Config(0), nullptr, &sessions);
  Housekeeper housekeeper({&pool});
  Reaper reaper({&pool});
  std::vector<std::shared_ptr<Session>> dying;
  for (int i = 0; i < 20; ++i) {
    dying.push_back(Attach(pool));
    const auto result =
        pool.Exchange(*dying.back(), {.returns = {}, .wants = {{kClassOf64, 4, 0, 0}}});
    ASSERT_TRUE(result.ok());
    layout::SharedWord& word = *pool.arenas().WordOf(GranuleOf(result->grants[0].first_page));
    // The first holds far more references than a piece of reaping takes, all of one block.
    const uint32_t slots = i == 0 ? 16'000 : 1;
    for (uint32_t slot = 0; slot < slots; ++slot) {
      dying.back()->memory().slot(slot) =
          Slot(SlotState::kHeld, GranuleOf(result->grants[0].first_page)).bits();
      word = (slot == 0 ? BlockWord(word).Shared() : BlockWord(word).Acquired()).bits();
    }
  }
  for (const auto& session : dying) reaper.ProcessDied(session);
  for (const auto& session : dying) reaper.ProcessDied(session);  // told twice
  WaitUntil([&] { return pool.stats().sessions_reaped_total == 20; });
  EXPECT_EQ(pool.heap().stats().on_loan_bytes, 0u);
  EXPECT_EQ(pool.heap().stats().in_lists_bytes, 0u);
  for (const auto& session : dying) EXPECT_EQ(session->state(), SessionState::kEnded);
}

TEST(Reaper, ASessionThatEndedInOrderIsNotReaped) {
  SessionTable sessions(4);
  Pool pool(Config(0), nullptr, &sessions);
  Reaper reaper({&pool});
  const auto session = Attach(pool);
  ASSERT_TRUE(pool.Detach(*session).ok());
  reaper.ProcessDied(session);
  EXPECT_EQ(session->state(), SessionState::kEnded);
  EXPECT_EQ(pool.stats().sessions_reaped_total, 0u);
}

}  // namespace
}  // namespace spanpool

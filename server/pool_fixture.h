// For tests: a pool that is driven directly, with clients that are no more than the memory they
// would write.

#ifndef SPANPOOL_SERVER_POOL_FIXTURE_H_
#define SPANPOOL_SERVER_POOL_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>

#include "allocator/heap.h"
#include "allocator/units.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/packet.h"
#include "proto/layout/slot.h"
#include "server/config.h"
#include "server/pool.h"
#include "server/session.h"
#include "server/session_table.h"

namespace spanpool {

inline constexpr uint32_t kClassOf64 = 6 * 2 + 1;  // 64-byte blocks, noscan, 128 a span
inline constexpr uint32_t kClassOf8 = 1 * 2 + 1;   // 8-byte blocks: never shared
inline constexpr uint32_t kLarge = 1;              // noscan
inline constexpr uint64_t kLimit = uint64_t{16} << 20;

class PoolTest : public testing::Test {
 protected:
  explicit PoolTest(PoolConfig config = DefaultConfig()) : pool_(config, nullptr, &sessions_) {}

  static PoolConfig DefaultConfig() {
    PoolConfig config;
    config.limit_bytes = kLimit;
    config.reserve_bytes = 0;
    config.session_limit_bytes = kLimit;
    return config;
  }

  std::shared_ptr<Session> Attach(layout::AccessMode access = layout::AccessMode::kWrite) {
    auto session = pool_.Attach({.pid = 1, .uid = 0, .gids = {}}, access,
                                layout::UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    EXPECT_TRUE(session.ok()) << session.status();
    return *session;
  }
  ExchangeResult Exchange(Session& session, const ExchangeBatch& batch) {
    auto result = pool_.Exchange(session, batch);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : ExchangeResult();
  }
  ExchangeGrant GrantOne(Session& session, uint32_t span_class = kClassOf64, uint64_t pages = 0) {
    const ExchangeResult result =
        Exchange(session, {.returns = {}, .wants = {{span_class, 1, pages, 0}}});
    EXPECT_EQ(result.grants.size(), 1u);
    return result.grants.at(0);
  }
  void Return(Session& session, const ExchangeGrant& grant) {
    Exchange(session, {.returns = {grant.sequence}, .wants = {}});
  }

  // What a client does to its block `index` of `grant`.
  GranuleId Granule(const ExchangeGrant& grant, uint32_t index) {
    return GranuleId(GranuleOf(grant.first_page).value() + index);
  }
  layout::SharedWord& Word(GranuleId granule) { return *pool_.arenas().WordOf(granule); }
  void Share(Session& session, uint32_t slot, GranuleId granule) {
    session.memory().slot(slot) = layout::Slot(layout::SlotState::kHeld, granule).bits();
    Word(granule) = layout::BlockWord(Word(granule)).Shared().bits();
  }
  void Open(Session& session, uint32_t slot, GranuleId granule) {
    session.memory().slot(slot) = layout::Slot(layout::SlotState::kHeld, granule).bits();
    Word(granule) = layout::BlockWord(Word(granule)).Acquired().bits();
  }
  void Release(Session& session, uint32_t slot, GranuleId granule) {
    Word(granule) = layout::BlockWord(Word(granule)).Released().bits();
    session.memory().slot(slot) = 0;
  }
  layout::BlockWord WordNow(GranuleId granule) { return layout::BlockWord(Word(granule)); }

  void Reap(Session& session) {
    ASSERT_TRUE(pool_.ProcessDied(session));
    while (pool_.ReapSome(session, 7) != ReapProgress::kDone) {
    }
    EXPECT_EQ(session.state(), SessionState::kEnded);
  }
  HeapStats HeapNow() {
    pool_.heap().CheckInvariants();
    const HeapStats stats = pool_.heap().stats();
    EXPECT_EQ(stats.on_loan_bytes + stats.in_lists_bytes + stats.free_bytes + stats.scavenged_bytes,
              stats.reserved_bytes);
    return stats;
  }

  SessionTable sessions_{1000};
  Pool pool_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_POOL_FIXTURE_H_

#include "server/recaller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/clock.h"

namespace spanpool {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

constexpr uint64_t kMiB = 1 << 20;

PoolConfig ConfigOf(const char* name) {
  PoolConfig config;
  config.name = name;
  config.limit_bytes = 64 * kMiB;
  config.session_limit_bytes = 64 * kMiB;
  config.reserve_bytes = 0;
  return config;
}

class RecallerTest : public testing::Test {
 protected:
  struct Asked {
    uint32_t session;
    uint64_t recall;
    uint64_t bytes;
  };

  RecallerTest() {
    recaller_.SetCarrier([this](const Session& session, uint64_t recall, uint64_t bytes) {
      asked_.push_back({session.id(), recall, bytes});
      if (when_asked_) when_asked_(session, recall);
    });
  }

  // A session with a span of `pages` pages on loan, if any.
  std::shared_ptr<Session> Attach(Pool& pool, uint64_t pages) {
    std::shared_ptr<Session> session =
        *pool.Attach(PeerIdentity{}, layout::AccessMode::kWrite, layout::UniqueFd());
    if (pages != 0) {
      ExchangeBatch batch;
      batch.wants.push_back({.span_class = 1, .spans = 1, .pages = pages, .alignment_pages = 0});
      sequences_[session->id()] = pool.Exchange(*session, batch)->grants.at(0).sequence;
    }
    return session;
  }
  void Return(const Session& session) {
    ExchangeBatch batch;
    batch.returns.push_back(sequences_.at(session.id()));
    EXPECT_TRUE(session.pool().Exchange(const_cast<Session&>(session), batch).ok());
  }
  std::vector<uint32_t> SessionsAsked() const {
    std::vector<uint32_t> ids;
    for (const Asked& asked : asked_) ids.push_back(asked.session);
    return ids;
  }

  SessionTable sessions_{100};
  Pool pool_{ConfigOf("a"), nullptr, &sessions_};
  Pool other_pool_{ConfigOf("b"), nullptr, &sessions_};
  Recaller recaller_{&sessions_};
  std::vector<Asked> asked_;
  std::function<void(const Session&, uint64_t)> when_asked_;
  std::map<uint32_t, uint64_t> sequences_;
};

TEST_F(RecallerTest, WhatComesBackBeforeTheAnswerIsCountedPoolByPool) {
  const auto a = Attach(pool_, 100);
  const auto b = Attach(pool_, 10);
  const auto idle = Attach(pool_, 0);
  const auto c = Attach(other_pool_, 1);
  when_asked_ = [&](const Session& session, uint64_t recall) {
    if (session.id() != b->id()) Return(session);  // all that b has is in use
    recaller_.Answered(session, recall);
  };
  Pool* const pools[] = {&pool_, &other_pool_};
  const auto outcomes = recaller_.Recall(pools, absl::InfiniteFuture());
  ASSERT_EQ(outcomes.size(), 2u);
  EXPECT_EQ(outcomes[0].asked, 2u);  // not the one that has nothing
  EXPECT_EQ(outcomes[0].answered, 2u);
  EXPECT_EQ(outcomes[0].recalled_bytes, 100 * kPageBytes);
  EXPECT_EQ(outcomes[1].answered, 1u);
  EXPECT_EQ(outcomes[1].recalled_bytes, kPageBytes);
  EXPECT_TRUE(outcomes[0].silent.empty());
  EXPECT_THAT(SessionsAsked(), UnorderedElementsAre(a->id(), b->id(), c->id()));
  EXPECT_EQ(asked_[0].bytes, UINT64_MAX);
}

TEST_F(RecallerTest, ASilentSessionIsWaitedForUntilTheDeadlineAndNamed) {
  const auto silent = Attach(pool_, 100);
  const auto prompt = Attach(pool_, 10);
  when_asked_ = [&](const Session& session, uint64_t recall) {
    if (session.id() == prompt->id()) recaller_.Answered(session, recall);
  };
  Pool* const pools[] = {&pool_};
  const auto outcomes = recaller_.Recall(pools, absl::Now() + absl::Milliseconds(20));
  EXPECT_EQ(outcomes[0].asked, 2u);
  EXPECT_EQ(outcomes[0].answered, 1u);
  EXPECT_THAT(outcomes[0].silent, ElementsAre(silent));
  // An answer that comes late is nobody's any more.
  recaller_.Answered(*silent, asked_[0].recall);
}

TEST_F(RecallerTest, ASessionThatGoesIsNotWaitedForAndNotSilent) {
  const auto session = Attach(pool_, 100);
  when_asked_ = [&](const Session& gone, uint64_t) { recaller_.Gone(gone.id()); };
  Pool* const pools[] = {&pool_};
  const auto outcomes = recaller_.Recall(pools, absl::InfiniteFuture());
  EXPECT_EQ(outcomes[0].asked, 1u);
  EXPECT_EQ(outcomes[0].answered, 0u);
  EXPECT_TRUE(outcomes[0].silent.empty());
}

TEST_F(RecallerTest, AnAnswerToALaterRecallAnswersEarlierOnesAndNotTheOtherWayRound) {
  const auto session = Attach(pool_, 100);
  std::vector<uint64_t> recalls;
  when_asked_ = [&](const Session&, uint64_t recall) {
    recalls.push_back(recall);
    if (recalls.size() == 1) {
      // Another operator asks at the same time.
      Pool* const pools[] = {&pool_};
      EXPECT_EQ(recaller_.Recall(pools, absl::InfiniteFuture())[0].answered, 1u);
      return;
    }
    recaller_.Answered(*session, recalls[0]);
    recaller_.Answered(*session, recalls[1]);
  };
  Pool* const pools[] = {&pool_};
  EXPECT_EQ(recaller_.Recall(pools, absl::InfiniteFuture())[0].answered, 1u);
  EXPECT_LT(recalls[0], recalls[1]);
}

TEST_F(RecallerTest, StoppingEndsTheWaitOfThoseWhoWaitAndOfThoseWhoCome) {
  const auto session = Attach(pool_, 100);
  Pool* const pools[] = {&pool_};
  std::thread waiter(
      [&] { EXPECT_EQ(recaller_.Recall(pools, absl::InfiniteFuture())[0].silent.size(), 1u); });
  recaller_.Stop();
  waiter.join();
  EXPECT_EQ(recaller_.Recall(pools, absl::InfiniteFuture())[0].silent.size(), 1u);
}

TEST_F(RecallerTest, AShortageAsksTheOthersOfThePoolOnceAMoment) {
  const auto asker = Attach(pool_, 100);
  const auto other = Attach(pool_, 10);
  const auto idle = Attach(pool_, 0);
  const auto elsewhere = Attach(other_pool_, 10);
  absl::Time now = absl::UnixEpoch();
  recaller_.AskOthers(*asker, kMiB, now);
  EXPECT_THAT(SessionsAsked(), ElementsAre(other->id()));
  EXPECT_EQ(asked_[0].bytes, kMiB);
  recaller_.AskOthers(*other, kMiB, now + Recaller::kShortageInterval / 2);
  EXPECT_EQ(asked_.size(), 1u);
  recaller_.AskOthers(*other, kMiB, now + Recaller::kShortageInterval);
  EXPECT_THAT(SessionsAsked(), ElementsAre(other->id(), asker->id()));
  // A clock that is set back does not put it off.
  recaller_.AskOthers(*other, kMiB, now - absl::Hours(1));
  EXPECT_EQ(asked_.size(), 3u);
}

TEST_F(RecallerTest, APoolThatRunsShortHasItsOtherSessionsAsked) {
  pool_.SetShortageCallback([this](const Session& session, uint64_t bytes) {
    recaller_.AskOthers(session, bytes, absl::UnixEpoch());
  });
  const auto holder = Attach(pool_, 60 * kMiB / kPageBytes);
  const auto asker = Attach(pool_, 0);
  ExchangeBatch batch;
  batch.wants.push_back({.span_class = 1, .spans = 2, .pages = 1024, .alignment_pages = 0});
  ASSERT_EQ(pool_.Exchange(*asker, batch)->shortfalls.size(), 1u);
  EXPECT_THAT(SessionsAsked(), ElementsAre(holder->id()));
  EXPECT_EQ(asked_[0].bytes, 2 * 1024 * kPageBytes);
}

}  // namespace
}  // namespace spanpool

// Names as the daemon keeps them: through a pool, with clients that are no more than the memory
// they would write. After each test the whole pool adds up.

#include "server/name_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_word.h"
#include "proto/layout/handle_bits.h"
#include "server/pool.h"
#include "server/pool_audit.h"
#include "server/pool_fixture.h"

namespace spanpool {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kMaxNames = 8;

class NameTableTest : public PoolTest {
 protected:
  NameTableTest() : PoolTest(Config()) {
    owner_ = Attach();
    grant_ = GrantOne(*owner_);
  }
  ~NameTableTest() override { EXPECT_THAT(AuditPool(pool_), IsEmpty()); }

  static PoolConfig Config() {
    PoolConfig config = DefaultConfig();
    config.max_names = kMaxNames;
    return config;
  }
  layout::HandleBits HandleOf(uint32_t block) {
    layout::HandleBits handle;
    handle.incarnation = pool_.incarnation();
    handle.granule = Granule(grant_, block);
    handle.length = 64;
    handle.generation = WordNow(handle.granule).generation();
    return handle;
  }
  // The owner shares the block in the slot of that number.
  layout::HandleBits Shared(uint32_t block) {
    Share(*owner_, block, Granule(grant_, block));
    return HandleOf(block);
  }
  void Drop(uint32_t block) { Release(*owner_, block, Granule(grant_, block)); }
  uint32_t Refs(uint32_t block) { return WordNow(Granule(grant_, block)).refs(); }
  absl::StatusCode Publish(Session& session, const std::string& name,
                           const layout::HandleBits& handle, bool outlive = false,
                           bool replace = false) {
    return pool_
        .Publish(session,
                 {.name = name, .handle = handle, .outlive_session = outlive, .replace = replace})
        .status()
        .code();
  }
  std::vector<std::string> Names(const std::string& prefix = "") {
    std::vector<std::string> names;
    bool more;
    for (const PublishedBlock& block : pool_.names().List(prefix, "", 100, &more)) {
      names.push_back(block.name);
    }
    return names;
  }
  // "+name" and "-name" of all that is new.
  std::vector<std::string> News(NameTable::Watch& watch, bool* reset = nullptr, size_t most = 100) {
    std::vector<std::string> told;
    for (bool current = false; !current;) {
      const NameTable::News news = pool_.names().Take(watch, most);
      EXPECT_LE(news.changes.size(), most);
      if (reset != nullptr) *reset = *reset || news.reset;
      for (const ChangedName& change : news.changes) {
        told.push_back((change.published.has_value() ? "+" : "-") + change.name);
      }
      current = news.current;
    }
    return told;
  }
  std::shared_ptr<NameTable::Watch> Watch(NameFilter filter = {}) {
    return pool_.names().NewWatch(std::move(filter), [this] { ++wakes_; });
  }

  std::shared_ptr<Session> owner_;
  ExchangeGrant grant_;
  int wakes_ = 0;
};

TEST_F(NameTableTest, APublishedBlockLivesAfterItsOwnerLetGoUntilItIsUnpublished) {
  const layout::HandleBits handle = Shared(0);
  EXPECT_EQ(Publish(*owner_, "a", handle), absl::StatusCode::kOk);
  EXPECT_EQ(Refs(0), 2u);
  Drop(0);
  EXPECT_EQ(Refs(0), 1u);
  EXPECT_EQ(pool_.Lookup("a")->handle, handle);
  EXPECT_EQ(pool_.stats().names, 1u);
  EXPECT_TRUE(pool_.Unpublish("a").ok());
  EXPECT_TRUE(WordNow(handle.granule).freed());
  EXPECT_EQ(pool_.Lookup("a").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(pool_.Unpublish("a").code(), absl::StatusCode::kNotFound);
}

TEST_F(NameTableTest, WhatCannotBePublishedIsRefusedAndNothingIsHeldForIt) {
  layout::HandleBits handle = Shared(0);
  EXPECT_EQ(Publish(*Attach(layout::AccessMode::kRead), "a", handle),
            absl::StatusCode::kPermissionDenied);
  layout::HandleBits wrong = handle;
  ++wrong.incarnation;
  EXPECT_EQ(Publish(*owner_, "a", wrong), absl::StatusCode::kFailedPrecondition);
  wrong = handle;
  ++wrong.generation;
  EXPECT_EQ(Publish(*owner_, "a", wrong), absl::StatusCode::kNotFound);
  wrong = handle;
  wrong.granule = GranuleId(layout::kMaxHandleGranules - 1);
  EXPECT_EQ(Publish(*owner_, "a", wrong), absl::StatusCode::kNotFound);
  wrong = handle;
  wrong.length = layout::kMaxHandleLength + 1;
  EXPECT_EQ(Publish(*owner_, "a", wrong), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Publish(*owner_, "a", HandleOf(1)), absl::StatusCode::kNotFound) << "private";
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(Refs(0), 1u);
}

TEST_F(NameTableTest, PublishingTheSameAgainSucceedsAndAnotherBlockNeedsReplace) {
  const layout::HandleBits a = Shared(0);
  const layout::HandleBits b = Shared(1);
  EXPECT_EQ(Publish(*owner_, "n", a), absl::StatusCode::kOk);
  EXPECT_EQ(Publish(*owner_, "n", a), absl::StatusCode::kOk);
  EXPECT_EQ(Refs(0), 2u);
  EXPECT_EQ(Publish(*owner_, "n", b), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Refs(1), 1u);
  const std::shared_ptr<Session> other = Attach();
  EXPECT_EQ(Publish(*other, "n", a), absl::StatusCode::kAlreadyExists)
      << "it would go with another";
  EXPECT_EQ(Publish(*other, "n", b, false, /*replace=*/true), absl::StatusCode::kOk);
  EXPECT_EQ(Refs(0), 1u);
  EXPECT_EQ(Refs(1), 2u);
  EXPECT_EQ(pool_.Lookup("n")->session, other->id());
  // The same block, to stay from now on.
  EXPECT_EQ(Publish(*other, "n", b, /*outlive=*/true), absl::StatusCode::kOk);
  EXPECT_EQ(Refs(1), 2u);
  Reap(*other);
  EXPECT_THAT(Names(), ElementsAre("n"));
}

TEST_F(NameTableTest, ANameGoesWithItsSessionUnlessItIsToOutliveIt) {
  const layout::HandleBits handle = Shared(0);
  const std::shared_ptr<NameTable::Watch> watch = Watch();
  EXPECT_THAT(News(*watch), IsEmpty());
  const auto publish = [&](Session& session) {
    EXPECT_EQ(Publish(session, "goes", handle), absl::StatusCode::kOk);
    EXPECT_EQ(Publish(session, "stays", handle, /*outlive=*/true, /*replace=*/true),
              absl::StatusCode::kOk);
    News(*watch);
  };
  const auto expect_gone = [&](NameRemoval why) {
    EXPECT_THAT(Names(), ElementsAre("stays"));
    const NameTable::News news = pool_.names().Take(*watch, 10);
    ASSERT_EQ(news.changes.size(), 1u);
    EXPECT_EQ(news.changes[0].name, "goes");
    EXPECT_FALSE(news.changes[0].published.has_value());
    EXPECT_EQ(news.changes[0].removal, why);
    EXPECT_EQ(Refs(0), 2u);
  };
  std::shared_ptr<Session> session = Attach();
  publish(*session);
  EXPECT_TRUE(pool_.Detach(*session).ok());
  expect_gone(NameRemoval::kPublisherLeft);
  session = Attach();
  publish(*session);
  pool_.LifelineEnded(*session);
  expect_gone(NameRemoval::kPublisherLost);
  Reap(*session);
  session = Attach();
  publish(*session);
  pool_.Evict(*session, absl::InvalidArgumentError("a lie"));
  expect_gone(NameRemoval::kPublisherLost);
  EXPECT_EQ(Publish(*session, "goes", handle), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(Refs(0), 2u);
  Reap(*session);
  session = Attach();
  publish(*session);
  Reap(*session);
  expect_gone(NameRemoval::kPublisherLost);
}

TEST_F(NameTableTest, ThereAreAsManyNamesAsThereMayBeAndNotOneMore) {
  const layout::HandleBits handle = Shared(0);
  for (uint32_t i = 0; i < kMaxNames; ++i) {
    EXPECT_EQ(Publish(*owner_, absl::StrCat(i), handle), absl::StatusCode::kOk);
  }
  EXPECT_EQ(Publish(*owner_, "more", handle), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Publish(*owner_, "1", handle, true, true), absl::StatusCode::kOk) << "no new name";
  EXPECT_EQ(Refs(0), 1 + kMaxNames);
  EXPECT_TRUE(pool_.Unpublish("0").ok());
  EXPECT_EQ(Publish(*owner_, "more", handle), absl::StatusCode::kOk);
}

TEST_F(NameTableTest, ListsInOrderByPrefixAndInPages) {
  const layout::HandleBits handle = Shared(0);
  for (const char* name : {"b/1", "a", "b/2", "b", "c", "b/3"}) {
    EXPECT_EQ(Publish(*owner_, name, handle), absl::StatusCode::kOk);
  }
  EXPECT_THAT(Names(), ElementsAre("a", "b", "b/1", "b/2", "b/3", "c"));
  EXPECT_THAT(Names("b/"), ElementsAre("b/1", "b/2", "b/3"));
  EXPECT_THAT(Names("d"), IsEmpty());
  bool more = false;
  std::vector<PublishedBlock> page = pool_.names().List("b", "", 2, &more);
  EXPECT_TRUE(more);
  ASSERT_EQ(page.size(), 2u);
  page = pool_.names().List("b", page.back().name, 2, &more);
  EXPECT_FALSE(more);
  ASSERT_EQ(page.size(), 2u);
  EXPECT_EQ(page[1].name, "b/3");
}

TEST_F(NameTableTest, AWatchIsToldOfWhatThereIsAndThenOfTheLastStateOfEachName) {
  const layout::HandleBits handle = Shared(0);
  EXPECT_EQ(Publish(*owner_, "a", handle), absl::StatusCode::kOk);
  EXPECT_EQ(Publish(*owner_, "gone", handle), absl::StatusCode::kOk);
  EXPECT_TRUE(pool_.Unpublish("gone").ok());
  const std::shared_ptr<NameTable::Watch> watch = Watch();
  bool reset = false;
  EXPECT_THAT(News(*watch, &reset), ElementsAre("+a"));
  EXPECT_TRUE(reset);
  EXPECT_EQ(wakes_, 0);
  EXPECT_EQ(Publish(*owner_, "b", handle), absl::StatusCode::kOk);
  EXPECT_EQ(wakes_, 1);
  EXPECT_TRUE(pool_.Unpublish("a").ok());
  EXPECT_TRUE(pool_.Unpublish("b").ok());
  EXPECT_EQ(Publish(*owner_, "b", handle), absl::StatusCode::kOk);
  reset = false;
  EXPECT_THAT(News(*watch, &reset), ElementsAre("-a", "+b"));
  EXPECT_FALSE(reset);
  EXPECT_THAT(News(*watch), IsEmpty());
}

TEST_F(NameTableTest, AWatchIsWokenOnlyForNamesItIsAbout) {
  const layout::HandleBits handle = Shared(0);
  const std::shared_ptr<NameTable::Watch> one = Watch({.name = "b/1", .prefix = ""});
  const std::shared_ptr<NameTable::Watch> some = Watch({.name = "", .prefix = "b/"});
  News(*one);
  News(*some);
  EXPECT_EQ(Publish(*owner_, "b", handle), absl::StatusCode::kOk);
  EXPECT_EQ(wakes_, 0);
  EXPECT_EQ(Publish(*owner_, "b/2", handle), absl::StatusCode::kOk);
  EXPECT_EQ(wakes_, 1);
  EXPECT_EQ(Publish(*owner_, "b/1", handle), absl::StatusCode::kOk);
  EXPECT_EQ(wakes_, 3);
  EXPECT_THAT(News(*one), ElementsAre("+b/1"));
  EXPECT_THAT(News(*some), ElementsAre("+b/2", "+b/1"));
}

TEST_F(NameTableTest, AWatchThatMissedTooManyRemovalsStartsAnew) {
  const layout::HandleBits handle = Shared(0);
  EXPECT_EQ(Publish(*owner_, "early", handle), absl::StatusCode::kOk);
  const std::shared_ptr<NameTable::Watch> slow = Watch();
  const std::shared_ptr<NameTable::Watch> unconcerned = Watch({.name = "other", .prefix = ""});
  EXPECT_THAT(News(*slow), ElementsAre("+early"));
  News(*unconcerned);
  EXPECT_TRUE(pool_.Unpublish("early").ok());
  for (uint32_t i = 0; i <= kMaxNames; ++i) {
    EXPECT_EQ(Publish(*owner_, absl::StrCat(i), handle), absl::StatusCode::kOk);
    EXPECT_TRUE(pool_.Unpublish(absl::StrCat(i)).ok());
  }
  EXPECT_EQ(Publish(*owner_, "late", handle), absl::StatusCode::kOk);
  bool reset = false;
  EXPECT_THAT(News(*slow, &reset), ElementsAre("+late"));
  EXPECT_TRUE(reset);
  reset = false;
  EXPECT_THAT(News(*unconcerned, &reset), IsEmpty());
  EXPECT_FALSE(reset);
}

// Whatever happens and whenever it takes, a watch that has taken all knows exactly the names there
// are.
TEST_F(NameTableTest, RandomChangesLeaveEveryWatchWithTheNamesThereAre) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  const layout::HandleBits handle = Shared(0);
  struct Watcher {
    std::shared_ptr<NameTable::Watch> watch;
    std::map<std::string, uint64_t> known;
    bool current = false;
  };
  std::vector<Watcher> watchers(3);
  for (Watcher& watcher : watchers) watcher.watch = Watch();
  std::shared_ptr<Session> session = Attach();
  const auto take = [&](Watcher& watcher, size_t most) {
    const NameTable::News news = pool_.names().Take(*watcher.watch, most);
    if (news.reset) watcher.known.clear();
    for (const ChangedName& change : news.changes) {
      if (change.published.has_value()) {
        watcher.known[change.name] = change.published->version;
      } else {
        watcher.known.erase(change.name);
      }
    }
    watcher.current = news.current;
  };
  for (int i = 0; i < 3000; ++i) {
    const std::string name = absl::StrCat(random() % 20);
    switch (random() % 8) {
      case 0:
      case 1:
      case 2:
        Publish(*session, name, handle, random() % 2 == 0, random() % 2 == 0);
        break;
      case 3:
      case 4:
        pool_.Unpublish(name).IgnoreError();
        break;
      case 5:
        if (random() % 10 != 0) break;
        Reap(*session);
        session = Attach();
        break;
      default:
        take(watchers[random() % watchers.size()], 1 + random() % 3);
    }
    pool_.names().CheckInvariants();
  }
  std::map<std::string, uint64_t> names;
  for (const auto& [slot, block] : pool_.names().Slots()) names[block.name] = block.version;
  for (Watcher& watcher : watchers) {
    do {
      take(watcher, 2);
    } while (!watcher.current);
    EXPECT_EQ(watcher.known, names);
  }
}

TEST_F(NameTableTest, ThreadsThatPublishLookUpAndUnpublishOneNameLeaveExactReferences) {
  const layout::HandleBits a = Shared(0);
  const layout::HandleBits b = Shared(1);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        Publish(*owner_, "n", t % 2 == 0 ? a : b, false, /*replace=*/true);
        pool_.Lookup("n").status().IgnoreError();
        if (i % 3 == 0) pool_.Unpublish("n").IgnoreError();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  pool_.Unpublish("n").IgnoreError();
  EXPECT_EQ(Refs(0), 1u);
  EXPECT_EQ(Refs(1), 1u);
}

}  // namespace
}  // namespace spanpool

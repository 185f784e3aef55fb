#include "allocator/span_set.h"

#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "allocator/lock_rank.h"

namespace spanpool {
namespace {

TEST(SpanSet, SpansComeOutInTheOrderTheyWentIn) {
  std::array<Span, 3> spans;
  SpanSet set;
  EXPECT_TRUE(set.empty());
  EXPECT_EQ(set.Pop(), nullptr);
  for (Span& span : spans) {
    span.pages = PageCount(2);
    set.Push(&span);
  }
  EXPECT_EQ(set.size(), 3u);
  EXPECT_EQ(set.pages(), PageCount(6));
  set.CheckInvariants();
  for (Span& span : spans) EXPECT_EQ(set.Pop(), &span);
  EXPECT_TRUE(set.empty());
  EXPECT_EQ(set.pages(), PageCount(0));
  set.CheckInvariants();
}

TEST(SpanSet, ASpanIsRemovedFromAnyPlace) {
  for (size_t at = 0; at < 3; ++at) {
    std::array<Span, 3> spans;
    SpanSet set;
    for (Span& span : spans) set.Push(&span);
    set.Remove(&spans[at]);
    set.CheckInvariants();
    EXPECT_EQ(spans[at].set, nullptr);
    for (size_t i = 0; i < 3; ++i) {
      if (i != at) {
        EXPECT_EQ(set.Pop(), &spans[i]);
      }
    }
    EXPECT_EQ(set.Pop(), nullptr);
  }
}

TEST(SpanSetDeathTest, ASpanIsInOneSetAtMost) {
  Span span;
  SpanSet set;
  SpanSet other;
  set.Push(&span);
  EXPECT_DEATH(other.Push(&span), "is in a set");
  EXPECT_DEATH(other.Remove(&span), "span->set == this");
}

TEST(SpanSet, RandomOperationsMatchADeque) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<Span> spans(100);
  std::vector<Span*> outside;
  for (Span& span : spans) {
    span.pages = PageCount(1 + random() % 10);
    outside.push_back(&span);
  }
  SpanSet set;
  std::deque<Span*> model;
  for (int i = 0; i < 20000; ++i) {
    switch (random() % 3) {
      case 0:
        if (!outside.empty()) {
          set.Push(outside.back());
          model.push_back(outside.back());
          outside.pop_back();
        }
        break;
      case 1: {
        Span* const expected = model.empty() ? nullptr : model.front();
        ASSERT_EQ(set.Pop(), expected);
        if (expected != nullptr) {
          model.pop_front();
          outside.push_back(expected);
        }
        break;
      }
      case 2:
        if (!model.empty()) {
          const auto it = model.begin() + static_cast<std::ptrdiff_t>(random() % model.size());
          set.Remove(*it);
          outside.push_back(*it);
          model.erase(it);
        }
        break;
    }
    ASSERT_EQ(set.size(), model.size());
    if (i % 100 == 0) set.CheckInvariants();
  }
}

TEST(SpanSet, FourThreadsMoveSpansBetweenSets) {
  constexpr size_t kSets = 3;
  constexpr size_t kSpans = 64;
  struct Owner {
    RankedMutex mu{LockRank::kCentralList};
    SpanSet set;
  };
  std::array<Owner, kSets> owners;
  std::vector<Span> spans(kSpans);
  for (Span& span : spans) owners[0].set.Push(&span);
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      for (int i = 0; i < 20000; ++i) {
        Owner& from = owners[random() % kSets];
        Owner& to = owners[random() % kSets];
        Span* span = nullptr;
        if (from.set.empty()) continue;  // a guess, without the lock
        {
          RankedMutexLock lock(&from.mu);
          span = from.set.Pop();
        }
        if (span == nullptr) continue;
        ++span->blocks_in_use;  // ours alone while it is in no set
        RankedMutexLock lock(&to.mu);
        to.set.Push(span);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  size_t total = 0;
  for (Owner& owner : owners) {
    owner.set.CheckInvariants();
    total += owner.set.size();
  }
  EXPECT_EQ(total, kSpans);
}

}  // namespace
}  // namespace spanpool

#include "allocator/lock_rank.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace spanpool {
namespace {

TEST(LockRank, LocksAreTakenInOrderAndReleasedInAny) {
  RankedMutex list(LockRank::kCentralList);
  RankedMutex heap(LockRank::kHeap);
  list.Lock();
  heap.Lock();
  list.Unlock();
  heap.Unlock();
  RankedMutexLock again(&list);
  RankedMutexLock after(&heap);
}

TEST(LockRank, RanksAreHeldByThreads) {
  RankedMutex list(LockRank::kCentralList);
  RankedMutex heap(LockRank::kHeap);
  RankedMutexLock lock(&heap);
  std::thread([&] { RankedMutexLock other(&list); }).join();
}

TEST(LockRank, AwaitReleasesTheLockWhileItWaits) {
  RankedMutex mu(LockRank::kHeap);
  bool done = false;
  std::thread other([&] {
    RankedMutexLock lock(&mu);
    done = true;
  });
  {
    RankedMutexLock lock(&mu);
    mu.Await(absl::Condition(&done));
    EXPECT_TRUE(done);
  }
  other.join();
}

TEST(LockRank, EveryWaiterWakesForItsOwnCondition) {
  RankedMutex mu(LockRank::kHeap);
  int turn = 0;
  std::vector<std::thread> waiters;
  for (int i = 0; i < 8; ++i) {
    waiters.emplace_back([&mu, &turn, i] {
      const auto mine = [&turn, i] { return turn == i; };
      RankedMutexLock lock(&mu);
      mu.Await(absl::Condition(&mine));
      ++turn;  // the next one waits for this
    });
  }
  {
    const auto all = [&turn] { return turn == 8; };
    RankedMutexLock lock(&mu);
    mu.Await(absl::Condition(&all));
  }
  for (std::thread& waiter : waiters) waiter.join();
}

TEST(LockRank, AWaitEndsAtItsDeadlineWhoeverUnlocks) {
  RankedMutex mu(LockRank::kHeap);
  bool never = false;
  bool stop = false;
  std::thread busy([&] {
    for (bool stopped = false; !stopped;) {
      RankedMutexLock lock(&mu);
      stopped = stop;
    }
  });
  {
    RankedMutexLock lock(&mu);
    EXPECT_FALSE(
        mu.AwaitWithDeadline(absl::Condition(&never), absl::Now() + absl::Milliseconds(20)));
    EXPECT_FALSE(mu.AwaitWithDeadline(absl::Condition(&never), absl::InfinitePast()));
    stop = true;
  }
  busy.join();
}

TEST(LockRank, TryLockNeverWaits) {
  RankedMutex mu(LockRank::kHeap);
  RankedMutexLock lock(&mu);
  std::thread([&] { EXPECT_FALSE(mu.TryLock()); }).join();
}

#ifdef SPANPOOL_DEBUG
TEST(LockRankDeathTest, TakingALowerRankAborts) {
  RankedMutex list(LockRank::kCentralList);
  RankedMutex heap(LockRank::kHeap);
  RankedMutexLock lock(&heap);
  EXPECT_DEATH(list.Lock(), "taking \"central list\" while holding \"heap\"");
}

TEST(LockRankDeathTest, TakingTwoOfOneRankAborts) {
  RankedMutex a(LockRank::kCentralList);
  RankedMutex b(LockRank::kCentralList);
  RankedMutexLock lock(&a);
  EXPECT_DEATH(b.Lock(), "taking \"central list\" while holding \"central list\"");
}
#endif

}  // namespace
}  // namespace spanpool

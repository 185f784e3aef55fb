#include "allocator/lock_rank.h"

#include <gtest/gtest.h>

#include <thread>

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
  RankedReaderLock after(&heap);
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

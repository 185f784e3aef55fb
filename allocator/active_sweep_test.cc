#include "allocator/active_sweep.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace spanpool {
namespace {

TEST(ActiveSweep, BeforeTheFirstSweepThereIsNothingToTake) {
  ActiveSweep sweep;
  EXPECT_TRUE(sweep.done());
  EXPECT_FALSE(sweep.Begin());
}

TEST(ActiveSweep, IsDoneWhenDrainedAndTheLastSweeperHasEnded) {
  ActiveSweep sweep;
  ActiveSweep::Token starter = sweep.Restart();
  ASSERT_TRUE(starter);
  sweep.Open(starter);
  ActiveSweep::Token other = sweep.Begin();
  ASSERT_TRUE(other);
  EXPECT_EQ(sweep.sweepers(), 2u);
  EXPECT_FALSE(starter.End());
  EXPECT_FALSE(sweep.done());
  sweep.MarkDrained(other);
  EXPECT_FALSE(sweep.done());
  EXPECT_TRUE(other.End());
  EXPECT_TRUE(sweep.done());
}

// Go 1.16: only one of the ways to sweep counted its sweepers, so the sweep was declared over while
// another was still at work. Here whoever sweeps holds a token, and every token is counted.
TEST(ActiveSweep, ASweepIsNotOverWhileSomebodyWhoCameByAnotherDoorIsAtWork) {
  ActiveSweep sweep;
  ActiveSweep::Token background = sweep.Restart();
  sweep.Open(background);
  ActiveSweep::Token grant = sweep.Begin();  // took the last span, and is sweeping it
  sweep.MarkDrained(background);             // found nothing left
  EXPECT_FALSE(background.End());
  EXPECT_FALSE(sweep.done()) << "declared over with a span still being swept";
  EXPECT_FALSE(sweep.Restart()) << "the next sweep began with a span still being swept";
  EXPECT_TRUE(grant.End());
  EXPECT_TRUE(sweep.done());
}

// Go 1.17: a sweeper was counted after it had taken a span, so another could find nothing left and
// nobody at work in between. Here the count comes first, and is refused once drained is set.
TEST(ActiveSweep, NobodyCanJoinBetweenTheLastTakeAndTheEnd) {
  ActiveSweep sweep;
  ActiveSweep::Token a = sweep.Restart();
  sweep.Open(a);
  sweep.MarkDrained(a);
  EXPECT_FALSE(sweep.Begin()) << "joined a drained sweep";
  EXPECT_TRUE(a.End());
  EXPECT_FALSE(sweep.Begin());
  EXPECT_TRUE(sweep.done());
}

TEST(ActiveSweep, NobodyJoinsAndNothingIsDoneUntilTheNextSweepIsOpen) {
  ActiveSweep sweep;
  ActiveSweep::Token starter = sweep.Restart();
  EXPECT_FALSE(sweep.Begin());
  EXPECT_FALSE(sweep.done());
  EXPECT_FALSE(sweep.Restart());
  sweep.Open(starter);
  EXPECT_TRUE(sweep.Begin());
}

TEST(ActiveSweepDeathTest, OnlyASweeperCanSayThatNothingIsLeft) {
  ActiveSweep sweep;
  EXPECT_DEATH(sweep.MarkDrained(ActiveSweep::Token()), "check failed");
}

TEST(ActiveSweep, FourThreadsNeverSweepOutsideASweep) {
  constexpr int kSweeps = 2000;
  constexpr int kWork = 20;
  ActiveSweep sweep;
  std::atomic<int> left{0};     // spans to take in this sweep
  std::atomic<int> working{0};  // taken and not finished
  std::atomic<int> sweeps{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      while (sweeps.load() < kSweeps) {
        if (ActiveSweep::Token token = sweep.Restart()) {
          EXPECT_EQ(working.load(), 0);
          EXPECT_LE(left.load(), 0);
          left.store(kWork);
          sweeps.fetch_add(1);
          sweep.Open(token);
        }
        while (ActiveSweep::Token token = sweep.Begin()) {
          if (left.fetch_sub(1) <= 0) {
            sweep.MarkDrained(token);
            continue;
          }
          working.fetch_add(1);
          working.fetch_sub(1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  sweep.WaitUntilDone();
  EXPECT_TRUE(sweep.done());
}

}  // namespace
}  // namespace spanpool

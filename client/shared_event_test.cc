#include "client/shared_event.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "client/schedules.h"
#include "gtest/gtest.h"
#include "proto/layout/step.h"

namespace spanpool::internal {
namespace {

constexpr uint32_t kAsleep = 1;

// What waits, without the kernel: it would sleep on the word that it announced.
struct Waiter {
  bool saw = false;
  uint32_t asleep_on = 0;

  void Wait(SharedEvent event, const std::atomic<int>& things, int wanted) {
    const uint32_t announced = event.Announce();
    SPANPOOL_STEP("look");
    if (things.load() >= wanted) {
      saw = true;
    } else {
      asleep_on = announced;
    }
  }
};

// In every order of steps: whoever did not see what was done, and is about to sleep, is kept from
// it by the word; and whoever may sleep is known to sleep.
TEST(SharedEvent, NoWakeIsLost) {
  std::atomic<uint32_t> word{0};
  std::atomic<int> things{0};
  SharedEvent event(&word);
  std::vector<Waiter> waiters;
  const auto notify = [&] {
    SPANPOOL_STEP("do");
    things.fetch_add(1);
    SPANPOOL_STEP("notify");
    event.Notify();
  };
  const uint64_t runs = Schedules::RunAll(
      {.preemptions = 4},
      [&] {
        word = 0;
        things = 0;
        waiters.assign(2, Waiter());
      },
      {[&] { waiters[0].Wait(event, things, 1); },  // for the one thing
       [&] { waiters[1].Wait(event, things, 3); },  // for what does not happen
       [&] {
         notify();
         notify();
       }},
      [&] {
        EXPECT_TRUE(waiters[0].saw || waiters[0].asleep_on != word);
        for (const Waiter& waiter : waiters) {
          EXPECT_TRUE(waiter.saw || waiter.asleep_on != word || (word & kAsleep) != 0);
        }
        return !testing::Test::HasFailure();
      });
  EXPECT_GT(runs, 100u);
}

TEST(SharedEvent, WhereNobodySleepsNobodyIsWoken) {
  std::atomic<uint32_t> word{0};
  SharedEvent event(&word);
  event.Notify();
  EXPECT_EQ(word, 0u);
  // One that announced himself and then had no need to sleep costs one wake.
  (void)event.Announce();
  EXPECT_NE(word & kAsleep, 0u);
  event.Notify();
  EXPECT_EQ(word & kAsleep, 0u);
  const uint32_t calm = word;
  event.Notify();
  EXPECT_EQ(word, calm);
}

TEST(SharedEvent, SleepReturnsAtOnceIfSomethingHappenedMeanwhile) {
  std::atomic<uint32_t> word{0};
  SharedEvent event(&word);
  const uint32_t announced = event.Announce();
  event.Notify();
  event.Sleep(announced, absl::InfiniteDuration());
  event.Sleep(event.Announce(), absl::ZeroDuration());
  event.Sleep(event.Announce(), -absl::Seconds(1));
}

// A process sleeps and another wakes it, over mappings of the same memory; the third is killed in
// its sleep, and nobody is the worse for it.
TEST(SharedEvent, ProcessesWakeEachOtherPastTheDead) {
  struct Shared {
    std::atomic<uint32_t> word{0};
    std::atomic<uint32_t> turn{0};
  };
  void* const memory =
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const shared = new (memory) Shared;
  SharedEvent event(&shared->word);

  const pid_t sleeper = fork();
  if (sleeper == 0) {
    for (;;) event.Sleep(event.Announce(), absl::InfiniteDuration());
  }
  constexpr uint32_t kTurns = 2000;
  const auto play = [&](uint32_t mine) {
    for (uint32_t turn = mine; turn < kTurns; turn += 2) {
      for (;;) {
        const uint32_t announced = event.Announce();
        if (shared->turn.load() == turn) break;
        event.Sleep(announced, absl::InfiniteDuration());
      }
      if (turn == kTurns / 2) kill(sleeper, SIGKILL);
      shared->turn.fetch_add(1);
      event.NotifyAll();
    }
  };
  const pid_t partner = fork();
  if (partner == 0) {
    play(1);
    _exit(0);
  }
  play(0);
  int status = 0;
  EXPECT_EQ(waitpid(partner, &status, 0), partner);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(waitpid(sleeper, &status, 0), sleeper);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(shared->turn.load(), kTurns);
  munmap(memory, 4096);
}

}  // namespace
}  // namespace spanpool::internal

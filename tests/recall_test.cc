// Memory that clients do not use comes back when it is asked for: by an operator, with `spanpool
// trim`, and by a pool that would otherwise refuse.

#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class RecallTest : public ::testing::Test {
 protected:
  explicit RecallTest(uint64_t limit_bytes = 1024 * kMiB)
      : daemon_({.config = absl::StrCat("pool { name: 'default' limit_bytes: ", limit_bytes,
                                        " reserve_bytes: 0 }"),
                 .flags = {}}) {}

  // What `spanpool trim` says of the pool.
  nlohmann::json Trim(int wait_ms = 60'000) {
    Process command({Runfile("cli/spanpool"), "--target", daemon_.run_dir(), "--json", "trim",
                     "--wait_ms", absl::StrCat(wait_ms)});
    std::string text;
    while (const std::optional<std::string> line = command.ReadLine()) {
      absl::StrAppend(&text, *line, "\n");
    }
    EXPECT_EQ(command.Wait(), 0) << command.standard_error();
    return nlohmann::json::parse(text)["pools"][0];
  }
  // Every page with memory behind it is on the books, and no other.
  void ExpectBooksToBalance() {
    const auto backed = [&] {
      const v1::PoolStatus status = daemon_.PoolStatus();
      return status.on_loan_bytes() + status.in_lists_bytes() + status.free_bytes();
    };
    uint64_t before;
    uint64_t memory;
    do {  // the daemon gives free memory back by itself, too
      before = backed();
      memory = daemon_.MemoryBytes();
    } while (backed() != before);
    EXPECT_EQ(memory, before);
  }

  Daemon daemon_;
};

TEST_F(RecallTest, AnIdleClientGivesBackAllButWhatItUsesAndTheMachineGetsIt) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must(absl::StrCat("allocate keep ", 10 * kMiB));
  client.Must("fill keep 1");
  // Idle in the session's cache, in this thread's stacks and in those of threads that sleep.
  client.Must(absl::StrCat("allocate large ", 60 * kMiB));
  client.Must("fill large 2");
  client.Must("drop large");
  for (int i = 0; i < 3; ++i) client.Must("idle_thread 1000 4096");
  client.Must("idle_thread 8 65536");
  ExpectBooksToBalance();
  const uint64_t before = daemon_.MemoryBytes();

  const nlohmann::json trimmed = Trim();
  EXPECT_EQ(trimmed["sessions_asked"], 1);
  EXPECT_EQ(trimmed["sessions_answered"], 1);
  EXPECT_TRUE(trimmed["silent"].empty());
  const v1::PoolStatus status = daemon_.PoolStatus();
  EXPECT_EQ(status.on_loan_bytes(), 10 * kMiB);
  // What is left of the free memory is less than a run at both ends of what is used.
  EXPECT_LE(status.free_bytes(), 4 * kMiB);
  EXPECT_LE(trimmed["free_bytes"], 4 * kMiB);
  ExpectBooksToBalance();
  EXPECT_LE(daemon_.MemoryBytes(), before);

  client.Must("check keep 1");
  client.Must("allocate more 1000000");
  client.Must("fill more 3");
  client.Must("check more 3");
}

TEST_F(RecallTest, ABusyClientAnswersAndLosesNothing) {
  Actor idle;
  Actor busy;
  idle.Must("attach " + daemon_.run_dir());
  busy.Must("attach " + daemon_.run_dir());
  idle.Must("allocate keep 100000");
  idle.Must("fill keep 1");
  busy.Must("busy 3");
  for (int round = 0; round < 20; ++round) {
    // Of the client that is never quiet, so that it is there still when it is asked for.
    busy.Must("idle_thread 100 4096");
    const nlohmann::json trimmed = Trim();
    EXPECT_GT(trimmed["recalled_bytes"], 0);
    EXPECT_EQ(trimmed["sessions_asked"], trimmed["sessions_answered"]);
    EXPECT_TRUE(trimmed["silent"].empty()) << trimmed;
  }
  busy.Must("calm");
  idle.Must("check keep 1");
  EXPECT_EQ(busy.Must("misuses"), "0");
  Trim();
  // The idle one's block, in the step of its size; the busy one holds nothing any more.
  EXPECT_EQ(daemon_.PoolStatus().on_loan_bytes(), 13u * 8192);
  ExpectBooksToBalance();
}

TEST_F(RecallTest, AStoppedClientIsNamedHoldsUpNobodyAndAnswersOnceItRuns) {
  Actor stopped;
  Actor running;
  stopped.Must("attach " + daemon_.run_dir());
  running.Must("attach " + daemon_.run_dir());
  stopped.Must("allocate b 1000000");
  stopped.Must("fill b 1");
  running.Must(absl::StrCat("allocate x ", 10 * kMiB));
  running.Must("allocate keep 1000");  // so that there is something to ask for, however late
  stopped.process().Signal(SIGSTOP);
  const uint64_t held = daemon_.PoolStatus().on_loan_bytes();
  running.Must("drop x");
  const nlohmann::json trimmed = Trim(/*wait_ms=*/500);
  ASSERT_EQ(trimmed["silent"].size(), 1u) << trimmed;
  EXPECT_EQ(trimmed["silent"][0]["pid"], stopped.pid());
  EXPECT_EQ(trimmed["sessions_asked"], 2);
  // All that the other had is free, and nothing of the stopped one's.
  EXPECT_LE(daemon_.PoolStatus().on_loan_bytes(), held - 10 * kMiB);
  EXPECT_GE(daemon_.PoolStatus().on_loan_bytes(), 1'000'000u);

  stopped.process().Signal(SIGCONT);
  EXPECT_TRUE(Trim()["silent"].empty());
  stopped.Must("check b 1");
  ExpectBooksToBalance();
}

TEST_F(RecallTest, ManyShortThreadsLeaveNothingOnLoan) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must("threads 10000");
  EXPECT_EQ(client.Must("misuses"), "0");
  Trim();
  EXPECT_EQ(daemon_.PoolStatus().on_loan_bytes(), 0u);
  EXPECT_EQ(daemon_.PoolStatus().in_lists_bytes(), 0u);
  client.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

class SmallPoolTest : public RecallTest {
 protected:
  SmallPoolTest() : RecallTest(64 * kMiB) {}
};

TEST_F(SmallPoolTest, WhatOneClientDoesNotUseServesAnotherThatWaitsForIt) {
  Actor hoarder;
  Actor other;
  hoarder.Must("attach " + daemon_.run_dir());
  other.Must("attach " + daemon_.run_dir());
  // Never quiet, so that it gives nothing back by itself.
  hoarder.Must("busy 1");
  for (int i = 0; i < 4; ++i) hoarder.Must("idle_thread 200 4096");
  hoarder.Must(absl::StrCat("allocate x ", 30 * kMiB));
  // All that the hoarder does not use, or nearly so: its threads churn 64 blocks of up to 128 KiB.
  other.Must(absl::StrCat("allocate y ", 30 * kMiB, " 64 60000"));
  other.Must("fill y 1");
  other.Must("check y 1");
  EXPECT_GT(daemon_.PoolStatus().refusals_total(), 0u);
  hoarder.Must("calm");
}

}  // namespace
}  // namespace spanpool::testing

// What a process held comes back when it dies, and not before.

#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

class DeathTest : public ::testing::Test {
 protected:
  Daemon daemon_;
};

TEST_F(DeathTest, EverythingAKilledClientHeldComesBack) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  for (int i = 0; i < 200; ++i) client.Must(absl::StrCat("malloc m", i, " ", 64 << (i % 12)));
  for (int i = 0; i < 50; ++i) {
    client.Must(absl::StrCat("allocate b", i, " ", 100 * (i + 1)));
    if (i % 2 == 0) client.Must(absl::StrCat("share b", i));
  }
  EXPECT_GT(daemon_.PoolStatus().on_loan_bytes(), 0u);
  client.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyEmpty());
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  EXPECT_EQ(daemon_.PoolStatus().suspect_blocks(), 0u);
}

TEST_F(DeathTest, BlocksOfADeadProducerLiveUntilTheirLastReaderDropsThem) {
  Actor producer;
  Actor consumer;
  producer.Must("attach " + daemon_.run_dir());
  consumer.Must("attach " + daemon_.run_dir());
  producer.Must("allocate small 300");
  producer.Must("allocate large 3000000");
  producer.Must("fill small 1");
  producer.Must("fill large 2");
  consumer.Must("open small " + producer.Must("share small"));
  consumer.Must("open large " + producer.Must("share large"));
  producer.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  EXPECT_GT(daemon_.PoolStatus().in_lists_bytes(), 3000000u);

  // Another client fills the pool with its own bytes; the reader's stay as they were.
  Actor other;
  other.Must("attach " + daemon_.run_dir());
  for (int i = 0; i < 100; ++i) {
    other.Must(absl::StrCat("allocate x", i, " 300"));
    other.Must(absl::StrCat("fill x", i, " 77"));
  }
  consumer.Must("check small 1");
  consumer.Must("check large 2");
  consumer.Must("drop small");
  consumer.Must("drop large");
  consumer.Must("leave");
  other.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(DeathTest, ReferencesOfADeadReaderAreDropped) {
  Actor producer;
  Actor consumer;
  producer.Must("attach " + daemon_.run_dir());
  consumer.Must("attach " + daemon_.run_dir());
  producer.Must("allocate b 20000");
  const std::string handle = producer.Must("share b");
  consumer.Must("open b " + handle);
  producer.Must("drop b");
  consumer.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  EXPECT_EQ(producer.Do("open b " + handle).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(DeathTest, AStoppedClientIsAliveAndKeepsWhatItHolds) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate b 1000000");
  client.Must("fill b 4");
  const uint64_t on_loan = daemon_.PoolStatus().on_loan_bytes();
  client.process().Signal(SIGSTOP);

  // Others come, work and go; each death is noticed, the stopped client's is not invented.
  for (int i = 0; i < 3; ++i) {
    Actor other;
    other.Must("attach " + daemon_.run_dir());
    other.Must("allocate x 1000000");
    other.Must("fill x 99");
    other.process().Signal(SIGKILL);
    EXPECT_TRUE(daemon_.EventuallyReaped(i + 1));
  }
  EXPECT_EQ(daemon_.PoolStatus().on_loan_bytes(), on_loan);
  client.process().Signal(SIGCONT);
  client.Must("check b 4");
}

TEST_F(DeathTest, AClientKilledWhileStoppedGivesItsMemoryBack) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate b 1000000");
  client.process().Signal(SIGSTOP);
  client.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

// It has no connection left, and its memory as before: it could write to what it holds until it is
// dead.
TEST_F(DeathTest, AClientThatClosedItsDescriptorsHasItsMemoryUntilItDies) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate b 1000000");
  client.Must("fill b 4");
  client.Must("close_descriptors");
  Actor other;
  other.Must("attach " + daemon_.run_dir());
  for (int i = 0; i < 20; ++i) {
    other.Must(absl::StrCat("allocate x", i, " 1000000"));
    other.Must(absl::StrCat("fill x", i, " 99"));
  }
  client.Must("check b 4");
  other.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  client.Must("check b 4");
  EXPECT_GE(daemon_.PoolStatus().on_loan_bytes() + daemon_.PoolStatus().quarantined_bytes(),
            1000000u);
  client.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(DeathTest, AClientThatDumpsCoreGivesItsMemoryBackWhenItIsDead) {
  const std::string folder = TemporaryDirectory();
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate b 10000000");
  client.Must("fill b 4");
  EXPECT_FALSE(client.Do("dump_core " + folder).ok());
  EXPECT_EQ(client.process().Wait(), 128 + SIGSEGV);
  EXPECT_TRUE(daemon_.EventuallyEmpty());
  std::filesystem::remove_all(folder);
}

TEST_F(DeathTest, AForkedChildIsToldToAttachAndTheParentGoesOn) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate b 1000");
  client.Must("fill b 6");
  EXPECT_EQ(client.Must("fork"),
            absl::StrCat(static_cast<int>(absl::StatusCode::kFailedPrecondition)));
  client.Must("check b 6");
  client.Must("allocate c 1000");
}

TEST_F(DeathTest, AForkedChildDoesNotHaveThePoolInItsMemory) {
  // A sanitizer's handler would turn the fault into an exit code.
  Actor client(Process::Options{.uid = 0, .environment = {{"ASAN_OPTIONS", "handle_segv=0"}}});
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate small 1000");
  client.Must("allocate large 1000000");
  EXPECT_EQ(client.Must("fork_read small"), absl::StrCat(-SIGSEGV));
  EXPECT_EQ(client.Must("fork_read large"), absl::StrCat(-SIGSEGV));
}

TEST_F(DeathTest, ManyDeathsInARowLeaveNothingBehind) {
  for (int round = 0; round < 20; ++round) {
    Actor client;
    client.Must("attach " + daemon_.run_dir());
    client.Must("allocate b 500000");
    client.Must("share b");
    client.Must("malloc m 77");
    client.process().Signal(SIGKILL);
  }
  EXPECT_TRUE(daemon_.EventuallyEmpty());
  EXPECT_TRUE(daemon_.EventuallyReaped(20));
}

}  // namespace
}  // namespace spanpool::testing

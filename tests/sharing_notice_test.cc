// A sender learns when the last reader of a block has let go, be it by its own doing or by death.

#include <gtest/gtest.h>
#include <signal.h>

#include <string>

#include "absl/status/status.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"

namespace spanpool::testing {
namespace {

class SharingNoticeTest : public ::testing::Test {
 protected:
  SharingNoticeTest() {
    for (Actor* actor : {&sender_, &reader_, &other_}) actor->Must("attach " + daemon_.run_dir());
    sender_.Must("allocate b 5000");
  }
  absl::StatusCode WaitFor(const std::string& ms) {
    return sender_.Do("await_no_readers b " + ms).status().code();
  }

  Daemon daemon_;
  Actor sender_;
  Actor reader_;
  Actor other_;
};

TEST_F(SharingNoticeTest, ReadersAreThoseWhoHaveTheBlockOpenAndTheLastToLetGoEndsTheWait) {
  EXPECT_EQ(sender_.Must("readers b"), "0");
  const std::string handle = sender_.Must("share b");
  EXPECT_EQ(sender_.Must("readers b"), "0");
  EXPECT_EQ(WaitFor("0"), absl::StatusCode::kOk);
  reader_.Must("open c " + handle);
  other_.Must("open c " + handle);
  EXPECT_EQ(sender_.Must("readers b"), "2");
  EXPECT_EQ(reader_.Must("readers c"), "2") << "the owner is one of them";
  EXPECT_EQ(WaitFor("5"), absl::StatusCode::kDeadlineExceeded);
  sender_.Begin("await_no_readers b 60000");
  other_.Must("drop c");
  reader_.Must("drop c");
  EXPECT_TRUE(sender_.End().ok());
  EXPECT_EQ(sender_.Must("readers b"), "0");
}

TEST_F(SharingNoticeTest, AKilledReaderIsNoReaderOnceItsDeathIsSeen) {
  reader_.Must("open c " + sender_.Must("share b"));
  sender_.Begin("await_no_readers b 60000");
  reader_.process().Signal(SIGKILL);
  EXPECT_TRUE(sender_.End().ok());
}

TEST_F(SharingNoticeTest, AStoppedReaderIsStillAReader) {
  reader_.Must("open c " + sender_.Must("share b"));
  reader_.process().Signal(SIGSTOP);
  EXPECT_EQ(WaitFor("20"), absl::StatusCode::kDeadlineExceeded);
  reader_.process().Signal(SIGCONT);
  reader_.Must("drop c");
  EXPECT_EQ(WaitFor("60000"), absl::StatusCode::kOk);
}

TEST_F(SharingNoticeTest, WhatIsUnderWayAndWhatHasANameHasAReader) {
  sender_.Must("ref kept b");
  const std::string handle = sender_.Must("send kept");
  EXPECT_EQ(sender_.Must("readers b"), "1");
  reader_.Must("open c " + handle);
  EXPECT_EQ(sender_.Must("readers b"), "1") << "what has arrived is under way no more";
  sender_.Must("publish b n");
  EXPECT_EQ(sender_.Must("readers b"), "2");
  reader_.Must("drop c");
  EXPECT_EQ(WaitFor("5"), absl::StatusCode::kDeadlineExceeded);
  sender_.Begin("await_no_readers b 60000");
  reader_.Must("unpublish n");
  EXPECT_TRUE(sender_.End().ok());
}

TEST_F(SharingNoticeTest, ManyReadersOneOfWhichIsKilledAreToldApartByNobodyAndCountedRight) {
  const std::string handle = sender_.Must("share b");
  reader_.Must("open c " + handle);
  reader_.Must("open d " + handle);
  other_.Must("open c " + handle);
  EXPECT_EQ(sender_.Must("readers b"), "3");
  reader_.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  EXPECT_EQ(sender_.Must("readers b"), "1");
  other_.Must("drop c");
  EXPECT_EQ(sender_.Must("readers b"), "0");
}

}  // namespace
}  // namespace spanpool::testing

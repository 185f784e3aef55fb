// Real processes find each other by the names of blocks, and learn by them who died.

#include <gtest/gtest.h>
#include <signal.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"

namespace spanpool::testing {
namespace {

class SharingNamesTest : public ::testing::Test {
 protected:
  SharingNamesTest()
      : daemon_({.config = "limits { names: 20 }\n"
                           "pool { name: \"default\" limit_bytes: 268435456 "
                           "reserve_bytes: 1048576 }\n",
                 .flags = {},
                 .audited = true}) {
    publisher_.Must("attach " + daemon_.run_dir());
    reader_.Must("attach " + daemon_.run_dir());
    publisher_.Must("allocate b 5000");
    publisher_.Must("fill b 3");
  }
  ~SharingNamesTest() override { EXPECT_TRUE(daemon_.EventuallySound()); }

  static absl::StatusCode CodeOf(Actor& actor, const std::string& command) {
    return actor.Do(command).status().code();
  }
  // Nothing is left once all processes have gone.
  void ExpectEmptyInTheEnd() {
    for (Actor* actor : {&publisher_, &reader_}) {
      actor->process().CloseInput();
      actor->process().Wait();
    }
    EXPECT_TRUE(daemon_.EventuallyEmpty());
  }

  Daemon daemon_;
  Actor publisher_;
  Actor reader_;
};

TEST_F(SharingNamesTest, ABlockIsOpenedByItsNameAndLivesWithoutItsOwnersBuffer) {
  publisher_.Must("publish b camera/0");
  publisher_.Must("drop b");
  EXPECT_EQ(reader_.Must("open_name c camera/0"), "5000");
  reader_.Must("check c 3");
  EXPECT_EQ(reader_.Must("names"), "camera/0");
  reader_.Must("unpublish camera/0");
  EXPECT_EQ(CodeOf(reader_, "open_name d camera/0"), absl::StatusCode::kNotFound);
  EXPECT_EQ(CodeOf(reader_, "unpublish camera/0"), absl::StatusCode::kNotFound);
  reader_.Must("check c 3");
  reader_.Must("drop c");
  ExpectEmptyInTheEnd();
}

TEST_F(SharingNamesTest, WhatCannotBePublishedIsRefusedAndSaysWhy) {
  for (const std::string& name :
       {std::string(201, 'x'), std::string("a:b"), std::string("\xc3\xa4")}) {
    EXPECT_EQ(CodeOf(publisher_, "publish b " + name), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(CodeOf(publisher_, "open_name c " + name), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CodeOf(publisher_, "unpublish " + name), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CodeOf(publisher_, "watch " + name), absl::StatusCode::kInvalidArgument);
  }
  publisher_.Must("publish b " + std::string(200, 'x'));
  publisher_.Must("allocate small 40 8");
  EXPECT_EQ(CodeOf(publisher_, "publish small s"), absl::StatusCode::kFailedPrecondition);
  reader_.Must("allocate c 100");
  reader_.Must("publish c n");
  EXPECT_EQ(CodeOf(publisher_, "publish b n"), absl::StatusCode::kAlreadyExists);
  publisher_.Must("publish b n replace");
  EXPECT_EQ(reader_.Must("open_name d n"), "5000");
  // A reader looks up and lists, and changes nothing.
  Actor read_only;
  read_only.Must("attach " + daemon_.run_dir() + " default read");
  EXPECT_EQ(read_only.Must("open_name d n"), "5000");
  EXPECT_EQ(CodeOf(read_only, "publish d m"), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(CodeOf(read_only, "unpublish n"), absl::StatusCode::kPermissionDenied);
  // Two stand; there may be 20.
  for (int i = 2; i < 20; ++i) publisher_.Must(absl::StrCat("publish b n", i));
  EXPECT_EQ(CodeOf(publisher_, "publish b more"), absl::StatusCode::kResourceExhausted);
  publisher_.Must("publish b n2");  // again
}

TEST_F(SharingNamesTest, ANameGoesWithAKilledPublisherOrStaysAsWasAsked) {
  reader_.Must("watch");
  publisher_.Must("publish b goes");
  publisher_.Must("publish b stays outlive");
  EXPECT_EQ(reader_.Must("next 60000"), "published goes");
  EXPECT_EQ(reader_.Must("next 60000"), "published stays");
  publisher_.process().Signal(SIGKILL);
  EXPECT_EQ(reader_.Must("next 60000"), "lost goes");
  EXPECT_EQ(CodeOf(reader_, "open_name c goes"), absl::StatusCode::kNotFound);
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  EXPECT_EQ(reader_.Must("open_name c stays"), "5000");
  reader_.Must("check c 3");
  reader_.Must("drop c");
  EXPECT_TRUE(daemon_.EventuallySound());
  reader_.Must("unpublish stays");
  EXPECT_EQ(reader_.Must("next 60000"), "unpublished stays");
  ExpectEmptyInTheEnd();
}

TEST_F(SharingNamesTest, ANameGoesWithAPublisherThatLeavesOrStaysAsWasAsked) {
  publisher_.Must("publish b goes");
  publisher_.Must("publish b stays outlive");
  reader_.Must("watch");
  EXPECT_EQ(reader_.Must("next 60000"), "published goes");
  EXPECT_EQ(reader_.Must("next 60000"), "published stays");
  publisher_.Must("drop b");
  publisher_.Must("leave");
  EXPECT_EQ(reader_.Must("next 60000"), "left goes");
  EXPECT_EQ(reader_.Must("open_name c stays"), "5000");
  reader_.Must("check c 3");
  reader_.Must("drop c");
  reader_.Must("unpublish stays");
  ExpectEmptyInTheEnd();
}

TEST_F(SharingNamesTest, WhoWaitsForANameGetsTheBlockOnceItIsPublished) {
  EXPECT_EQ(CodeOf(reader_, "open_name c later 20"), absl::StatusCode::kDeadlineExceeded);
  reader_.Begin("open_name c later 60000");
  publisher_.Must("publish b other");
  publisher_.Must("publish b later");
  const absl::StatusOr<std::string> size = reader_.End();
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(*size, "5000");
  reader_.Must("check c 3");
  reader_.Must("open_name d later 0");
}

TEST_F(SharingNamesTest, AWatchIsAboutItsPrefixAndTellsOfEachNameOnlyTheLast) {
  reader_.Must("watch w/");
  EXPECT_EQ(CodeOf(reader_, "next 0"), absl::StatusCode::kDeadlineExceeded);
  publisher_.Must("publish b v");
  publisher_.Must("publish b w/1");
  EXPECT_EQ(reader_.Must("next 60000"), "published w/1");
  // More removals than the daemon keeps count of.
  publisher_.Must("unpublish w/1");
  for (int i = 0; i < 30; ++i) {
    publisher_.Must("publish b w/passing");
    publisher_.Must("unpublish w/passing");
    publisher_.Must(absl::StrCat("publish b x", i));
    publisher_.Must(absl::StrCat("unpublish x", i));
  }
  publisher_.Must("publish b w/2");
  // What was read meanwhile is what the kernel had room for: of names that are gone again it may
  // tell or not.
  bool gone = false;
  for (std::string change; change != "published w/2";) {
    change = reader_.Must("next 60000");
    gone |= change == "unpublished w/1";
    if (HasFailure()) return;
  }
  EXPECT_TRUE(gone);
}

TEST_F(SharingNamesTest, AWatchEndsWithItsSessionAndThereAreOnlySoMany) {
  publisher_.Must("watch");
  publisher_.Must("publish b n");
  EXPECT_EQ(publisher_.Must("next 60000"), "published n");
  publisher_.Must("leave");
  EXPECT_TRUE(daemon_.Eventually([](const auto& pool) { return pool.sessions() == 2; }))
      << "the buffer keeps the session";
  publisher_.Must("drop b");
  EXPECT_TRUE(daemon_.Eventually([](const auto& pool) { return pool.sessions() == 1; }));
  for (int i = 0; i < 100; ++i) reader_.Must("watch");  // each ends the one before
  EXPECT_EQ(CodeOf(reader_, "next 10"), absl::StatusCode::kDeadlineExceeded);
}

// The handle that a look-up returned is opened, or its block is gone and the name with it.
TEST_F(SharingNamesTest, LookUpsThatRaceWithUnpublishingOpenWhatWasPublishedOrFindNothing) {
  publisher_.Begin("race n 1500");
  reader_.Begin("race n 1500");
  for (Actor* actor : {&publisher_, &reader_}) {
    const absl::StatusOr<std::string> opened = actor->End();
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_GT(std::stoi(*opened), 0);
  }
  EXPECT_EQ(reader_.Must("names"), "");
  EXPECT_TRUE(daemon_.EventuallySound());
  publisher_.Must("drop b");
  ExpectEmptyInTheEnd();
}

TEST_F(SharingNamesTest, AForkedChildHasNoNamesAndItsParentKeepsItsWatch) {
  publisher_.Must("watch");
  publisher_.Must("publish b n");
  EXPECT_EQ(publisher_.Must("next 60000"), "published n");
  publisher_.Must("fork_attach " + daemon_.run_dir() + " 2");
  publisher_.Must("await_children");
  publisher_.Must("publish b m");
  EXPECT_EQ(publisher_.Must("next 60000"), "published m");
}

}  // namespace
}  // namespace spanpool::testing

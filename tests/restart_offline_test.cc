// What clients do while the daemon is away and when it is back: streams that end with answers on
// their way, a daemon that is stopped, one that is gone for good. Real processes; only the streams
// pass through a socket of the test's own, which can be cut.

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"
#include "tests/support/relay.h"

namespace spanpool::testing {
namespace {

// What an actor says of itself: "connected", "offline" or "lost"; bytes on loan, idle bytes, spans
// lost.
struct View {
  std::string daemon;
  uint64_t on_loan = 0;
  uint64_t idle = 0;
  uint64_t spans_lost = 0;
};
View ViewOf(Actor& client) {
  const std::vector<std::string> words = absl::StrSplit(client.Must("view"), ' ');
  return {words.at(0), std::stoull(words.at(1)), std::stoull(words.at(2)),
          std::stoull(words.at(3))};
}

class OfflineTest : public ::testing::Test {
 protected:
  OfflineTest() : directory_(TemporaryDirectory()) {
    std::filesystem::create_symlink(daemon_.run_dir() + "/attach.sock",
                                    directory_ + "/attach.sock");
    relay_ = std::make_unique<Relay>(directory_ + "/grpc.sock", daemon_.run_dir() + "/grpc.sock");
  }
  ~OfflineTest() override { std::filesystem::remove_all(directory_); }

  void Attach(Actor& client) { client.Must("attach " + directory_); }
  // Returns when none of its threads runs any more, which is some time after the signal.
  void StopDaemon() {
    daemon_.process().Signal(SIGSTOP);
    ASSERT_TRUE(daemon_.process().StopsBeforeLine());
  }
  // Daemon and client eventually agree about what is on loan.
  void ExpectAgreement(Actor& client) {
    EXPECT_TRUE(daemon_.Eventually([&](const v1::PoolStatus& status) {
      return status.on_loan_bytes() == ViewOf(client).on_loan;
    }));
    EXPECT_EQ(ViewOf(client).spans_lost, 0u);
  }

  Daemon daemon_;
  const std::string directory_;
  std::unique_ptr<Relay> relay_;
};

TEST_F(OfflineTest, WhatHasStockGoesOnWhileStreamsAreCutAndRefused) {
  Actor client;
  Actor reader;
  Attach(client);
  Attach(reader);
  client.Must("allocate a 1000");
  client.Must("fill a 1");
  reader.Must("open warm " + client.Must("share a"));
  relay_->Close();
  for (int i = 0; i < 5; ++i) {
    client.Must(absl::StrCat("allocate b", i, " 1000"));
    client.Must(absl::StrCat("fill b", i, " ", i));
    reader.Must(absl::StrCat("open b", i, " ", client.Must(absl::StrCat("send b", i))));
    reader.Must(absl::StrCat("check b", i, " ", i));
    if (i % 2 == 0) reader.Must(absl::StrCat("drop b", i));
  }
  client.Must("malloc m 100");
  client.Must("free m");
  EXPECT_EQ(ViewOf(client).daemon, "offline");
  relay_->Open();
  client.Must("allocate big 50000000");
  EXPECT_EQ(ViewOf(client).daemon, "connected");
  ExpectAgreement(client);
  reader.Must("leave");
  client.Must("leave");
}

TEST_F(OfflineTest, WhoeverNeedsTheDaemonGoesOnAsSoonAsItIsBack) {
  std::vector<std::unique_ptr<Actor>> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(std::make_unique<Actor>());
    Attach(*clients.back());
    clients.back()->Must("allocate a 1000");
  }
  relay_->Close();
  for (const auto& client : clients) client->Begin("allocate b 5000000");
  relay_->Open();
  for (const auto& client : clients) EXPECT_TRUE(client->End().ok());
  for (const auto& client : clients) EXPECT_EQ(ViewOf(*client).daemon, "connected");
}

TEST_F(OfflineTest, ALostAnswersGrantsGoBackAndTheWishIsAskedAgain) {
  Actor client;
  Attach(client);
  client.Must("allocate a 1000");
  ExpectAgreement(client);
  for (int round = 0; round < 10; ++round) {
    relay_->SwallowAnswers();
    const uint64_t before = daemon_.PoolStatus().grants_total();
    // A length of its own, so that nothing idle will do.
    client.Begin(absl::StrCat("allocate b", round, " ", 3000000 * (round + 1)));
    // It was granted; nobody will know.
    ASSERT_TRUE(daemon_.Eventually(
        [&](const v1::PoolStatus& status) { return status.grants_total() > before; }));
    relay_->Cut();
    ASSERT_TRUE(client.End().ok());
    client.Must(absl::StrCat("fill b", round, " 1"));
    ExpectAgreement(client);
    if (round % 2 == 1) client.Must(absl::StrCat("drop b", round));
  }
  client.Must("leave");
}

TEST_F(OfflineTest, StreamsCutAtAnyMomentUnderLoadLoseNothing) {
  Actor one;
  Actor two;
  for (Actor* client : {&one, &two}) {
    Attach(*client);
    client->Must("busy 2 large");
  }
  for (int round = 0; round < 100 || daemon_.PoolStatus().exchange_messages_total() < 500;
       ++round) {
    if (round % 3 == 0) relay_->SwallowAnswers();
    poll(nullptr, 0, round % 7);  // so that it is another moment each time
    relay_->Cut();
  }
  for (Actor* client : {&one, &two}) client->Must("calm");
  for (Actor* client : {&one, &two}) EXPECT_EQ(ViewOf(*client).spans_lost, 0u);
  EXPECT_TRUE(daemon_.Eventually([&](const v1::PoolStatus& status) {
    return status.on_loan_bytes() == ViewOf(one).on_loan + ViewOf(two).on_loan;
  }));
  EXPECT_EQ(daemon_.PoolStatus().evictions_total(), 0u);
  one.Must("leave");
  two.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

// Until there are those, as a client sees them whose streams are not cut.
void AwaitNames(Actor& observer, const std::string& names) {
  while (observer.Must("names") != names) poll(nullptr, 0, 1);
}

TEST_F(OfflineTest, NamesAreAskedAgainAndWatchesGoOn) {
  Actor client;
  Actor observer;
  Attach(client);
  observer.Must("attach " + daemon_.run_dir());
  client.Must("allocate a 1000");
  client.Must("publish a first");
  client.Must("watch");
  EXPECT_EQ(client.Must("next 60000"), "published first");
  for (int round = 0; round < 5; ++round) {
    const std::string name = absl::StrCat("round", round);
    relay_->SwallowAnswers();
    client.Begin("publish a " + name);
    AwaitNames(observer, "first " + name);
    relay_->Cut();
    EXPECT_TRUE(client.End().ok());
    EXPECT_EQ(client.Must("next 60000"), "published " + name);
    relay_->SwallowAnswers();
    client.Begin("unpublish " + name);
    AwaitNames(observer, "first");
    relay_->Cut();
    EXPECT_TRUE(client.End().ok());
    EXPECT_EQ(client.Must("next 60000"), "unpublished " + name);
  }
}

TEST_F(OfflineTest, ADaemonThatIsStoppedIsWaitedForAndItsLateGrantsGoBack) {
  Actor client;
  Attach(client);
  client.Must("allocate a 1000");
  StopDaemon();
  const absl::Status status = client.Do("allocate b 5000000").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(status.message(), "does not answer")) << status;
  client.Must("allocate c 1000");
  daemon_.process().Signal(SIGCONT);
  client.Must("allocate b 5000000");
  ExpectAgreement(client);
  // A deadline of the caller's own, longer than what one message may take.
  StopDaemon();
  client.Begin("allocate d 5000000 64 60000");
  poll(nullptr, 0, 6000);
  daemon_.process().Signal(SIGCONT);
  EXPECT_TRUE(client.End().ok());
  ExpectAgreement(client);
}

TEST_F(OfflineTest, APoolThatIsLostSaysSoAtOnceAndABufferOfItStaysReadable) {
  Actor client;
  Attach(client);
  client.Must("allocate a 1000");
  client.Must("fill a 7");
  const std::string handle = client.Must("share a");
  daemon_.process().Signal(SIGKILL);
  daemon_.process().Wait();
  for (const char* command : {"allocate b 50000000", "publish a name", "open_name n name"}) {
    const absl::Status status = client.Do(command).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "the pool was lost; attach again")) << status;
  }
  EXPECT_EQ(ViewOf(client).daemon, "lost");
  client.Must("check a 7");
  // The same process attaches to the fresh pool, which knows nothing of the old one's handles.
  Daemon fresh;
  client.Must("attach " + fresh.run_dir());
  EXPECT_EQ(ViewOf(client).daemon, "connected");
  const absl::Status refused = client.Do("open b " + handle).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  client.Must("allocate b 50000000");
  client.Must("fill b 8");
  client.Must("check a 7");
  client.Must("drop a");
  client.Must("leave");
}

}  // namespace
}  // namespace spanpool::testing

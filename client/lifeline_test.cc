// The attach socket after the handshake, against a daemon's end that the test holds.

#include "client/lifeline.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstring>
#include <future>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"

namespace spanpool::internal {
namespace {

using layout::UniqueFd;

absl::Time Soon() { return absl::Now() + absl::Minutes(1); }
absl::Time AlmostNow() { return absl::Now() + absl::Milliseconds(20); }

class LifelineTest : public testing::Test {
 protected:
  LifelineTest() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    daemon_ = UniqueFd(fds[0]);
    lifeline_ = std::make_unique<Lifeline>("/x/attach.sock", UniqueFd(fds[1]));
    lifeline_->SetCallbacks([this] { ++woken_; }, [this] { ++resumed_; });
  }

  // The next request for an arena that the daemon reads; nothing if there is none.
  std::optional<uint32_t> NextRequest(layout::Wait wait = layout::Wait::kYes) {
    layout::ArenaRequest request;
    auto packet =
        layout::ReceivePacket(daemon_.get(), std::as_writable_bytes(std::span(&request, 1)), wait);
    if (!packet.ok() || packet->bytes != sizeof(request)) return std::nullopt;
    return request.arena;
  }
  void Answer(uint32_t arena) {
    layout::ArenaReply reply;
    reply.arena = arena;
    const UniqueFd memfd(memfd_create("x", MFD_CLOEXEC));
    const int fds[] = {memfd.get(), memfd.get()};
    EXPECT_TRUE(layout::SendPacket(daemon_.get(), layout::BytesOf(reply), fds).ok());
  }
  void SayResumed() {
    EXPECT_TRUE(layout::SendPacket(daemon_.get(), layout::BytesOf(layout::ResumedNotice())).ok());
  }
  void Recall(uint64_t number) {
    layout::RecallNotice notice;
    notice.recall = number;
    EXPECT_TRUE(layout::SendPacket(daemon_.get(), layout::BytesOf(notice)).ok());
  }
  std::future<absl::Status> Ask(uint32_t arena) {
    return std::async(std::launch::async, [this, arena] {
      return lifeline_->OpenArena(ArenaIndex(arena), Soon()).status();
    });
  }

  UniqueFd daemon_;
  std::unique_ptr<Lifeline> lifeline_;
  int woken_ = 0;
  int resumed_ = 0;
};

TEST_F(LifelineTest, ALateReplyIsNotTakenForTheNext) {
  EXPECT_EQ(lifeline_->OpenArena(ArenaIndex(1), AlmostNow()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(lifeline_->ended());
  EXPECT_EQ(NextRequest(), 1u);
  // The next request waits until the first is answered: one at a time.
  EXPECT_EQ(lifeline_->OpenArena(ArenaIndex(2), AlmostNow()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(NextRequest(layout::Wait::kNo), std::nullopt);
  std::future<absl::Status> asked = Ask(2);
  Answer(1);
  EXPECT_EQ(NextRequest(), 2u);
  Answer(2);
  EXPECT_TRUE(asked.get().ok());
}

TEST_F(LifelineTest, ALateReplyToTheSameRequestWillDo) {
  EXPECT_FALSE(lifeline_->OpenArena(ArenaIndex(1), AlmostNow()).ok());
  EXPECT_EQ(NextRequest(), 1u);
  std::future<absl::Status> asked = Ask(1);
  // Or it has come before, and then it is asked for again.
  Answer(1);
  if (asked.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
    EXPECT_EQ(NextRequest(), 1u);
    Answer(1);
  }
  EXPECT_TRUE(asked.get().ok());
}

TEST_F(LifelineTest, AWorkerThatTakesOverIsAskedAgain) {
  std::future<absl::Status> asked = Ask(3);
  EXPECT_EQ(NextRequest(), 3u);  // lost with the worker that read it
  SayResumed();
  EXPECT_EQ(NextRequest(), 3u);
  Answer(3);
  EXPECT_TRUE(asked.get().ok());
  EXPECT_EQ(resumed_, 1);
  EXPECT_GE(woken_, 1);
  EXPECT_TRUE(lifeline_->TakeNotices().resumed);
  EXPECT_FALSE(lifeline_->TakeNotices().resumed);
}

TEST_F(LifelineTest, ARequestThatWasStillUnderWayIsAnsweredTwiceAndThatDoesNoHarm) {
  std::future<absl::Status> asked = Ask(3);
  EXPECT_EQ(NextRequest(), 3u);
  SayResumed();
  EXPECT_EQ(NextRequest(), 3u);
  Answer(3);
  Answer(3);
  EXPECT_TRUE(asked.get().ok());
  asked = Ask(4);
  EXPECT_EQ(NextRequest(), 4u);
  Answer(3);
  Answer(4);
  EXPECT_TRUE(asked.get().ok());
}

TEST_F(LifelineTest, ARecallOfAWorkerThatEndedIsOver) {
  Recall(1);
  EXPECT_EQ(lifeline_->TakeNotices().recall->number, 1u);
  Recall(2);
  SayResumed();
  const Lifeline::Notices notices = lifeline_->TakeNotices();
  EXPECT_FALSE(notices.recall.has_value());
  EXPECT_TRUE(notices.resumed);
  Recall(1);
  EXPECT_EQ(lifeline_->TakeNotices().recall->number, 1u);
}

TEST_F(LifelineTest, WhenTheSocketEndsThatIsSeenWithoutReading) {
  EXPECT_FALSE(lifeline_->ended());
  Recall(1);
  daemon_.reset();
  EXPECT_TRUE(lifeline_->ended());
  EXPECT_EQ(lifeline_->OpenArena(ArenaIndex(1), Soon()).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(LifelineTest, AThreadThatWaitsIsToldOfTheEnd) {
  std::future<absl::Status> asked = Ask(3);
  EXPECT_EQ(NextRequest(), 3u);
  daemon_.reset();
  EXPECT_EQ(asked.get().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace spanpool::internal

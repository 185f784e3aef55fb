// What a worker does with connections that another had: the server and its loop in this process,
// the client a socket. All else of it is in daemon_test, against the whole daemon.

#include "server/attach_server.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "server/config.h"
#include "server/event_loop.h"
#include "server/pool.h"
#include "server/reaper.h"
#include "server/recaller.h"
#include "server/session_table.h"

namespace spanpool {
namespace {

using layout::UniqueFd;

class AttachServerTest : public testing::Test {
 protected:
  AttachServerTest()
      : pool_(Config(), nullptr, &sessions_),
        recaller_(&sessions_),
        reaper_({&pool_}),
        loop_(*EventLoop::Create()) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string name = absl::StrCat("spanpool-attach-test-", getpid());
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    EXPECT_EQ(bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
    EXPECT_EQ(listen(listener.get(), 8), 0);
    server_ = std::make_unique<AttachServer>(std::move(listener), std::vector<Pool*>{&pool_},
                                             &sessions_, &reaper_, &recaller_, loop_.get());
    pool_.SetEvictedCallback(
        [this](const Session& session) { server_->CloseConnection(session.id()); });
    EXPECT_TRUE(server_->Start().ok());
    loop_->Start();

    client_ = UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(client_.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
    layout::AttachRequest request;
    std::strcpy(request.pool, "default");
    Send(request);
    EXPECT_EQ(Receive<layout::AttachReply>().code, 0);
  }
  ~AttachServerTest() override {
    loop_->Stop();
    server_.reset();
  }

  static PoolConfig Config() {
    PoolConfig config;
    config.name = "default";
    config.limit_bytes = config.session_limit_bytes = uint64_t{4} << 20;
    config.reserve_bytes = 0;
    return config;
  }

  template <typename T>
  void Send(const T& message) {
    EXPECT_TRUE(layout::SendPacket(client_.get(), layout::BytesOf(message)).ok());
  }
  template <typename T>
  T Receive() {
    T message;
    auto packet =
        layout::ReceivePacket(client_.get(), std::as_writable_bytes(std::span(&message, 1)));
    EXPECT_TRUE(packet.ok());
    EXPECT_EQ(packet->bytes, sizeof(T));
    return message;
  }
  // As if a worker had taken over.
  void TakeOver() {
    absl::Notification done;
    loop_->Post([&] {
      server_->SendResumed();
      done.Notify();
    });
    done.WaitForNotification();
  }
  bool attached() { return sessions_.Snapshot(&pool_).at(0)->state() == SessionState::kAttached; }

  SessionTable sessions_{8};
  Pool pool_;
  Recaller recaller_;
  Reaper reaper_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<AttachServer> server_;
  UniqueFd client_;
};

TEST_F(AttachServerTest, AClientIsToldThatAnotherWorkerHasTakenOver) {
  TakeOver();
  const auto notice = Receive<layout::ResumedNotice>();
  EXPECT_EQ(notice.header.type, layout::AttachType::kResumedNotice);
  EXPECT_EQ(notice.incarnation, pool_.incarnation());
  Send(layout::DetachRequest());
  EXPECT_EQ(Receive<layout::DetachReply>().code, 0);
}

TEST_F(AttachServerTest, AClientThatWasStoppedOverManyRestartsLosesNothing) {
  for (int i = 0; i < 20; ++i) TakeOver();
  layout::ArenaRequest request;
  request.arena = 7;  // there is none
  Send(request);
  for (int i = 0; i < 20; ++i) Receive<layout::ResumedNotice>();
  EXPECT_EQ(Receive<layout::ArenaReply>().code, static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_TRUE(attached());
  // More than there is room for, too.
  for (int i = 0; i < 2000; ++i) TakeOver();
  EXPECT_TRUE(attached());
}

TEST_F(AttachServerTest, OneAnswerToARecallOfTheWorkerBeforeIsIgnored) {
  TakeOver();
  Receive<layout::ResumedNotice>();
  layout::RecallAnswer answer;
  answer.recall = 3;
  Send(answer);
  layout::ArenaRequest request;
  request.arena = 7;
  Send(request);
  EXPECT_NE(Receive<layout::ArenaReply>().code, 0);
  EXPECT_TRUE(attached());
  Send(answer);
  EXPECT_NE(Receive<layout::AttachReply>().code, 0);
  while (attached()) absl::SleepFor(absl::Milliseconds(1));
}

TEST_F(AttachServerTest, AClientThatHasGoneMeanwhileIsDetached) {
  client_.reset();
  TakeOver();
  while (attached()) absl::SleepFor(absl::Milliseconds(1));
}

}  // namespace
}  // namespace spanpool

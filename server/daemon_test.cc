// Drives the real binary: starts, serves, is lied to, and stops.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/create_channel.h"
#include "proto/layout/slot.h"
#include "server/raw_client.h"
#include "spanpool/health.grpc.pb.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;
using testing::HasSubstr;

const char kBinary[] = "server/spanpoold";
constexpr uint32_t kClassOf64 = 6 * 2 + 1;  // size class 6, 64 bytes, noscan

// Asks again until `done`; the test's own time limit is the watchdog.
void WaitUntil(const std::function<bool()>& done) {
  while (!done()) absl::SleepFor(absl::Milliseconds(1));
}

// A child process that runs `work`, and then waits to be killed.
class Child {
 public:
  explicit Child(const std::function<void()>& work) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(ready[0]);
      work();
      if (write(ready[1], "x", 1) != 1) _exit(1);
      for (;;) pause();
    }
    close(ready[1]);
    char byte;
    ok_ = read(ready[0], &byte, 1) == 1;
    close(ready[0]);
  }
  ~Child() {
    if (pid_ > 0) Kill();
  }
  bool ok() const { return ok_; }
  pid_t pid() const { return pid_; }
  void Kill() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  bool ok_ = false;
};

class DaemonTest : public testing::Test {
 protected:
  explicit DaemonTest(std::vector<std::string> arguments = {"--limit=64MiB"})
      : daemon_(kBinary, std::move(arguments)) {
    EXPECT_TRUE(daemon_.ready()) << daemon_.Log();
  }
  const std::string& run_dir() const { return daemon_.run_dir(); }

  DaemonProcess daemon_;
};

TEST_F(DaemonTest, SigtermEndsItInOrderAndRemovesItsSockets) {
  EXPECT_TRUE(std::filesystem::exists(run_dir() + "/attach.sock"));
  EXPECT_TRUE(std::filesystem::exists(run_dir() + "/grpc.sock"));
  EXPECT_EQ(daemon_.Stop(SIGTERM), 0) << daemon_.Log();
  EXPECT_FALSE(std::filesystem::exists(run_dir() + "/attach.sock"));
  EXPECT_FALSE(std::filesystem::exists(run_dir() + "/grpc.sock"));
  EXPECT_THAT(daemon_.Log(), HasSubstr("SIGTERM: draining"));
}

TEST_F(DaemonTest, SigintEndsItInOrderToo) { EXPECT_EQ(daemon_.Stop(SIGINT), 0); }

TEST_F(DaemonTest, ASecondDaemonOnTheSameDirectoryIsRefused) {
  DaemonProcess second(kBinary, {}, run_dir());
  EXPECT_FALSE(second.ready());
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.Log(), HasSubstr(absl::StrCat("pid ", daemon_.pid())));
  RawClient client(run_dir());
  EXPECT_EQ(client.Attach(), 0) << "the first one still serves";
}

TEST_F(DaemonTest, AfterAKillTheNextOneTakesTheDirectoryOver) {
  EXPECT_EQ(daemon_.Stop(SIGKILL), 128 + SIGKILL);
  DaemonProcess second(kBinary, {"--limit=64MiB"}, run_dir());
  ASSERT_TRUE(second.ready()) << second.Log();
  RawClient client(run_dir());
  EXPECT_EQ(client.Attach(), 0);
}

TEST_F(DaemonTest, ASpanIsLentMappedWrittenAndReturned) {
  RawClient client(run_dir());
  ASSERT_EQ(client.Attach(), 0) << client.reply().message;
  EXPECT_EQ(client.reply().limit_bytes, 64u << 20);
  RawClient::Call call = client.Open();
  v1::ExchangeRequest request = Want(kClassOf64, 2);
  request.set_request_id(17);
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, request, &response));
  EXPECT_EQ(response.request_id(), 17u);
  ASSERT_EQ(response.grants_size(), 2);
  EXPECT_NE(response.grants(0).sequence(), response.grants(1).sequence());
  EXPECT_EQ(response.shortfalls_size(), 0);
  std::byte* arena = client.MapArena(0);
  ASSERT_NE(arena, nullptr);
  arena[response.grants(0).first_page() * kPageBytes] = std::byte{42};

  v1::PoolStatus status = StatusOf(run_dir());
  EXPECT_EQ(status.on_loan_bytes(), 2 * kPageBytes);
  EXPECT_EQ(status.sessions(), 1u);
  EXPECT_EQ(status.exchange_messages_total(), 1u);
  EXPECT_EQ(status.grants_total(), 2u);

  EXPECT_NE(client.Detach(), 0) << "spans are on loan";
  v1::ExchangeRequest back;
  for (const v1::SpanGrant& grant : response.grants()) {
    back.add_returns()->set_grant_sequence(grant.sequence());
  }
  ASSERT_TRUE(RawClient::Exchange(call, back, &response));
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), 0u);
  EXPECT_EQ(client.Detach(), 0);
  EXPECT_TRUE(client.AtEndOfFile());
  EXPECT_EQ(call.stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  status = StatusOf(run_dir());
  EXPECT_EQ(status.sessions(), 0u);
  EXPECT_EQ(status.on_loan_bytes() + status.in_lists_bytes() + status.free_bytes() +
                status.scavenged_bytes(),
            status.reserved_bytes());
}

TEST_F(DaemonTest, AKilledClientsMemoryComesBackAndAStoppedOnesDoesNot) {
  Child child([this] {
    RawClient client(run_dir());
    if (client.Attach() != 0) _exit(1);
    RawClient::Call call = client.Open();
    v1::ExchangeResponse response;
    if (!RawClient::Exchange(call, Want(kClassOf64, 8), &response)) _exit(1);
    // Leaked on purpose: the child lives until it is killed.
    new RawClient(std::move(client));
    new RawClient::Call(std::move(call));
  });
  ASSERT_TRUE(child.ok()) << daemon_.Log();
  ASSERT_EQ(kill(child.pid(), SIGSTOP), 0);
  // Something else happens in the daemon meanwhile.
  for (int i = 0; i < 20; ++i) {
    RawClient other(run_dir());
    ASSERT_EQ(other.Attach(), 0);
    ASSERT_EQ(other.Detach(), 0);
  }
  EXPECT_EQ(StatusOf(run_dir()).on_loan_bytes(), 8 * kPageBytes);
  child.Kill();
  WaitUntil([this] { return StatusOf(run_dir()).on_loan_bytes() == 0; });
  WaitUntil([this] { return StatusOf(run_dir()).sessions_reaped_total() == 1; });
  EXPECT_EQ(StatusOf(run_dir()).sessions(), 0u);
}

}  // namespace
}  // namespace spanpool

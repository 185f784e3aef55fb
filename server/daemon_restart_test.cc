// A daemon that goes on where another ended, with clients that stay connected meanwhile.
// pool_restart_test has what becomes of a pool; tests/restart_test has processes that are killed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "allocator/units.h"
#include "proto/layout/attach.h"
#include "server/daemon.h"
#include "server/memory_fd_store.h"
#include "server/pool_audit.h"
#include "server/pool_state.h"
#include "server/raw_client.h"

namespace spanpool {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint32_t kClassOf64 = 6 * 2 + 1;  // size class 6, 64 bytes, noscan

class DaemonRestart : public testing::Test {
 protected:
  DaemonRestart() {
    char path[] = "/tmp/spanpool.XXXXXX";
    config_.run_dir = mkdtemp(path);
    PoolConfig& pool = config_.pools.emplace_back();
    pool.limit_bytes = uint64_t{16} << 20;
    pool.reserve_bytes = 0;
    Start();
  }
  ~DaemonRestart() override {
    daemon_.reset();
    std::filesystem::remove_all(config_.run_dir);
  }

  absl::Status TryStart(bool discard_state = false) {
    auto daemon = Daemon::Start(config_, &store_, store_.Copies(), discard_state);
    if (!daemon.ok()) return daemon.status();
    daemon_ = *std::move(daemon);
    return absl::OkStatus();
  }
  void Start() {
    const absl::Status status = TryStart();
    ASSERT_TRUE(status.ok()) << status;
  }
  void Restart() {
    daemon_.reset();
    Start();
  }
  Pool& pool() { return *daemon_->pools()[0]; }

  // The notice that another worker goes on.
  static void ExpectResumed(RawClient& client) {
    const auto notice = client.Receive<layout::ResumedNotice>();
    ASSERT_TRUE(notice.ok()) << notice.status();
    EXPECT_EQ(notice->first.header.type, layout::AttachType::kResumedNotice);
    EXPECT_EQ(notice->first.incarnation, client.reply().incarnation);
  }
  static std::string TokenOf(const RawClient& client) {
    return std::string(reinterpret_cast<const char*>(client.reply().token), layout::kTokenBytes);
  }

  DaemonConfig config_;
  MemoryFdStore store_;
  std::unique_ptr<Daemon> daemon_;
};

TEST_F(DaemonRestart, AClientStaysAttachedAndGoesOn) {
  RawClient client(config_.run_dir);
  ASSERT_EQ(client.Attach(), 0);
  v1::ExchangeResponse granted;
  {
    RawClient::Call call = client.Open();
    ASSERT_TRUE(RawClient::Exchange(call, Want(kClassOf64, 2), &granted));
  }
  ASSERT_EQ(granted.grants_size(), 2);
  Restart();
  ExpectResumed(client);
  EXPECT_EQ(pool().heap().stats().on_loan_bytes, 2 * 8192u);

  const RawClient way(config_.run_dir);  // a fresh connection, the old token
  RawClient::Call call = const_cast<RawClient&>(way).Open(TokenOf(client));
  v1::ExchangeRequest request = Want(kClassOf64, 1);
  request.mutable_inventory()->add_sequence_deltas(granted.grants(1).sequence());
  v1::ExchangeResponse response;
  ASSERT_TRUE(RawClient::Exchange(call, request, &response));
  ASSERT_EQ(response.grants_size(), 1);
  EXPECT_GT(response.grants(0).sequence(), granted.grants(1).sequence());
  EXPECT_EQ(pool().heap().stats().on_loan_bytes, 2 * 8192u);  // one was not in the inventory
  EXPECT_NE(client.MapArena(0), nullptr);
  EXPECT_THAT(AuditPool(pool()), IsEmpty());
}

TEST_F(DaemonRestart, AnAttachWhoseReplyWasLostIsAnsweredWithTheSameSession) {
  RawClient client(config_.run_dir);
  ASSERT_EQ(client.Attach(), 0);
  const layout::AttachReply first = client.reply();
  Restart();
  ExpectResumed(client);
  ASSERT_EQ(client.Attach(), 0);
  EXPECT_EQ(client.reply().session_id, first.session_id);
  EXPECT_EQ(memcmp(client.reply().token, first.token, sizeof(first.token)), 0);
  EXPECT_EQ(pool().Sessions().size(), 1u);
  // Once.
  EXPECT_NE(client.Attach(), 0);
  EXPECT_TRUE(client.AtEndOfFile());
}

TEST_F(DaemonRestart, SessionsThatComeLaterHaveOtherNumbers) {
  RawClient client(config_.run_dir);
  ASSERT_EQ(client.Attach(), 0);
  Restart();
  RawClient other(config_.run_dir);
  ASSERT_EQ(other.Attach(), 0);
  EXPECT_GT(other.reply().session_id, client.reply().session_id);
  EXPECT_EQ(other.reply().incarnation, client.reply().incarnation);
}

TEST_F(DaemonRestart, AConnectionThatEndedMeanwhileDetachesItsSession) {
  auto client = std::make_unique<RawClient>(config_.run_dir);
  ASSERT_EQ(client->Attach(), 0);
  daemon_.reset();
  client.reset();
  Start();
  while (pool().Sessions().at(0)->state() == SessionState::kAttached) usleep(1000);
  EXPECT_EQ(pool().Sessions().at(0)->state(), SessionState::kDetached);
}

TEST_F(DaemonRestart, WhatNoRecordLeadsToIsLetGo) {
  const size_t before = store_.size();
  const layout::UniqueFd stray(open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(store_.Keep({{.name = "1.a7.d", .fd = stray.get()}}).ok());
  Restart();
  EXPECT_EQ(store_.size(), before);
}

TEST_F(DaemonRestart, WhatIsKeptAnewByANameThatNoRecordLedToStays) {
  const layout::UniqueFd stray(open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (const ArenaFd which : {ArenaFd::kData, ArenaFd::kTable}) {
    const std::string name = KeptArenaName(pool().incarnation(), ArenaIndex(0), which);
    ASSERT_TRUE(store_.Keep({{.name = name, .fd = stray.get()}}).ok());
  }
  daemon_.reset();
  config_.pools[0].reserve_bytes = uint64_t{8} << 20;  // so that the arena is made at once
  Start();
  while (pool().heap().stats().reserved_bytes == 0) usleep(1000);
  Restart();
}

TEST_F(DaemonRestart, AnotherConfigurationIsRefusedAndNothingIsLost) {
  RawClient client(config_.run_dir);
  ASSERT_EQ(client.Attach(), 0);
  daemon_.reset();
  const DaemonConfig config = config_;
  config_.pools[0].limit_bytes *= 2;
  absl::Status status = TryStart();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("pool default"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("limit_bytes"));
  config_.pools[0].limit_bytes = config.pools[0].limit_bytes;
  config_.pools[0].name = "other";
  status = TryStart();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the configuration does not have it"));
  config_ = config;
  Start();
  ExpectResumed(client);
  EXPECT_EQ(pool().Sessions().size(), 1u);
}

TEST_F(DaemonRestart, PoolsMayBeAdded) {
  const uint32_t incarnation = pool().incarnation();
  daemon_.reset();
  PoolConfig added = config_.pools[0];
  added.name = "added";
  config_.pools.push_back(added);
  for (int i = 0; i < 2; ++i) {
    Restart();
    EXPECT_EQ(daemon_->pools()[0]->incarnation(), incarnation);
    EXPECT_NE(daemon_->pools()[1]->incarnation(), incarnation);
  }
}

TEST_F(DaemonRestart, TheStateMayBeDiscarded) {
  RawClient client(config_.run_dir);
  ASSERT_EQ(client.Attach(), 0);
  const size_t before = store_.size();
  const uint32_t incarnation = pool().incarnation();
  daemon_.reset();
  const absl::Status status = TryStart(/*discard_state=*/true);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_NE(pool().incarnation(), incarnation);
  EXPECT_THAT(pool().Sessions(), IsEmpty());
  EXPECT_TRUE(client.AtEndOfFile());
  EXPECT_EQ(store_.size(), before - 4);
}

TEST_F(DaemonRestart, ADefaultLimitStaysWhatItWas) {
  daemon_.reset();
  ASSERT_TRUE(TryStart(/*discard_state=*/true).ok());
  daemon_.reset();
  config_.pools.clear();
  ASSERT_TRUE(TryStart(/*discard_state=*/true).ok());
  const uint64_t limit = pool().config().limit_bytes;
  Restart();
  EXPECT_EQ(pool().config().limit_bytes, limit);
}

}  // namespace
}  // namespace spanpool

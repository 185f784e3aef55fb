#include "bench/pool_daemon.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "spanpool/spanpool.h"

namespace spanpool::bench {
namespace {

TEST(PoolDaemon, ServesAPoolOfTheAskedSizeUntilItGoes) {
  auto daemon = PoolDaemon::Start({.limit_bytes = 64 << 20, .reserve_bytes = 8 << 20});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  {
    SessionOptions options;
    options.target = (*daemon)->target();
    const auto session = Session::Attach(options);
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_NE((*session)->Malloc(100), nullptr);
    const auto status = (*daemon)->Status();
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(status->limit_bytes(), 64u << 20);
    EXPECT_EQ(status->sessions(), 1u);
    EXPECT_GT(status->on_loan_bytes(), 0u);
  }
  const pid_t pid = (*daemon)->pid();
  const std::string run_dir = (*daemon)->target();
  daemon->reset();
  EXPECT_NE(kill(pid, 0), 0);
  EXPECT_FALSE(std::filesystem::exists(run_dir));
}

TEST(PoolDaemon, OneThatDoesNotStartSaysWhy) {
  const auto daemon = PoolDaemon::Start({.arena_kind = "NO_SUCH_KIND"});
  EXPECT_EQ(daemon.status().code(), absl::StatusCode::kAborted);
  EXPECT_NE(daemon.status().message().find("config.textproto"), std::string::npos)
      << daemon.status();
}

}  // namespace
}  // namespace spanpool::bench

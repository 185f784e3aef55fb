// Processes that fork, start programs and end, in every way, with the pool in use.

#include <gtest/gtest.h>
#include <signal.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

class ForkTest : public ::testing::Test {
 protected:
  Daemon daemon_;
};

TEST_F(ForkTest, ChildrenThatAttachThemselvesAndTheirParentWorkSideBySide) {
  Actor client;
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate keep 3000000");
  client.Must("fill keep 1");
  const std::string handle = client.Must("share keep");
  client.Must("idle_thread 200 4096");
  // Threads of the parent are anywhere when it forks.
  client.Must("busy 3");
  for (int round = 0; round < 3; ++round) {
    client.Must(absl::StrCat("fork_attach ", daemon_.run_dir(), " 4"));
    client.Must("allocate more 20000000");
    client.Must("drop more");
    client.Must("await_children");
  }
  client.Must("calm");
  client.Must("check keep 1");
  EXPECT_EQ(client.Must("misuses"), "0");
  Actor other;
  other.Must("attach " + daemon_.run_dir());
  other.Must("open keep " + handle);
  other.Must("check keep 1");
  other.Must("drop keep");
  // What the children had has gone with them.
  EXPECT_TRUE(daemon_.Eventually([](const v1::PoolStatus& s) { return s.sessions() == 2; }));
  client.Must("drop keep");
  client.Must("leave");
  other.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(ForkTest, AChildThatLivesOnDoesNotKeepItsParentsSessionAlive) {
  Actor parent;
  parent.Must("attach " + daemon_.run_dir());
  parent.Must("allocate b 1000000");
  parent.Must("share b");
  // It stays behind when its parent is killed.
  const std::string child = parent.Must("fork_idle");
  parent.process().Signal(SIGKILL);
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  EXPECT_EQ(daemon_.PoolStatus().on_loan_bytes(), 0u);
  kill(std::stoi(child), SIGKILL);
}

TEST_F(ForkTest, AProgramThatIsStartedInheritsNothing) {
  Actor client;
  const std::string none = client.Must("descriptors posix_spawn");  // what every program has
  client.Must("attach " + daemon_.run_dir());
  client.Must("allocate keep 3000000");
  client.Must("fill keep 1");
  client.Must("busy 2");
  for (const char* how : {"fork", "vfork", "posix_spawn"}) {
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(client.Must(absl::StrCat("descriptors ", how)), none) << how;
    }
  }
  client.Must("calm");
  client.Must("check keep 1");
}

class ExitTest : public ForkTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(ExitTest, EndsInOrderAndLeavesNothingBehind) {
  for (int round = 0; round < 3; ++round) {
    Process program({Runfile("tests/support/exit_main"), daemon_.run_dir(), GetParam()});
    EXPECT_EQ(program.Wait(), 0) << program.standard_error();
    EXPECT_EQ(program.standard_error(), "");
    EXPECT_TRUE(daemon_.EventuallyEmpty());
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, ExitTest,
                         ::testing::Values("session_last", "session_first", "session_gone",
                                           "in_main", "containers", "atexit", "leaked", "thread",
                                           "fork_exit", "abrupt"),
                         [](const auto& way) { return std::string(way.param); });

}  // namespace
}  // namespace spanpool::testing

// The daemon with its keeper: workers are killed, upgraded and started again, and the run directory
// is served by whoever is next.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Waits until another process than `before` serves; its pid.
pid_t NextWorker(Daemon& daemon, pid_t before) {
  for (;;) {
    const pid_t pid = daemon.worker_pid();
    if (pid != before) return pid;
    poll(nullptr, 0, 1);
  }
}

bool CanAllocate(const std::string& run_dir) {
  Actor client;
  return client.Do("attach " + run_dir).ok() && client.Do("allocate b 1000").ok();
}

// "pid\n" as a second daemon reads it.
std::string LockText(const std::string& run_dir) {
  std::ifstream file(run_dir + "/lock");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(Restart, AKilledWorkerIsFollowedByOneThatServesTheSameDirectory) {
  Daemon daemon({.kept = true});
  pid_t worker = daemon.worker_pid();
  EXPECT_NE(worker, daemon.process().pid());
  for (int round = 0; round < 3; ++round) {
    EXPECT_TRUE(CanAllocate(daemon.run_dir()));
    ASSERT_EQ(kill(worker, SIGKILL), 0);
    worker = NextWorker(daemon, worker);
    EXPECT_EQ(LockText(daemon.run_dir()), absl::StrCat(worker, "\n"));
    EXPECT_TRUE(daemon.Status().restart_safe());
  }
  EXPECT_TRUE(CanAllocate(daemon.run_dir()));
  EXPECT_THAT(daemon.process().standard_error(), HasSubstr("was ended by SIGKILL"));
}

TEST(Restart, AWorkerThatServesHasThePriorityOfItsKeeper) {
  Daemon daemon({.kept = true});
  const int usual = getpriority(PRIO_PROCESS, static_cast<id_t>(daemon.process().pid()));
  const pid_t first = daemon.worker_pid();
  ASSERT_EQ(kill(first, SIGKILL), 0);
  const pid_t worker = NextWorker(daemon, first);
  int threads = 0;
  for (const auto& thread :
       std::filesystem::directory_iterator(absl::StrCat("/proc/", worker, "/task"))) {
    const int id = std::stoi(thread.path().filename());
    EXPECT_EQ(getpriority(PRIO_PROCESS, static_cast<id_t>(id)), usual) << id;
    ++threads;
  }
  EXPECT_GT(threads, 5);
}

TEST(Restart, ClientsThatConnectWhileNobodyServesAreServedByTheSuccessor) {
  Daemon daemon({.kept = true});
  const pid_t worker = daemon.worker_pid();
  // Without its keeper's help for the while, so that there is a while.
  daemon.process().Signal(SIGSTOP);
  ASSERT_EQ(kill(worker, SIGKILL), 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = daemon.run_dir() + "/attach.sock";
  std::memcpy(address.sun_path, path.data(), path.size());
  const int early = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(early, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0)
      << std::strerror(errno);
  daemon.process().Signal(SIGCONT);
  NextWorker(daemon, worker);
  EXPECT_TRUE(CanAllocate(daemon.run_dir()));
  // It is in the successor's hands: who says nonsense is told so.
  EXPECT_EQ(send(early, "nonsense", 8, 0), 8);
  char reply[64];
  EXPECT_GT(recv(early, reply, sizeof(reply), 0), 0);
  close(early);
}

TEST(Restart, NoOtherDaemonCanTakeTheDirectoryMeanwhile) {
  Daemon daemon({.kept = true});
  const pid_t worker = daemon.worker_pid();
  daemon.process().Signal(SIGSTOP);
  ASSERT_EQ(kill(worker, SIGKILL), 0);
  Process second({Runfile("server/spanpoold"), "--run_dir", daemon.run_dir(), "--fd_store=none"});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.standard_error(), HasSubstr("another spanpoold"));
  daemon.process().Signal(SIGCONT);
  NextWorker(daemon, worker);
}

TEST(Restart, AnUpgradeRunsTheBinaryThatIsOnDiskAndOneThatFailsIsTakenBack) {
  const std::string folder = TemporaryDirectory();
  const std::string binary = folder + "/spanpoold";
  std::filesystem::copy_file(Runfile("server/spanpoold"), binary);
  Process daemon({binary, "--run_dir", folder, "--limit", "67108864"});
  ASSERT_EQ(daemon.ReadLine(), "READY") << daemon.standard_error();
  const auto worker = [&folder] { return std::stoi(LockText(folder)); };
  const auto program = [&worker] {
    return std::filesystem::read_symlink(absl::StrCat("/proc/", worker(), "/exe")).string();
  };
  const auto await_log = [&daemon](const std::string& line, int times) {
    for (;;) {
      const std::string log = daemon.standard_error();
      int found = 0;
      for (size_t at = log.find(line); at != std::string::npos; at = log.find(line, at + 1)) {
        ++found;
      }
      if (found >= times) return;
      poll(nullptr, 0, 1);
    }
  };
  // As a package does it: another file by the same name.
  std::filesystem::copy_file(Runfile("server/spanpoold"), folder + "/new");
  std::filesystem::rename(folder + "/new", binary);
  EXPECT_EQ(program(), binary + " (deleted)");
  daemon.Signal(SIGUSR2);
  await_log(", serves; it was given", 1);
  EXPECT_EQ(program(), binary);
  EXPECT_TRUE(CanAllocate(folder));

  // One that does not know the flags, for example.
  std::filesystem::copy_file("/bin/false", folder + "/new");
  std::filesystem::rename(folder + "/new", binary);
  daemon.Signal(SIGUSR2);
  await_log(", serves; it was given", 2);
  EXPECT_EQ(program(), binary + " (deleted)");
  EXPECT_THAT(daemon.standard_error(), HasSubstr("exited with 1; the program that served before"));
  EXPECT_TRUE(CanAllocate(folder));
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait(), 0) << daemon.standard_error();
  EXPECT_FALSE(std::filesystem::exists(folder + "/attach.sock"));
  std::filesystem::remove_all(folder);
}

TEST(Restart, AKilledKeeperLeavesAWorkerThatServesAndSaysWhatItIsNot) {
  Daemon daemon({.kept = true});
  const pid_t worker = daemon.worker_pid();
  EXPECT_TRUE(daemon.Status().restart_safe());
  daemon.process().Signal(SIGKILL);
  EXPECT_EQ(daemon.process().Wait(), 128 + SIGKILL);
  EXPECT_FALSE(daemon.Status().restart_safe());
  EXPECT_EQ(daemon.worker_pid(), worker);
  EXPECT_TRUE(CanAllocate(daemon.run_dir()));
  while (daemon.process().standard_error().find("the keeper was killed: serving goes on") ==
         std::string::npos) {
    poll(nullptr, 0, 1);
  }
  // Nobody would follow it, so it stays.
  ASSERT_EQ(kill(worker, SIGUSR2), 0);
  while (daemon.process().standard_error().find("SIGUSR2: ignored") == std::string::npos) {
    poll(nullptr, 0, 1);
  }
  EXPECT_EQ(daemon.worker_pid(), worker);
  ASSERT_EQ(kill(worker, SIGKILL), 0);
}

TEST(Restart, BothKilledADaemonStartedByHandServes) {
  const std::string folder = TemporaryDirectory();
  for (int round = 0; round < 2; ++round) {
    Process daemon({Runfile("server/spanpoold"), "--run_dir", folder, "--limit", "67108864"});
    ASSERT_EQ(daemon.ReadLine(), "READY") << daemon.standard_error();
    EXPECT_TRUE(CanAllocate(folder));
    const pid_t worker = std::stoi(LockText(folder));
    daemon.Signal(SIGKILL);
    daemon.Wait();
    ASSERT_EQ(kill(worker, SIGKILL), 0);
    while (kill(worker, 0) == 0 && LockText(folder) == absl::StrCat(worker, "\n")) {
      // Until its lock is gone: then it can be had.
      const int lock = open((folder + "/lock").c_str(), O_RDWR | O_CLOEXEC);
      const bool free = flock(lock, LOCK_EX | LOCK_NB) == 0;
      close(lock);
      if (free) break;
      poll(nullptr, 0, 1);
    }
  }
  std::filesystem::remove_all(folder);
}

TEST(Restart, WithoutAKeeperTheProcessIsTheDaemonAndSaysThatItIsNotSafe) {
  Daemon daemon;
  EXPECT_EQ(daemon.worker_pid(), daemon.process().pid());
  EXPECT_FALSE(daemon.Status().restart_safe());
}

TEST(Restart, EitherPidStopsBoth) {
  for (const bool to_worker : {false, true}) {
    const std::string folder = TemporaryDirectory();
    Process daemon({Runfile("server/spanpoold"), "--run_dir", folder, "--limit", "67108864"});
    ASSERT_EQ(daemon.ReadLine(), "READY") << daemon.standard_error();
    if (to_worker) {
      ASSERT_EQ(kill(std::stoi(LockText(folder)), SIGTERM), 0);
    } else {
      daemon.Signal(SIGTERM);
    }
    EXPECT_EQ(daemon.Wait(), 0) << daemon.standard_error();
    EXPECT_THAT(daemon.standard_error(), HasSubstr("SIGTERM: draining"));
    EXPECT_FALSE(std::filesystem::exists(folder + "/attach.sock"));
    std::filesystem::remove_all(folder);
  }
}

TEST(Restart, WhatTheKeeperSaysIsJsonIfTheLogIs) {
  Daemon daemon({.config = "log { format: JSON }\n", .flags = {}, .kept = true});
  const pid_t worker = daemon.worker_pid();
  ASSERT_EQ(kill(worker, SIGKILL), 0);
  NextWorker(daemon, worker);
  const std::string log = daemon.process().standard_error();
  EXPECT_THAT(log, HasSubstr("was ended by SIGKILL"));
  EXPECT_THAT("\n" + log, Not(::testing::ContainsRegex("\n[^{]")));
}

TEST(Restart, AnAuditedDaemonIsStartedAgainToo) {
  Daemon daemon({.config = "pool { name: \"default\" limit_bytes: 67108864 }\n",
                 .audited = true,
                 .kept = true});
  const pid_t worker = daemon.worker_pid();
  EXPECT_TRUE(daemon.EventuallySound());
  ASSERT_EQ(kill(worker, SIGKILL), 0);
  NextWorker(daemon, worker);
  EXPECT_TRUE(daemon.EventuallySound());
}

}  // namespace
}  // namespace spanpool::testing

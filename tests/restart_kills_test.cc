// The daemon's worker is killed again and again, at random, under load of four clients, which are
// killed, too, or are not to notice; then the whole pool is audited.
//
// SPANPOOL_KILLS says how often a worker is killed in each test (200), SPANPOOL_KILLS_SEED when.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

constexpr int kClients = 4;
constexpr int kKillsPerAudit = 20;

uint64_t NumberOf(const char* variable, uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::stoull(text);
}

// Not to wait for anything, but for the next event to be somewhere else each time.
void Pass(int milliseconds) { poll(nullptr, 0, milliseconds); }

// The pid in the run directory's lock, which a worker writes before it serves; 0 while there is
// none.
pid_t PidInLock(const std::string& run_dir) {
  pid_t pid = 0;
  std::ifstream(run_dir + "/lock") >> pid;
  return pid;
}

class KillsTest : public ::testing::Test {
 protected:
  KillsTest()
      : seed_(NumberOf("SPANPOOL_KILLS_SEED", std::random_device{}())),
        trace_(__FILE__, __LINE__, absl::StrCat("SPANPOOL_KILLS_SEED=", seed_)),
        random_(seed_),
        daemon_({.config = "pool { name: \"default\" limit_bytes: 268435456 "
                           "reserve_bytes: 16777216 transit_grace_ms: 200 }\n",
                 .flags = {},
                 .audited = true,
                 .kept = true}),
        clients_(kClients) {}

  int Random(int below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }

  void Start(int i) {
    client(i) = std::make_unique<Process>(std::vector<std::string>{
        Runfile("tests/support/sharing_load_main"), daemon_.run_dir(), daemon_.run_dir() + "/board",
        std::to_string(random_()), "daemon"});
  }
  void AwaitStart(int i) {
    ASSERT_EQ(client(i)->ReadLine(), "READY") << client(i)->standard_error();
  }
  std::unique_ptr<Process>& client(int i) { return clients_[static_cast<size_t>(i)]; }

  // Kills the worker that was started last. It may have served for a while, or not yet.
  void KillWorker() {
    pid_t worker = killed_;
    while (worker == killed_ || worker == 0) {
      worker = PidInLock(daemon_.run_dir());
      if (worker == killed_) Pass(1);
    }
    Pass(Random(60));
    // Now and then it serves for sure.
    if (kills_ % 4 == 0) {
      ASSERT_EQ(daemon_.worker_pid(), worker);
    }
    ASSERT_EQ(kill(worker, SIGKILL), 0);
    killed_ = worker;
    ++kills_;
  }

  // Holds the clients still, looks at the pool, and lets them go.
  void Audit() {
    for (const auto& client : clients_) client->WriteLine("pause");
    uint64_t operations = 0;
    for (const auto& client : clients_) {
      uint64_t did = 0;
      ASSERT_TRUE(absl::SimpleAtoi(client->ReadLine().value_or("nothing"), &did))
          << client->standard_error();
      operations += did;
    }
    EXPECT_GT(operations, operations_);
    operations_ = operations;
    EXPECT_TRUE(daemon_.EventuallySound()) << "after " << kills_ << " kills";
    const auto status = daemon_.PoolStatus();
    EXPECT_EQ(status.suspect_blocks(), 0u);
    EXPECT_EQ(status.lies_total(), 0u);
    EXPECT_EQ(status.evictions_total(), 0u);
    for (const auto& client : clients_) client->WriteLine("go");
    for (const auto& client : clients_) {
      ASSERT_TRUE(client->ReadLine().has_value()) << client->standard_error();
    }
  }

  // The clients come to their end.
  void ExpectEmptyInTheEnd() {
    std::string did;
    for (const auto& client : clients_) client->CloseInput();
    for (const auto& client : clients_) {
      did = client->ReadLine().value_or("nothing");
      EXPECT_EQ(client->Wait(), 0) << client->standard_error();
    }
    EXPECT_TRUE(daemon_.EventuallyEmpty());
    EXPECT_TRUE(daemon_.EventuallySound());
    // No worker ended but by the test.
    const std::string log = daemon_.process().standard_error();
    int ends = 0;
    for (size_t at = log.find("the worker, pid "); at != std::string::npos;
         at = log.find("the worker, pid ", at + 1)) {
      if (absl::StrContains(log.substr(at, log.find('\n', at) - at), "descriptors are kept")) {
        ++ends;
      }
    }
    EXPECT_EQ(ends, kills_);
    if (HasFailure()) std::cerr << log;
    std::cout << kills_ << " kills of the worker; the last client: " << did << "\n";
  }

  const uint64_t seed_;
  const ::testing::ScopedTrace trace_;
  std::mt19937_64 random_;
  Daemon daemon_;
  std::vector<std::unique_ptr<Process>> clients_;
  pid_t killed_ = 0;
  int kills_ = 0;
  uint64_t operations_ = 0;  // of the clients, at the last audit
};

TEST_F(KillsTest, OfTheWorkerAreNotNoticedByItsClients) {
  for (int i = 0; i < kClients; ++i) {
    Start(i);
    ASSERT_NO_FATAL_FAILURE(AwaitStart(i));
  }
  const auto kills = static_cast<int>(NumberOf("SPANPOOL_KILLS", 200));
  while (kills_ < kills) {
    ASSERT_NO_FATAL_FAILURE(KillWorker());
    if (kills_ % kKillsPerAudit == 0 || kills_ == kills) {
      ASSERT_NO_FATAL_FAILURE(Audit());
    }
    if (HasFailure()) break;
  }
  ExpectEmptyInTheEnd();
}

TEST_F(KillsTest, OfWorkersAndClientsLeakNothing) {
  for (int i = 0; i < kClients; ++i) {
    Start(i);
    ASSERT_NO_FATAL_FAILURE(AwaitStart(i));
  }
  const auto kills = static_cast<int>(NumberOf("SPANPOOL_KILLS", 200)) / 2;
  int deaths = 0;
  while (kills_ < kills) {
    if (Random(2) == 0) {
      const int i = Random(kClients);
      client(i)->Signal(SIGKILL);
      ASSERT_EQ(client(i)->Wait(), 128 + SIGKILL) << client(i)->standard_error();
      ++deaths;
      // The worker dies while it takes back what the client had, or before it knows of the death.
      if (Random(4) != 0) {
        ASSERT_NO_FATAL_FAILURE(KillWorker());
      }
      Start(i);
      // And while a client attaches.
      if (Random(2) == 0) {
        ASSERT_NO_FATAL_FAILURE(KillWorker());
      }
      ASSERT_NO_FATAL_FAILURE(AwaitStart(i));
    } else {
      ASSERT_NO_FATAL_FAILURE(KillWorker());
    }
    if (kills_ % kKillsPerAudit == 0 || kills_ >= kills) {
      operations_ = 0;  // of other clients
      ASSERT_NO_FATAL_FAILURE(Audit());
    }
    if (HasFailure()) break;
  }
  std::cout << deaths << " deaths of clients, ";
  ExpectEmptyInTheEnd();
}

// Whether whoever served the directory is gone, and its lock with it.
bool IsFree(const std::string& run_dir) {
  const int lock = open((run_dir + "/lock").c_str(), O_RDWR | O_CLOEXEC);
  const bool free = flock(lock, LOCK_EX | LOCK_NB) == 0;
  close(lock);
  return free;
}

TEST(KeeperKilled, UnderLoadTheWorkerGoesOnAndWithItThePoolEnds) {
  Daemon daemon({.kept = true});
  const pid_t worker = daemon.worker_pid();
  std::vector<Actor> clients(kClients);
  std::vector<std::string> handles;
  for (int i = 0; i < kClients; ++i) {
    Actor& client = clients[static_cast<size_t>(i)];
    client.Must("attach " + daemon.run_dir());
    client.Must("allocate a 100000");
    client.Must(absl::StrCat("fill a ", i));
    handles.push_back(client.Must("share a"));
    client.Must("busy 2 large");
  }
  daemon.process().Signal(SIGKILL);
  EXPECT_EQ(daemon.process().Wait(), 128 + SIGKILL);
  EXPECT_FALSE(daemon.Status().restart_safe());
  EXPECT_EQ(daemon.worker_pid(), worker);
  // The load goes on, and others come.
  const uint64_t grants = daemon.PoolStatus().grants_total();
  EXPECT_TRUE(daemon.Eventually(
      [grants](const v1::PoolStatus& status) { return status.grants_total() > grants + 20; }));
  for (int i = 0; i < kClients; ++i) {
    Actor& client = clients[static_cast<size_t>(i)];
    client.Must("open b " + handles[static_cast<size_t>((i + 1) % kClients)]);
    client.Must(absl::StrCat("check b ", (i + 1) % kClients));
  }

  ASSERT_EQ(kill(worker, SIGKILL), 0);
  while (!IsFree(daemon.run_dir())) Pass(1);
  for (Actor& client : clients) {
    const absl::Status status = client.Do("allocate c 50000000").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "the pool was lost; attach again")) << status;
  }
  for (int i = 0; i < kClients; ++i) {
    Actor& client = clients[static_cast<size_t>(i)];
    client.Must("calm");
    client.Must(absl::StrCat("check a ", i));
    client.Must(absl::StrCat("check b ", (i + 1) % kClients));
  }

  Process fresh({Runfile("server/spanpoold"), "--run_dir", daemon.run_dir(), "--limit",
                 "1073741824", "--fd_store=none"});
  ASSERT_EQ(fresh.ReadLine(), "READY") << fresh.standard_error();
  for (int i = 0; i < kClients; ++i) {
    Actor& client = clients[static_cast<size_t>(i)];
    client.Must("attach " + daemon.run_dir());
    client.Must("allocate c 100000");
    client.Must("fill c 9");
    for (const std::string& handle : handles) {
      const absl::Status refused = client.Do("open d " + handle).status();
      EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
    }
    // What it still has of the lost pool is what it was.
    client.Must(absl::StrCat("check a ", i));
    client.Must(absl::StrCat("check b ", (i + 1) % kClients));
    client.Must("check c 9");
    client.Must("open d " + client.Must("share c"));
    client.Must("drop a");
    client.Must("drop b");
    client.Must("check d 9");
    client.Must("leave");
  }
  fresh.Signal(SIGTERM);
  EXPECT_EQ(fresh.Wait(), 0) << fresh.standard_error();
}

}  // namespace
}  // namespace spanpool::testing

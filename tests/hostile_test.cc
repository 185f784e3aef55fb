// One client does what no client may, while others work beside it. Afterwards the daemon serves,
// the others' data are what they should be, its books are in order, and the log says who it was.
//
// Each attack of support/hostile_main.cc runs against one of two pools. In the other pool clients
// share blocks all the while and check every one of them; in the attacked pool too, as long as the
// attack is not on memory that its members share.
//
// SPANPOOL_HOSTILE_SEED repeats a run.

#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <ostream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "spanpool/v1/admin.pb.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

struct Attack {
  const char* name;
  // What the log says of the attacker's process, whose "pid N" is in the same line; empty = it did
  // nothing that cannot be told from an honest client's.
  const char* named = "";
  // It writes over what the members of the pool share. Who is in it has to expect anything, and the
  // pool may have lost spans, each of which the log speaks of.
  bool on_shared_memory = false;
};
void PrintTo(const Attack& attack, std::ostream* out) { *out << attack.name; }

class HostileTest : public ::testing::TestWithParam<Attack> {
 protected:
  static constexpr char kAttacked[] = "default";
  static constexpr char kOther[] = "other";

  HostileTest()
      : daemon_({.config = "pool { name: \"default\" limit_bytes: 134217728 reserve_bytes: 1048576 "
                           "session_limit_bytes: 8388608 transit_grace_ms: 200 }\n"
                           "pool { name: \"other\" limit_bytes: 134217728 reserve_bytes: 1048576 "
                           "transit_grace_ms: 200 }\n",
                 .flags = {},
                 .audited = true}) {
    const char* const given = std::getenv("SPANPOOL_HOSTILE_SEED");
    seed_ = given == nullptr ? std::random_device()() : std::stoull(given);
  }

  // Starts two processes that share blocks with each other in `pool`.
  void StartBystanders(const std::string& pool) {
    for (int i = 0; i < 2; ++i) {
      bystanders_.push_back(std::make_unique<Process>(
          std::vector<std::string>{Runfile("tests/support/sharing_load_main"), daemon_.run_dir(),
                                   daemon_.run_dir() + "/board_" + pool,
                                   std::to_string(seed_ + bystanders_.size())},
          Process::Options{.environment = {{"SPANPOOL_POOL", pool}}}));
      ASSERT_EQ(bystanders_.back()->ReadLine(), "READY") << bystanders_.back()->standard_error();
    }
  }

  // A client that comes now is served like any other, and so is an operator.
  // What it writes is its own, unless somebody in its pool may be writing over it.
  void ExpectServed(const std::string& pool, bool undisturbed = true) {
    Actor newcomer(Process::Options{.environment = {{"SPANPOOL_POOL", pool}}});
    newcomer.Must("attach " + daemon_.run_dir());
    newcomer.Must("allocate b 100000");
    newcomer.Must("fill b 9");
    if (undisturbed) newcomer.Must("check b 9");
    newcomer.process().CloseInput();
    EXPECT_EQ(newcomer.process().Wait(), 0) << newcomer.process().standard_error();
    EXPECT_EQ(daemon_.PoolStatus(pool).name(), pool);
  }

  // The bystanders come to their end, having found nothing wrong.
  void ExpectBystandersWell() {
    for (const auto& process : bystanders_) {
      process->CloseInput();
      EXPECT_TRUE(process->ReadLine().has_value());
      EXPECT_EQ(process->Wait(), 0) << process->standard_error();
    }
  }

  // A line of the log with `what` and one of `pids`.
  bool LogNames(const std::vector<std::string>& pids, const std::string& what) {
    std::istringstream log(daemon_.process().standard_error());
    for (std::string line; std::getline(log, line);) {
      if (!absl::StrContains(line, what)) continue;
      for (const std::string& pid : pids) {
        if (absl::StrContains(line, absl::StrCat("pid ", pid, ","))) return true;
      }
    }
    return false;
  }

  Daemon daemon_;
  uint64_t seed_ = 0;
  std::vector<std::unique_ptr<Process>> bystanders_;
};

TEST_P(HostileTest, HarmsNobodyAndIsNamed) {
  const Attack& attack = GetParam();
  std::cout << "SPANPOOL_HOSTILE_SEED=" << seed_ << std::endl;
  SCOPED_TRACE(absl::StrCat("SPANPOOL_HOSTILE_SEED=", seed_));
  if (!attack.on_shared_memory) StartBystanders(kAttacked);
  StartBystanders(kOther);
  if (HasFatalFailure()) return;

  Process attacker({Runfile("tests/support/hostile_main"), daemon_.run_dir(), kAttacked,
                    attack.name, std::to_string(seed_)});
  // "DONE" and who did it.
  std::vector<std::string> pids =
      absl::StrSplit(attacker.ReadLine().value_or("nothing"), ' ', absl::SkipEmpty());
  EXPECT_EQ(pids[0], "DONE") << attacker.standard_error();
  ExpectServed(kAttacked, !attack.on_shared_memory);
  ExpectServed(kOther);
  attacker.Signal(SIGKILL);
  attacker.Wait();
  ExpectServed(kAttacked, !attack.on_shared_memory);

  ExpectBystandersWell();
  EXPECT_TRUE(daemon_.EventuallyEmpty(kOther));
  EXPECT_TRUE(daemon_.EventuallySound(kOther));
  const v1::PoolStatus other = daemon_.PoolStatus(kOther);
  EXPECT_EQ(other.evictions_total() + other.lies_total() + other.suspect_blocks(), 0u);
  if (attack.on_shared_memory) {
    EXPECT_TRUE(daemon_.Eventually(
        [](const auto& pool) { return pool.sessions() == 0 && pool.on_loan_bytes() == 0; },
        kAttacked));
    EXPECT_TRUE(daemon_.EventuallyBalanced(kAttacked));
    EXPECT_TRUE(daemon_.PoolStatus(kAttacked).suspect_blocks() == 0 ||
                absl::StrContains(daemon_.process().standard_error(), "is in quarantine"));
  } else {
    EXPECT_TRUE(daemon_.EventuallyEmpty(kAttacked));
    EXPECT_TRUE(daemon_.EventuallySound(kAttacked));
  }
  if (*attack.named != 0) {
    EXPECT_TRUE(LogNames(pids, attack.named)) << daemon_.process().standard_error();
  }
}

INSTANTIATE_TEST_SUITE_P(OnTheAttachSocket, HostileTest,
                         ::testing::Values(Attack{"PacketsOfEverySize", "evicted"},
                                           Attack{"ShuffledPackets", "evicted"},
                                           Attack{"ForeignNumbers", "evicted"},
                                           Attack{"HalfOpenConnections"},
                                           Attack{"RepliesThatAreNeverRead", "evicted"},
                                           Attack{"AbandonedSessions"}, Attack{"SealedFiles"}),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(OnExchange, HostileTest,
                         ::testing::Values(Attack{"MessagesAgainstTheRules", "evicted"},
                                           Attack{"OldAndForeignSequenceNumbers"},
                                           Attack{"BytesThatAreNoMessage"},
                                           Attack{"AnswersThatAreNeverRead"},
                                           Attack{"CallsThatAreHeldOpen"}),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(OnSharedMemory, HostileTest,
                         ::testing::Values(Attack{"ScribbledSegments", "left a slot", true},
                                           Attack{"ScribbledTables", "left a slot", true},
                                           Attack{"ScribbledBlocks", "left a slot", true},
                                           Attack{"PunchedHoles", "left a slot", true},
                                           Attack{"AccomplicesOfTheDead", "left ", true}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace spanpool::testing

// The keeper as a process, with workers that do as they are told (keeper_test_worker.cc), and real
// kills.

#include "server/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/notify_fd_store.h"

namespace spanpool {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

TEST(RestartDelay, TheFirstRestartIsAtOnceAndEachOneAfterIsTwiceAsLate) {
  RestartDelay delay;
  std::vector<int64_t> waits;
  for (int i = 0; i < 12; ++i) {
    waits.push_back(absl::ToInt64Milliseconds(delay.Next(absl::Seconds(1))));
  }
  EXPECT_THAT(waits, ElementsAre(0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000));
}

TEST(RestartDelay, AWorkerThatServedForTenSecondsIsRestartedAtOnce) {
  RestartDelay delay;
  for (int i = 0; i < 5; ++i) delay.Next(absl::ZeroDuration());
  EXPECT_EQ(delay.Next(absl::Seconds(10)), absl::ZeroDuration());
  EXPECT_EQ(delay.Next(absl::Milliseconds(9999)), absl::Milliseconds(10));
}

TEST(RestartDelay, NoneIsLongerThanTheLongest) {
  RestartDelay delay(absl::Milliseconds(15));
  std::vector<int64_t> waits;
  for (int i = 0; i < 4; ++i) {
    waits.push_back(absl::ToInt64Milliseconds(delay.Next(absl::Seconds(1))));
  }
  EXPECT_THAT(waits, ElementsAre(0, 10, 15, 15));
}

// A copy of the test's worker, which calls itself `name`, in place of what is at `path`.
void PutProgram(const std::string& name, const std::string& path) {
  std::filesystem::copy_file("server/keeper_test_worker", path + ".new",
                             std::filesystem::copy_options::overwrite_existing);
  std::ofstream(path + ".new", std::ios::binary | std::ios::app) << "#" << name;
  std::filesystem::permissions(path + ".new", std::filesystem::perms::owner_all);
  std::filesystem::rename(path + ".new", path);
}

struct Introduction {
  std::string name;
  pid_t pid = -1;
  std::string given;
};

class KeeperTest : public testing::Test {
 protected:
  KeeperTest() {
    char folder[] = "/tmp/spanpool-keeper-XXXXXX";
    EXPECT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
    program_ = folder_ + "/worker";
    PutProgram("first", program_);
  }
  ~KeeperTest() override {
    if (keeper_ > 0) {
      kill(keeper_, SIGKILL);
      waitpid(keeper_, nullptr, 0);
    }
    if (worker_ > 0) kill(worker_, SIGKILL);
    for (const int fd : {input_, output_}) {
      if (fd >= 0) close(fd);
    }
    std::filesystem::remove_all(folder_);
  }

  // As the first process of a pid namespace, if `flags` are those of unshare. False: not allowed.
  bool Start(int unshare_flags = 0, KeeperOptions options = {}) {
    options.program = program_;
    options.arguments = {"worker"};
    std::array<int, 2> in{}, out{};
    EXPECT_EQ(pipe2(in.data(), O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out.data(), O_CLOEXEC), 0);
    keeper_ = fork();
    if (keeper_ == 0) {
      if (unshare_flags != 0) {
        if (unshare(unshare_flags) != 0) _exit(77);
        const pid_t first = fork();
        if (first != 0) {
          int status = 0;
          waitpid(first, &status, 0);
          _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
        }
      }
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      dup2(open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), STDERR_FILENO);
      _exit(RunKeeper(options));
    }
    close(in[0]);
    close(out[1]);
    input_ = in[1];
    output_ = out[0];
    return true;
  }

  // The next line that keeper or worker prints; "" at the end.
  std::string Line() {
    std::string line;
    for (char c = 0; read(output_, &c, 1) == 1;) {
      if (c == '\n') return line;
      line += c;
    }
    return line;
  }
  Introduction NextWorker() {
    const std::vector<std::string> words = absl::StrSplit(Line(), ' ');
    if (words.size() != 3) return {};
    worker_ = std::stoi(words[1]);
    return {words[0], worker_, words[2]};
  }
  void Write(const std::string& command) const {
    EXPECT_EQ(write(input_, (command + "\n").data(), command.size() + 1),
              static_cast<ssize_t>(command.size()) + 1);
  }
  std::string Tell(const std::string& command) {
    Write(command);
    return Line();
  }
  // The worker serves; of the first the keeper says READY, in no certain order.
  Introduction StartServing() {
    Start();
    const Introduction worker = NextWorker();
    Write("ready");
    std::vector<std::string> lines = {Line(), Line()};
    EXPECT_THAT(lines, testing::UnorderedElementsAre("ok", "READY")) << Log();
    return worker;
  }
  // The keeper's exit status, or 128 + the signal that ended it.
  int Wait() {
    int status = 0;
    waitpid(keeper_, &status, 0);
    keeper_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  std::string Log() const {
    std::ifstream file(folder_ + "/log");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  std::string folder_, program_;
  pid_t keeper_ = -1;
  pid_t worker_ = -1;
  int input_ = -1, output_ = -1;
};

// Before a worker has served.

TEST_F(KeeperTest, AWorkerThatFailsBeforeItEverServedEndsTheKeeperWithItsStatus) {
  Start();
  EXPECT_EQ(NextWorker().name, "first");
  Write("exit 2");
  EXPECT_EQ(Wait(), 2);
  EXPECT_EQ(Line(), "");  // no other worker, no READY
  EXPECT_EQ(Log(), "");
}

TEST_F(KeeperTest, AProgramThatCannotBeRunIsAnError) {
  std::ofstream(program_) << "no program";
  Start();
  EXPECT_EQ(Wait(), 1);
  EXPECT_THAT(Log(), HasSubstr("Exec format error"));
}

TEST_F(KeeperTest, AStopBeforeAWorkerServesIsAStop) {
  Start();
  NextWorker();
  kill(keeper_, SIGTERM);
  EXPECT_EQ(Wait(), 0) << Log();
}

// Restarts.

TEST_F(KeeperTest, AKilledWorkerIsFollowedByOneThatHasWhatWasKept) {
  const Introduction first = StartServing();
  EXPECT_EQ(first.given, "");
  EXPECT_EQ(Tell("keep pool/a.data file hello"), "ok");
  EXPECT_EQ(Tell(absl::StrCat("keep session/1.process process ", getpid())), "ok");
  EXPECT_EQ(Tell("keep session/1.lifeline socket bytes"), "ok");
  EXPECT_EQ(Tell("keep gone file x"), "ok");
  EXPECT_EQ(Tell("keep pool/a.data file hello2"), "ok");  // replaces
  EXPECT_EQ(Tell("forget gone"), "ok");
  ASSERT_EQ(kill(first.pid, SIGKILL), 0);
  const std::string all =
      "pool/a.data=hello2:session/1.lifeline=socket with bytes:session/1.process=process";
  // Its line has a space more.
  const std::string line = Line();
  EXPECT_THAT(line, StartsWith("first "));
  EXPECT_THAT(line, testing::EndsWith(" " + all));
  EXPECT_EQ(Tell("ready"), "ok");  // and READY is said once only
  // One that was given something has it kept still.
  EXPECT_EQ(Tell("forget session/1.lifeline"), "ok");
  EXPECT_EQ(Tell("keep more file 2"), "ok");
  Write("exit 9");
  const Introduction third = NextWorker();
  EXPECT_EQ(third.given, "more=2:pool/a.data=hello2:session/1.process=process");
  EXPECT_THAT(Log(), HasSubstr(absl::StrCat("the worker, pid ", first.pid,
                                            ", was ended by SIGKILL; 3 descriptors are kept")));
}

TEST_F(KeeperTest, WhatAWorkerHadKeptInItsLastMomentIsKept) {
  StartServing();
  // No answer is awaited: the message may be unread when its sender is dead.
  Write("keep last file words");
  Write("exit 9");
  std::string line = Line();
  if (line == "ok") line = Line();
  EXPECT_THAT(line, testing::EndsWith("last=words"));
}

TEST_F(KeeperTest, ManyDescriptorsComeThroughUnmixed) {
  StartServing();
  for (int i = 0; i < 200; ++i) {
    ASSERT_EQ(Tell(absl::StrCat("keep n", i, " file n", i)), "ok");
  }
  for (int round = 0; round < 2; ++round) {
    Write("exit 9");
    const Introduction next = NextWorker();
    const std::vector<std::string> given = absl::StrSplit(next.given, ':');
    EXPECT_EQ(given.size(), 200u);
    for (const std::string& one : given) {
      const std::pair<std::string, std::string> parts = absl::StrSplit(one, '=');
      EXPECT_EQ(parts.first, parts.second);
    }
    EXPECT_EQ(Tell("ready"), "ok");
  }
}

TEST_F(KeeperTest, AWorkerThatCrashesInALoopIsStartedAgainLaterAndLater) {
  StartServing();
  EXPECT_EQ(Tell("keep a file 1"), "ok");
  for (int crash = 0; crash < 5; ++crash) {
    Write("exit 9");  // before it serves, but for the first time
    EXPECT_EQ(NextWorker().given, "a=1");
  }
  for (const char* delay : {"started at once", "in 10ms", "in 20ms", "in 40ms", "in 80ms"}) {
    EXPECT_THAT(Log(), HasSubstr(delay));
  }
  EXPECT_EQ(Tell("ready"), "ok");
}

TEST_F(KeeperTest, AStrangerHasNothingKeptAndEndsNothing) {
  const Introduction worker = StartServing();
  std::ifstream file(absl::StrCat("/proc/", worker.pid, "/environ"));
  const std::string all{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::string address;
  for (const std::string& variable :
       std::vector<std::string>(absl::StrSplit(all, absl::ByChar('\0')))) {
    if (absl::StartsWith(variable, "NOTIFY_SOCKET=")) address = variable.substr(14);
  }
  ASSERT_THAT(address, StartsWith("@"));
  // This test is no worker of the keeper's.
  auto store = NotifyFdStore::Connect({.socket = address}, {});
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE((*store)->Keep({{"forged", STDIN_FILENO}}).ok());  // to all that it can tell
  EXPECT_EQ(Tell("keep a file 1"), "ok");
  Write("exit 9");
  EXPECT_EQ(NextWorker().given, "a=1");
}

// Signals.

TEST_F(KeeperTest, SignalsGoToTheWorkerWhoseEndIsTheKeepers) {
  for (const int signal : {SIGTERM, SIGINT}) {
    StartServing();
    kill(keeper_, SIGHUP);
    EXPECT_EQ(Line(), "SIGHUP");
    kill(keeper_, signal);
    EXPECT_EQ(Wait(), 0) << Log();
    EXPECT_EQ(Line(), "");
  }
}

TEST_F(KeeperTest, AWorkerThatIsToldToStopByOthersEndsTheKeeperToo) {
  const Introduction worker = StartServing();
  kill(worker.pid, SIGTERM);
  EXPECT_EQ(Wait(), 0) << Log();
}

TEST_F(KeeperTest, TheSecondStopKillsAWorkerThatDoesNotHear) {
  const Introduction worker = StartServing();
  kill(worker.pid, SIGSTOP);
  kill(keeper_, SIGTERM);
  kill(keeper_, SIGINT);
  const int status = Wait();
  EXPECT_TRUE(status == 128 + SIGTERM || status == 128 + SIGINT) << status;
  EXPECT_EQ(Line(), "");  // nobody has the other end any more
}

TEST_F(KeeperTest, AStopWhileNoWorkerRunsIsTheEnd) {
  StartServing();
  std::filesystem::remove(program_);
  for (int crash = 0; crash < 8; ++crash) {
    Write("exit 9");
    NextWorker();
  }
  Write("exit 9");  // the next one is more than a second away
  while (Log().find("in 1.28s") == std::string::npos) poll(nullptr, 0, 1);
  kill(keeper_, SIGTERM);
  EXPECT_EQ(Wait(), 0) << Log();
}

// Upgrades.

TEST_F(KeeperTest, AnUpgradeRunsWhatIsOnDisk) {
  StartServing();
  EXPECT_EQ(Tell("keep a file 1"), "ok");
  PutProgram("second", program_);
  kill(keeper_, SIGUSR2);
  const Introduction second = NextWorker();
  EXPECT_EQ(second.name, "second");
  EXPECT_EQ(second.given, "a=1");
  EXPECT_EQ(Tell("ready"), "ok");
  // From now on that is what is started again, whatever is on disk.
  PutProgram("third", program_);
  Write("exit 9");
  EXPECT_EQ(NextWorker().name, "second");
}

TEST_F(KeeperTest, ACrashIsNoUpgrade) {
  StartServing();
  PutProgram("second", program_);
  Write("exit 9");
  EXPECT_EQ(NextWorker().name, "first");
}

TEST_F(KeeperTest, AWorkerMayItselfBeToldToMakeRoom) {
  const Introduction first = StartServing();
  PutProgram("second", program_);
  kill(first.pid, SIGUSR2);
  EXPECT_EQ(NextWorker().name, "second");
}

TEST_F(KeeperTest, ANewWorkerThatRefusesIsFollowedByTheOldOneThatWasReplacedOnDisk) {
  StartServing();
  EXPECT_EQ(Tell("keep a file 1"), "ok");
  PutProgram("refuses", program_);
  kill(keeper_, SIGUSR2);
  EXPECT_EQ(NextWorker().name, "refuses");
  const Introduction again = NextWorker();
  EXPECT_EQ(again.name, "first");
  EXPECT_EQ(again.given, "a=1");
  EXPECT_EQ(Tell("ready"), "ok");
  EXPECT_THAT(Log(),
              HasSubstr("exited with 4, for it will not serve what its predecessor left; the "
                        "program that served before is started again"));
}

TEST_F(KeeperTest, ANewWorkerThatFailsOrCannotBeRunIsFollowedByTheOldOne) {
  StartServing();
  PutProgram("fails", program_);
  kill(keeper_, SIGUSR2);
  EXPECT_EQ(NextWorker().name, "fails");
  EXPECT_EQ(NextWorker().name, "first");
  EXPECT_EQ(Tell("ready"), "ok");

  std::filesystem::remove(program_);
  kill(keeper_, SIGUSR2);
  EXPECT_EQ(NextWorker().name, "first");
  EXPECT_EQ(Tell("ready"), "ok");
  EXPECT_THAT(Log(), HasSubstr("No such file or directory"));

  std::ofstream(program_) << "no program";
  std::filesystem::permissions(program_, std::filesystem::perms::owner_all);
  kill(keeper_, SIGUSR2);
  EXPECT_EQ(NextWorker().name, "first");
  EXPECT_THAT(Log(), HasSubstr("Exec format error"));
}

TEST_F(KeeperTest, AWorkerThatMakesNoRoomIsKilled) {
  Start(0, {.upgrade_patience = absl::Milliseconds(20)});
  const Introduction first = NextWorker();
  Write("ready");
  Line();
  Line();
  EXPECT_EQ(Tell("keep a file 1"), "ok");
  kill(first.pid, SIGSTOP);
  PutProgram("second", program_);
  kill(keeper_, SIGUSR2);
  const Introduction second = NextWorker();
  EXPECT_EQ(second.name, "second");
  EXPECT_EQ(second.given, "a=1");
}

// The keeper's own end.

TEST_F(KeeperTest, AKilledKeeperLeavesAWorkerThatKnows) {
  StartServing();
  EXPECT_EQ(Tell("keep a file 1"), "ok");
  EXPECT_EQ(Tell("safe"), "yes");
  kill(keeper_, SIGKILL);
  Wait();
  EXPECT_EQ(Tell("safe"), "no");
  EXPECT_THAT(Tell("keep b file 2"), StartsWith("UNAVAILABLE"));
  EXPECT_EQ(Tell("forget a"), "ok");
}

TEST_F(KeeperTest, AsTheFirstProcessOfAContainerItReapsWhatEndsThere) {
  Start(CLONE_NEWUSER | CLONE_NEWPID);
  const Introduction worker = NextWorker();
  if (worker.pid < 0 && Wait() == 77) GTEST_SKIP() << "no pid namespaces here";
  worker_ = -1;  // a number of another namespace
  EXPECT_EQ(worker.pid, 2);
  Write("ready");
  Line();
  Line();
  EXPECT_EQ(Tell("orphan"), "reaped");
  Write("exit 9");
  EXPECT_GT(NextWorker().pid, 2);
  worker_ = -1;
  EXPECT_EQ(Tell("ready"), "ok");
  Write("exit 0");
  EXPECT_EQ(Wait(), 0) << Log();
}

}  // namespace
}  // namespace spanpool

// Every foreseeable mistake has an error that says what was wrong and what to do.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"

namespace spanpool::testing {
namespace {

TEST(Errors, NoDaemonIsUnavailableAndNamesTheDirectory) {
  Actor client;
  const std::string dir = TemporaryDirectory();
  const absl::Status status = client.Do("attach " + dir).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(status.message(), dir)) << status;
  std::filesystem::remove_all(dir);
}

TEST(Errors, AnUnknownPoolIsNotFoundAndNamesIt) {
  Daemon daemon;
  Actor client;
  const absl::Status status = client.Do("attach " + daemon.run_dir() + " nosuch").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(status.message(), "nosuch")) << status;
}

TEST(Errors, AUidThatIsNotOnTheAccessListIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  Daemon daemon;
  Actor client(Process::Options{.uid = 12345, .environment = {}});
  const absl::Status status = client.Do("attach " + daemon.run_dir()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "12345")) << status;
}

TEST(Errors, AUidOnTheAccessListGetsInAsFarAsTheListSays) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  Daemon daemon({.config = "pool { name: \"default\" limit_bytes: 268435456\n"
                           "  allow { uid: 12345 access: WRITE }\n"
                           "  allow { uid: 12346 access: READ } }\n",
                 .flags = {}});
  Actor writer(Process::Options{.uid = 12345, .environment = {}});
  writer.Must("attach " + daemon.run_dir());
  writer.Must("allocate b 1000");
  writer.Must("fill b 1");
  const std::string handle = writer.Must("share b");

  // A sanitizer's handler would turn the fault into an exit code.
  Actor reader(Process::Options{
      .uid = 12346,
      .environment = {{"ASAN_OPTIONS", "handle_segv=0"}, {"UBSAN_OPTIONS", "handle_segv=0"}}});
  EXPECT_EQ(reader.Do("attach " + daemon.run_dir()).status().code(),
            absl::StatusCode::kPermissionDenied);
  reader.Must("attach " + daemon.run_dir() + " default read");
  reader.Must("open b " + handle);
  reader.Must("check b 1");
  EXPECT_EQ(reader.Do("allocate c 1000").status().code(), absl::StatusCode::kPermissionDenied);
  // The kernel keeps a reader of another uid from writing the payload.
  EXPECT_FALSE(reader.Do("fill b 2").ok());
  EXPECT_EQ(reader.process().Wait(), 128 + SIGSEGV);
  writer.Must("check b 1");
}

TEST(Errors, AHandleOfAnotherPoolIsRefused) {
  Daemon daemon({.config = "pool { name: \"one\" limit_bytes: 67108864 }\n"
                           "pool { name: \"two\" limit_bytes: 67108864 }\n",
                 .flags = {}});
  Actor one;
  Actor two;
  one.Must("attach " + daemon.run_dir() + " one");
  two.Must("attach " + daemon.run_dir() + " two");
  one.Must("allocate b 1000");
  two.Must("allocate b 1000");
  const std::string handle = one.Must("share b");
  two.Must("share b");
  EXPECT_EQ(two.Do("open c " + handle).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Errors, AHandleThatIsNoHandleIsRefused) {
  Daemon daemon;
  Actor client;
  client.Must("attach " + daemon.run_dir());
  for (const char* text : {"nonsense", "00000000", "zz", "0123456789abcdef0123456789abcde",
                           "0123456789abcdef0123456789abcdeff"}) {
    EXPECT_EQ(client.Do(absl::StrCat("open b ", text)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(Errors, SizeZeroAndAbsurdSizesAreInvalid) {
  Daemon daemon;
  Actor client;
  client.Must("attach " + daemon.run_dir());
  EXPECT_EQ(client.Do("allocate b 0").status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* bytes : {"1099511627776", "9223372036854775807", "18446744073709551615"}) {
    const absl::Status status = client.Do(absl::StrCat("allocate b ", bytes)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "1073741824")) << status;
    EXPECT_EQ(client.Do(absl::StrCat("malloc m ", bytes)).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
}

TEST(Errors, AFullPoolSaysSoAndGoesOnWhenMemoryComesBack) {
  Daemon daemon({.config = "", .flags = {"--limit", "67108864"}});
  Actor client;
  client.Must("attach " + daemon.run_dir());
  absl::Status status;
  int got = 0;
  for (; got < 100; ++got) {
    status = client.Do(absl::StrCat("allocate b", got, " 4194304")).status();
    if (!status.ok()) break;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "67108864") ||
              absl::StrContains(status.message(), "64"))
      << status;
  EXPECT_GE(got, 15);
  client.Must("drop b0");
  client.Must("allocate b0 4194304");
  client.Must("leave");
}

TEST(Errors, AForeignPointerIsReportedAndNothingHappens) {
  Daemon daemon;
  Actor client;
  client.Must("attach " + daemon.run_dir());
  client.Must("allocate b 1000");
  const uint64_t address = std::stoull(client.Must("address b"), nullptr, 16);
  client.Must("free_address 0");  // nullptr is fine
  EXPECT_EQ(client.Must("misuses"), "0");
  client.Must("free_address 1000");
  client.Must(absl::StrCat("free_address ", absl::Hex(address + 8)));
  EXPECT_EQ(client.Must("misuses"), "2");
  client.Must("fill b 1");
  client.Must("check b 1");
}

TEST(Errors, ASecondDaemonOnTheSameDirectoryIsRefused) {
  Daemon daemon;
  Process second({Runfile("server/spanpoold"), "--run_dir", daemon.run_dir()});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_TRUE(absl::StrContains(second.standard_error(), daemon.run_dir()))
      << second.standard_error();
  Actor client;
  client.Must("attach " + daemon.run_dir());
}

TEST(Errors, ADaemonKilledAndStartedAgainOnItsDirectoryServes) {
  const std::string dir = TemporaryDirectory();
  {
    Process first({Runfile("server/spanpoold"), "--run_dir", dir, "--fd_store=none"});
    ASSERT_EQ(first.ReadLine(), "READY");
    first.Signal(SIGKILL);
    first.Wait();
  }
  Process second({Runfile("server/spanpoold"), "--run_dir", dir, "--fd_store=none"});
  EXPECT_EQ(second.ReadLine(), "READY") << second.standard_error();
  Actor client;
  client.Must("attach " + dir);
  client.Must("allocate b 100");
  std::filesystem::remove_all(dir);
}

TEST(Errors, ADirectoryThatCannotBeMadeIsNamed) {
  Process daemon({Runfile("server/spanpoold"), "--run_dir", "/proc/nowhere"});
  EXPECT_EQ(daemon.Wait(), 1);
  EXPECT_TRUE(absl::StrContains(daemon.standard_error(), "/proc/nowhere"))
      << daemon.standard_error();
}

TEST(Errors, AnUnknownFlagIsAUsageErrorThatNamesIt) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{Runfile("server/spanpoold"), "--no_such_flag"},
        {Runfile("cli/spanpool"), "--no_such_flag", "status"}}) {
    Process process(arguments);
    EXPECT_EQ(process.Wait(), 2) << arguments[0];
    EXPECT_TRUE(absl::StrContains(process.standard_error(), "no_such_flag"))
        << process.standard_error();
  }
}

TEST(Errors, ABrokenConfigurationIsRefusedWithFileAndLine) {
  const std::string dir = TemporaryDirectory();
  const std::string path = dir + "/broken.textproto";
  for (const char* text : {"pool {\n  name: \"x\"\n  limit_bites: 5\n}\n",
                           "pool {\n  name: \"x\"\n  limit_bytes: 12\n}\n",
                           "pool {\n  name: \"x\"\n  limit_bytes: nonsense\n}\n"}) {
    std::ofstream(path) << text;
    Process daemon({Runfile("server/spanpoold"), "--config", path, "--run_dir", dir});
    EXPECT_EQ(daemon.Wait(), 1) << text;
    EXPECT_TRUE(absl::StrContains(daemon.standard_error(), path + ":3"))
        << text << daemon.standard_error();
  }
  std::filesystem::remove_all(dir);
}

TEST(Errors, SigtermDrainsRemovesTheSocketsAndExitsZero) {
  Daemon daemon;
  Actor client;
  client.Must("attach " + daemon.run_dir());
  client.Must("allocate b 1000");
  client.Must("fill b 3");
  daemon.process().Signal(SIGTERM);
  EXPECT_EQ(daemon.process().Wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(daemon.run_dir() + "/attach.sock"));
  EXPECT_FALSE(std::filesystem::exists(daemon.run_dir() + "/grpc.sock"));
  // What the client holds stays readable; what needs the daemon says so.
  client.Must("check b 3");
  EXPECT_EQ(client.Do("allocate c 50000000").status().code(), absl::StatusCode::kUnavailable);
}

TEST(Errors, SignalsThatMeanNothingWithoutAKeeperAreLoggedAndIgnored) {
  Daemon daemon;
  Actor client;
  client.Must("attach " + daemon.run_dir());
  daemon.process().Signal(SIGHUP);
  daemon.process().Signal(SIGUSR2);
  client.Must("allocate b 50000000");
  daemon.process().Signal(SIGTERM);
  EXPECT_EQ(daemon.process().Wait(), 0);
  for (const char* name : {"SIGHUP", "SIGUSR2"}) {
    EXPECT_TRUE(absl::StrContains(daemon.process().standard_error(), name)) << name;
  }
}

TEST(Errors, ADaemonStoppedForASecondIsWaitedFor) {
  Daemon daemon;
  Actor client;
  client.Must("attach " + daemon.run_dir());
  daemon.process().Signal(SIGSTOP);
  // The client is waiting inside this call when the daemon goes on, however soon that is.
  std::thread later([&] {
    absl::SleepFor(absl::Seconds(1));
    daemon.process().Signal(SIGCONT);
  });
  client.Must("allocate b 1000");
  later.join();
}

TEST(Errors, StatusAndHealthSpeakOfALiveAndADeadDaemon) {
  std::string dir;
  {
    Daemon daemon;
    dir = daemon.run_dir();
    for (const char* command : {"status", "health"}) {
      Process cli({Runfile("cli/spanpool"), "--target", dir, command});
      EXPECT_EQ(cli.Wait(), 0) << command << cli.standard_error();
    }
  }
  for (const char* command : {"status", "health"}) {
    Process cli({Runfile("cli/spanpool"), "--target", dir, command});
    EXPECT_EQ(cli.Wait(), 1) << command;
    EXPECT_TRUE(absl::StrContains(cli.standard_error(), dir)) << cli.standard_error();
  }
}

}  // namespace
}  // namespace spanpool::testing

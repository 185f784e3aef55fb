// The images and the compose file in a container engine: daemon and clients in containers of their
// own, of different users, which have nothing in common but a mounted directory of sockets.
//
// Where no engine runs one is started (deploy/engine); where none can be, the tests are skipped and
// say why. The images hold the binaries that Bazel built, put there by the stages of the
// Dockerfile.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "tests/deploy/engine.h"
#include "tests/support/actor.h"
#include "tests/support/process.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Asks until `condition` holds, at most a minute. False: it never did.
template <typename Condition>
bool Eventually(const Condition& condition) {
  const absl::Time end = absl::Now() + absl::Minutes(1);
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(100));
  }
  return true;
}

const auto* const engine = ::testing::AddGlobalTestEnvironment(new Engine);

class Containers : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Engine::WhyNone().empty()) GTEST_SKIP() << Engine::WhyNone();
    prefix_ = absl::StrCat("spanpool-test-", getpid(), "-");
    folder_ = TemporaryDirectory();
    fs::create_directory(folder_ + "/run");
    fs::permissions(folder_, fs::perms(0755));
    ASSERT_EQ(chown((folder_ + "/run").c_str(), 10001, 10001), 0);
  }
  void TearDown() override {
    if (!Engine::WhyNone().empty()) return;
    Shell("docker ps -aq --filter name=" + prefix_ + " | xargs -r docker rm -fv");
    fs::remove_all(folder_);
  }

  std::string Name(const std::string& container) const { return prefix_ + container; }

  // `docker run` of a container as an operator should run it, up to the image's name.
  std::string Run(const std::string& container, const std::string& memory) const {
    return absl::StrCat("docker run --name ", Name(container), " --memory ", memory,
                        " --memory-swap ", memory,
                        " --network none --read-only --cap-drop ALL"
                        " --security-opt no-new-privileges -v ",
                        folder_, "/run:/run/spanpool");
  }

  // A daemon of one pool which users 10002 and 10003 may use. Returns when it serves.
  void StartDaemon(const std::string& memory, uint64_t limit_bytes) {
    std::ofstream(folder_ + "/config.textproto")
        << "pool {\n  name: \"default\"\n  limit_bytes: " << limit_bytes
        << "\n  allow { uid: 10002 access: WRITE }\n  allow { uid: 10003 access: READ }\n}\n";
    Must(absl::StrCat(Run("daemon", memory), " -d -v ", folder_,
                      "/config.textproto:/config.textproto:ro spanpool:test"
                      " --config /config.textproto"));
    AwaitDaemon();
  }
  void AwaitDaemon() {
    EXPECT_TRUE(Eventually([this] { return InDaemon("spanpool health").ok(); }))
        << Shell("docker logs " + Name("daemon"));
  }

  ShellResult InDaemon(const std::string& command) const {
    return Shell(absl::StrCat("docker exec ", Name("daemon"), " ", command));
  }
  nlohmann::json PoolStatus() const {
    const ShellResult status = InDaemon("spanpool --json status");
    EXPECT_TRUE(status.ok()) << status;
    const auto json = nlohmann::json::parse(status.output, nullptr, /*allow_exceptions=*/false);
    return json.is_object() ? json["pools"][0] : nlohmann::json::object();
  }
  // Bytes that processes have, or that are shared by handles.
  uint64_t Lent() const {
    const nlohmann::json pool = PoolStatus();
    return pool.value("on_loan_bytes", uint64_t{0}) + pool.value("in_lists_bytes", uint64_t{0});
  }
  bool EventuallyEmpty() const {
    return Eventually([this] { return Lent() == 0 && PoolStatus().value("sessions", 1) == 0; });
  }

  // A client in a container of its own that acts on a test's commands.
  Actor Client(const std::string& container, int uid) const {
    // The client's own pages; those of the pool are charged to the daemon.
    const std::string command =
        absl::StrCat(Run(container, "128m"), " -i --user ", uid, " -v ",
                     fs::canonical(Runfile("tests/support/actor_main")).string(),
                     ":/usr/bin/actor:ro --entrypoint actor spanpool-example:test");
    return Actor(Process({"/bin/sh", "-c", "exec " + command}));
  }

  // What the container's memory cgroup is charged with.
  uint64_t Charged(const std::string& container) const {
    uint64_t bytes = 0;
    EXPECT_TRUE(absl::SimpleAtoi(
        Must(absl::StrCat("docker exec ", Name(container), " sh -c 'cat ",
                          "/sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null || cat ",
                          "/sys/fs/cgroup/memory.current'")),
        &bytes));
    return bytes;
  }
  // "true" if the kernel killed a process of the container for its memory.
  std::string OutOfMemory(const std::string& container) const {
    return Must("docker inspect --format '{{.State.OOMKilled}}' " + Name(container));
  }

  void FillDevShm(const std::string& container) const {
    // dd writes until there is no space left; what is free then is less than a page.
    EXPECT_EQ(Must(absl::StrCat("docker exec ", Name(container),
                                " sh -c 'dd if=/dev/zero of=/dev/shm/full bs=64k 2>/dev/null;",
                                " df -k --output=size,avail /dev/shm | tail -n 1 | xargs'")),
              "65536 0")
        << container;
  }

  std::string folder_;

 private:
  std::string prefix_;
};

TEST_F(Containers, TheImagesRunAsUsersAndReportTheirHealth) {
  const auto config = [](const std::string& image) {
    return nlohmann::json::parse(Must("docker image inspect --format '{{json .Config}}' " + image));
  };
  const nlohmann::json daemon = config("spanpool:test");
  EXPECT_EQ(daemon["User"], "10001");
  EXPECT_EQ(daemon["Healthcheck"]["Test"], nlohmann::json({"CMD", "spanpool", "health"}));
  EXPECT_EQ(config("spanpool-example:test")["User"], "10002");
}

TEST_F(Containers, TheDaemonNeedsNoPrivilegeAndNothingToWrite) {
  StartDaemon("256m", 64 * kMiB);
  const std::string status = Must("docker exec " + Name("daemon") + " cat /proc/1/status");
  EXPECT_TRUE(absl::StrContains(status, "Uid:\t10001\t10001\t10001\t10001\n")) << status;
  for (const char* set : {"CapPrm", "CapEff", "CapBnd"}) {
    EXPECT_TRUE(absl::StrContains(status, absl::StrCat(set, ":\t0000000000000000\n"))) << status;
  }
  EXPECT_TRUE(absl::StrContains(status, "NoNewPrivs:\t1\n")) << status;
  EXPECT_TRUE(absl::StrContains(status, "Seccomp:\t2\n")) << status;
  EXPECT_FALSE(InDaemon("touch /run/x /var/x /tmp/x").ok());
  // SIGTERM is how engines stop a container.
  EXPECT_EQ(Must("docker stop -t 30 " + Name("daemon") + " && docker wait " + Name("daemon")),
            Name("daemon") + "\n0");
}

TEST_F(Containers, HealthFailsWhereNoDaemonServes) {
  const ShellResult health =
      Shell(Run("health", "64m") + " --entrypoint spanpool spanpool:test health");
  EXPECT_EQ(health.exit, 1) << health;
}

TEST_F(Containers, UsersShareAGibibyteThroughAMountedDirectoryWhateverDevShmHolds) {
  constexpr int kBuffers = 64;
  StartDaemon("1536m", 1280 * kMiB);
  Actor sender = Client("sender", 10002);
  Actor receiver = Client("receiver", 10003);
  sender.Must("attach /run/spanpool");
  receiver.Must("attach /run/spanpool default read");
  for (const char* container : {"daemon", "sender", "receiver"}) FillDevShm(container);

  std::vector<std::string> handles;
  for (int i = 0; i < kBuffers; ++i) {
    sender.Must(absl::StrCat("allocate b", i, " ", 16 * kMiB));
    sender.Must(absl::StrCat("fill b", i, " ", i));
    handles.push_back(sender.Must(absl::StrCat("share b", i)));
  }
  for (int i = 0; i < kBuffers; ++i) {
    EXPECT_EQ(receiver.Must(absl::StrCat("open b", i, " ", handles[i])), absl::StrCat(16 * kMiB));
  }
  for (int i = 0; i < kBuffers; ++i) receiver.Must(absl::StrCat("check b", i, " ", i));
  EXPECT_GE(Lent(), 1024 * kMiB);
  EXPECT_GE(Charged("daemon"), 1024 * kMiB);

  // The kernel ends the sender's container; what the receiver holds stays, to the last byte.
  Must("docker kill --signal KILL " + Name("sender"));
  EXPECT_TRUE(Eventually([this] { return PoolStatus().value("sessions_reaped_total", 0) == 1; }));
  for (int i = 0; i < kBuffers; ++i) receiver.Must(absl::StrCat("check b", i, " ", i));
  EXPECT_GE(Lent(), 1024 * kMiB);

  // And with the last holder killed all of it can be lent again.
  Must("docker kill --signal KILL " + Name("receiver"));
  EXPECT_TRUE(EventuallyEmpty()) << PoolStatus();
  Actor next = Client("next", 10002);
  next.Must("attach /run/spanpool");
  for (int i = 0; i < kBuffers; ++i) {
    next.Must(absl::StrCat("allocate b", i, " ", 16 * kMiB));
    next.Must(absl::StrCat("fill b", i, " ", i));
  }
  for (const char* container : {"daemon", "sender", "receiver", "next"}) {
    EXPECT_EQ(OutOfMemory(container), "false") << container;
  }
}

TEST_F(Containers, ADaemonAtItsContainersLimitRefusesAndLives) {
  // The pool may lend more than the container has.
  StartDaemon("256m", 2048 * kMiB);
  Actor client = Client("client", 10002);
  client.Must("attach /run/spanpool");
  for (const uint64_t bytes : {4 * kMiB, uint64_t{60000}}) {
    SCOPED_TRACE(bytes);
    absl::Status refused;
    uint64_t allocated = 0;
    int buffers = 0;
    while (refused.ok() && allocated < 256 * kMiB) {
      // The second size has to wait for what the first left in the client's own cache.
      refused = client.Do(absl::StrCat("allocate b", buffers, " ", bytes, " 64 2000")).status();
      if (!refused.ok()) break;
      client.Must(absl::StrCat("fill b", buffers++, " 1"));
      allocated += bytes;
    }
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
    EXPECT_GE(allocated, 128 * kMiB);
    // Nothing that was lent is taken back or overwritten for want of memory.
    for (int i = 0; i < buffers; ++i) client.Must(absl::StrCat("check b", i, " 1"));
    for (int i = 0; i < buffers; ++i) client.Must(absl::StrCat("drop b", i));
  }
  EXPECT_EQ(
      Must("docker inspect --format '{{.State.Running}} {{.RestartCount}}' " + Name("daemon")),
      "true 0");
  EXPECT_TRUE(InDaemon("spanpool health").ok());
  EXPECT_EQ(OutOfMemory("daemon"), "false");
  EXPECT_EQ(OutOfMemory("client"), "false");
}

TEST_F(Containers, ADaemonsNextContainerIsFoundInTheSameDirectory) {
  StartDaemon("256m", 128 * kMiB);
  Actor client = Client("client", 10002);
  client.Must("attach /run/spanpool");
  client.Must("allocate b 1000000");
  client.Must("fill b 5");
  const std::string old = client.Must("share b");
  // Its sockets stay behind, as after a crash of the machine's.
  Must("docker kill --signal KILL " + Name("daemon"));
  client.Must("check b 5");
  Must("docker start " + Name("daemon"));
  AwaitDaemon();
  Actor another = Client("another", 10003);
  another.Must("attach /run/spanpool default read");
  EXPECT_FALSE(another.Do("open b " + old).ok());
  client.Must("check b 5");
}

TEST_F(Containers, ComposeBringsUpADaemonAndTwoUsersThatShare) {
  const std::string compose =
      absl::StrCat("docker-compose -p ", Name("compose"), " -f ", Runfile("deploy/compose.yaml"));
  const ShellResult up = Shell(compose + " up --no-build --no-color --exit-code-from receiver");
  EXPECT_TRUE(up.ok()) << up;
  EXPECT_TRUE(absl::StrContains(up.output, "sent 1000 buffers")) << up;
  EXPECT_TRUE(absl::StrContains(up.output, "every byte as sent, as user 10003")) << up;
  const ShellResult down = Shell(compose + " down -v");
  EXPECT_TRUE(down.ok()) << down;
}

// docker-compose 1.29 reads a file without a version by the same Compose Specification as the
// plugin does; where the plugin is installed it is asked too.
TEST_F(Containers, TheComposeFileIsValidForBothComposes) {
  const std::string arguments = absl::StrCat(" -f ", Runfile("deploy/compose.yaml"), " config -q");
  EXPECT_TRUE(Shell("docker-compose" + arguments).ok()) << Shell("docker-compose" + arguments);
  if (Shell("docker compose version").ok()) {
    const ShellResult plugin = Shell("docker compose" + arguments);
    EXPECT_TRUE(plugin.ok()) << plugin;
    EXPECT_EQ(plugin.output, "");
  }
}

}  // namespace
}  // namespace spanpool::testing

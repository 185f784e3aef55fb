// Runs the real commands against a real daemon.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "spanpool/spanpool.h"

namespace spanpool::cli {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

struct Ran {
  int exit = -1;
  std::string text;  // both streams
};

Ran RunCommand(const std::string& arguments) {
  Ran ran;
  FILE* pipe = popen(("cli/spanpool " + arguments + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) ran.text += buffer.data();
  ran.exit = WEXITSTATUS(pclose(pipe));
  return ran;
}

class CliTest : public testing::Test {
 protected:
  // Starts a daemon in a run directory of its own and waits until it serves.
  CliTest() {
    char name[] = "/tmp/spanpool-cli-XXXXXX";
    EXPECT_NE(mkdtemp(name), nullptr);
    run_dir_ = name;
    int out[2];
    EXPECT_EQ(pipe(out), 0);
    daemon_ = fork();
    if (daemon_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      execl("server/spanpoold", "spanpoold", "--limit=64MiB", "--fd_store=none", "--run_dir", name,
            nullptr);
      _exit(127);
    }
    close(out[1]);
    std::array<char, 6> ready{};
    EXPECT_EQ(read(out[0], ready.data(), ready.size()), 6);
    close(out[0]);
  }
  ~CliTest() override {
    if (daemon_ > 0) Stop(SIGKILL);
    std::filesystem::remove_all(run_dir_);
  }
  void Stop(int signal_number) {
    kill(daemon_, signal_number);
    waitpid(daemon_, nullptr, 0);
    daemon_ = -1;
  }
  std::string Target() const { return "--target=" + run_dir_ + " "; }

  std::string run_dir_;
  pid_t daemon_ = -1;
};

TEST_F(CliTest, StatusIsATableWithTheDaemonAndItsPool) {
  const Ran ran = RunCommand(Target() + "status");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  EXPECT_THAT(ran.text, HasSubstr("pid " + std::to_string(daemon_)));
  EXPECT_THAT(ran.text, HasSubstr("\ndefault  64.0 MiB"));
}

TEST_F(CliTest, StatusAsJsonHasTheNamesOfTheProtocol) {
  const Ran ran = RunCommand(Target() + "--json status");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  const auto json = nlohmann::json::parse(ran.text);
  EXPECT_EQ(json["pid"], daemon_);
  EXPECT_EQ(json["pools"][0]["name"], "default");
  EXPECT_EQ(json["pools"][0]["limit_bytes"], 64 << 20);
  EXPECT_EQ(json["pools"][0]["on_loan_bytes"], 0);
}

TEST_F(CliTest, TrimGivesTheReserveWhatIsItsAndSaysWhatItDid) {
  Ran ran = RunCommand(Target() + "trim");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  EXPECT_THAT(ran.text, HasSubstr("POOL     RECALLED  RELEASED  STILL FREE  ASKED  ANSWERED"));
  EXPECT_THAT(ran.text, HasSubstr("\ndefault       0 B "));
  ran = RunCommand(Target() + "trim --wait_ms 5 --json --pool default");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  const auto json = nlohmann::json::parse(ran.text);
  EXPECT_EQ(json["pools"][0]["name"], "default");
  EXPECT_EQ(json["pools"][0]["recalled_bytes"], 0);
  EXPECT_EQ(json["pools"][0]["sessions_asked"], 0);
  EXPECT_TRUE(json["pools"][0]["silent"].empty());
  ran = RunCommand(Target() + "--pool nope trim");
  EXPECT_EQ(ran.exit, 1);
  EXPECT_EQ(ran.text, "spanpool: there is no pool \"nope\"\n");
}

TEST_F(CliTest, NamesAreListedAndRemoved) {
  Ran ran = RunCommand(Target() + "names");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  EXPECT_EQ(ran.text, "NAME  POOL  SESSION  PID  UID  GOES WITH IT  BLOCK\n");
  auto session = Session::Attach({.target = run_dir_});
  ASSERT_TRUE(session.ok()) << session.status();
  auto buffer = (*session)->Allocate(100);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  ASSERT_TRUE((*session)->Publish("camera/0", *buffer).ok());
  ASSERT_TRUE((*session)->Publish("model", *buffer, {.outlive_session = true}).ok());
  ran = RunCommand(Target() + "names");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  EXPECT_THAT(ran.text, HasSubstr("\ncamera/0  default "));
  EXPECT_THAT(ran.text, HasSubstr("\nmodel     default "));
  ran = RunCommand(Target() + "--json names cam");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  const auto json = nlohmann::json::parse(ran.text);
  ASSERT_EQ(json["pools"][0]["names"].size(), 1u);
  EXPECT_EQ(json["pools"][0]["names"][0]["name"], "camera/0");
  EXPECT_EQ(json["pools"][0]["names"][0]["block"], buffer->Share()->ToString());
  EXPECT_EQ(json["pools"][0]["names"][0]["outlives_session"], false);
  EXPECT_EQ(json["pools"][0]["names"][0]["pid"], getpid());
  ran = RunCommand(Target() + "rm model");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  EXPECT_EQ(ran.text, "");
  ran = RunCommand(Target() + "rm model");
  EXPECT_EQ(ran.exit, 1);
  EXPECT_EQ(ran.text, "spanpool: nothing is published under \"model\"\n");
  EXPECT_EQ(RunCommand(Target() + "--pool nope rm model").exit, 1);
  EXPECT_EQ(RunCommand(Target() + "--pool nope names").exit, 1);
}

TEST_F(CliTest, OptionsMayStandAfterTheCommand) {
  const Ran ran = RunCommand("health --json " + Target());
  EXPECT_EQ(ran.exit, 0) << ran.text;
  EXPECT_EQ(ran.text, "{\"status\":\"SERVING\"}\n");
}

TEST_F(CliTest, HealthIsServingWhileTheDaemonRunsAndAnErrorAfter) {
  Ran ran = RunCommand(Target() + "health");
  EXPECT_EQ(ran.exit, 0);
  EXPECT_EQ(ran.text, "SERVING\n");
  Stop(SIGTERM);
  ran = RunCommand(Target() + "health");
  EXPECT_EQ(ran.exit, 1);
  EXPECT_THAT(ran.text, HasSubstr("start one with `spanpoold --run_dir " + run_dir_));
}

TEST_F(CliTest, HealthOfAPoolIsTheDaemonsAndThatOfNoPoolAnError) {
  Ran ran = RunCommand(Target() + "--pool default health");
  EXPECT_EQ(ran.exit, 0) << ran.text;
  EXPECT_EQ(ran.text, "SERVING\n");
  ran = RunCommand(Target() + "--pool nope health");
  EXPECT_EQ(ran.exit, 1);
  EXPECT_EQ(ran.text, "spanpool: there is no pool \"nope\"\n");
}

TEST_F(CliTest, AKilledDaemonIsToldFromOneThatNeverWas) {
  Stop(SIGKILL);
  const Ran ran = RunCommand(Target() + "status");
  EXPECT_EQ(ran.exit, 1);
  EXPECT_THAT(ran.text, HasSubstr("does not answer"));
  EXPECT_THAT(ran.text, MatchesRegex("spanpool: [^\n]*\n")) << "one line";
}

TEST_F(CliTest, APoolThatIsNotThereIsAnError) {
  const Ran ran = RunCommand(Target() + "--pool nope status");
  EXPECT_EQ(ran.exit, 1);
  EXPECT_EQ(ran.text, "spanpool: there is no pool \"nope\"\n");
}

TEST_F(CliTest, TheEnvironmentNamesTheTarget) {
  setenv("SPANPOOL_TARGET", run_dir_.c_str(), 1);
  EXPECT_EQ(RunCommand("health").exit, 0);
  unsetenv("SPANPOOL_TARGET");
  setenv("SPANPOOL_RUN_DIR", run_dir_.c_str(), 1);
  EXPECT_EQ(RunCommand("health").exit, 0);
  unsetenv("SPANPOOL_RUN_DIR");
}

TEST(Cli, WrongUsageIsTwoWithOneLine) {
  for (const char* arguments : {"", "nonsense", "--nonsense status", "status extra", "--target",
                                "rm", "trim --wait_ms 60001"}) {
    const Ran ran = RunCommand(arguments);
    EXPECT_EQ(ran.exit, 2) << arguments << ": " << ran.text;
    EXPECT_THAT(ran.text, MatchesRegex("spanpool: [^\n]*see --help\n")) << arguments;
  }
}

TEST(Cli, HelpIsNoError) {
  const Ran ran = RunCommand("--help");
  EXPECT_EQ(ran.exit, 0);
  EXPECT_THAT(ran.text, HasSubstr("status"));
}

TEST(Cli, ATargetOnTheNetworkIsRefusedClearly) {
  const Ran ran = RunCommand("--target=example.com:8717 status");
  EXPECT_EQ(ran.exit, 1);
  EXPECT_THAT(ran.text, HasSubstr("example.com:8717"));
}

TEST(RenderStatus, ThePoolsOfADaemonAreRows) {
  v1::GetStatusResponse response;
  response.set_version("1.2.3");
  response.set_pid(7);
  response.set_uptime_seconds(61);
  response.add_pools()->set_name("a");
  response.add_pools()->set_name("bbbb");
  response.mutable_pools(1)->set_on_loan_bytes(1536);
  const std::string text = RenderStatus(response, {.run_dir = "/r"});
  EXPECT_THAT(text, HasSubstr("spanpoold 1.2.3, pid 7, up 1m 1s, /r, not restart-safe\n"));
  response.set_restart_safe(true);
  EXPECT_THAT(RenderStatus(response, {.run_dir = "/r"}), HasSubstr("/r, restart-safe\n"));
  EXPECT_THAT(text, HasSubstr("\na "));
  EXPECT_THAT(text, HasSubstr("\nbbbb    0 B  1.5 KiB"));
}

TEST(RenderTrim, ASessionThatDidNotAnswerIsNamedBelowTheTable) {
  v1::TrimResponse response;
  v1::PoolTrim* const pool = response.add_pools();
  pool->set_name("a");
  pool->set_recalled_bytes(1536);
  pool->set_sessions_asked(2);
  pool->set_sessions_answered(1);
  pool->set_slowest_answer_ms(1.25);
  v1::SilentSession* const silent = pool->add_silent();
  silent->set_session(3);
  silent->set_pid(44);
  silent->set_on_loan_bytes(8192);
  const std::string text = RenderTrim(response, {});
  EXPECT_THAT(text,
              HasSubstr("\na      1.5 KiB       0 B         0 B      2         1   1.2 ms\n"));
  EXPECT_THAT(text, HasSubstr("\npool a: session 3 (pid 44, uid 0) did not answer and holds 8.0 "
                              "KiB; is its process stopped?\n"));
}

}  // namespace
}  // namespace spanpool::cli

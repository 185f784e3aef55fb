// The daemon under systemd itself, with the settings of the package's unit: an instance of systemd
// for the test alone, in namespaces of its own, keeps what the next process is given.

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/process.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

// Everything of the unit that is about restarts. Users and protections are another test's, and need
// the system's own instance.
constexpr char kSettings[] =
    "^(Type|NotifyAccess|FileDescriptorStoreMax|Environment|Restart|RestartSec|RestartKillSignal|"
    "SuccessExitStatus|StartLimitIntervalSec|TimeoutStopSec)=|^\\[(Unit|Service)\\]";

TEST(RestartUnderSystemd, TheNextProcessHasWhatTheOneBeforeHadKept) {
  if (!Shell("unshare -m -p -f --mount-proc mount -t tmpfs tmpfs /run && "
             "test -x /lib/systemd/systemd && command -v systemctl")
           .ok()) {
    GTEST_SKIP() << "no systemd here, or no right to namespaces of the test's own";
  }
  const std::string folder = TemporaryDirectory();
  const ShellResult made = Shell(absl::StrCat(
      "{ grep -E '", kSettings, "' ", Runfile("deploy/systemd/spanpoold.service"),
      "; echo 'ExecStart=", Runfile("server/spanpoold"),
      " --fd_store=systemd --run_dir /run/spanpool --limit 64MiB'; } > ", folder, "/unit"));
  ASSERT_TRUE(made.ok()) << made;
  // All of it ends with the first process of the namespace.
  const ShellResult ran = Shell(absl::StrCat(
      "UNIT=", folder, "/unit SPANPOOL=", Runfile("cli/spanpool"),
      " unshare -m -p -f --kill-child --mount-proc bash ", Runfile("tests/restart_systemd.sh")));
  EXPECT_TRUE(ran.ok()) << ran;
  EXPECT_EQ(ran.output,
            "started: active more \"restart_safe\": true\n"
            "killed: active more \"restart_safe\": true\n"
            "restarted: active more \"restart_safe\": true\n"
            "ended: active more \"restart_safe\": true\n"
            "stopped: inactive 0, lock\n");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace spanpool::testing

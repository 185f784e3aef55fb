// The Debian packages, and the systemd unit that is in them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/process.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

// Made once, and unpacked into one tree.
class Packages : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new std::string(TemporaryDirectory());
    const ShellResult made = Shell(absl::StrCat(
        "cd ", Runfile(""), " && deploy/debian/build.sh . ", *folder_, " && for package in ",
        *folder_, "/*.deb; do dpkg-deb -x $package ", root(), "; done"));
    ASSERT_TRUE(made.ok()) << made;
  }
  static void TearDownTestSuite() {
    fs::remove_all(*folder_);
    delete folder_;
  }

  static std::string root() { return *folder_ + "/root"; }
  static std::string unit() { return root() + "/lib/systemd/system/spanpoold.service"; }
  static const std::string& folder() { return *folder_; }

 private:
  static std::string* folder_;
};

std::string* Packages::folder_;

TEST_F(Packages, LintianFindsNoError) {
  const ShellResult lintian = Shell("lintian --fail-on error " + folder() + "/*.deb");
  EXPECT_TRUE(lintian.ok()) << lintian;
}

TEST_F(Packages, SystemdUnderstandsTheUnit) {
  // With the path of the program as it is here; unknown settings are told of, and no error.
  const ShellResult verified = Shell(absl::StrCat(
      "sed 's#=/usr/bin/#=", root(), "/usr/bin/#' ", unit(), " > ", folder(),
      "/spanpoold.service && systemd-analyze verify --man=no ", folder(), "/spanpoold.service"));
  EXPECT_TRUE(verified.ok()) << verified;
  EXPECT_EQ(verified.output, "");
  EXPECT_TRUE(fs::exists(root() + "/usr/share/man/man8/spanpoold.8.gz"));
}

TEST_F(Packages, TheUnitHasSystemdKeepWhatTheNextProcessNeeds) {
  std::ostringstream text;
  text << std::ifstream(unit()).rdbuf();
  for (const char* line : {"ExecStart=/usr/bin/spanpoold --fd_store=systemd ", "Type=notify\n",
                           "NotifyAccess=main\n", "Restart=always\n", "StartLimitIntervalSec=0\n",
                           "RestartKillSignal=SIGUSR2\n", "SuccessExitStatus=3\n",
                           // The daemon is told how many it may have kept.
                           "FileDescriptorStoreMax=16384\n", "Environment=FDSTORE=16384\n"}) {
    EXPECT_THAT(text.str(), HasSubstr(std::string("\n") + line));
  }
}

TEST_F(Packages, TheUnitIsExposedAtMost3_0) {
  // In tenths; 10.0 is a service without any protection.
  const ShellResult security =
      Shell("systemd-analyze security --no-pager --offline=yes --threshold=30 " + unit());
  EXPECT_TRUE(security.ok()) << security;
  EXPECT_THAT(security.output, HasSubstr("Overall exposure level for spanpoold.service"));
}

TEST_F(Packages, TheDaemonsUserAndItsDirectoryAreMade) {
  const ShellResult made =
      Shell(absl::StrCat("systemd-sysusers --root=", root(), " && systemd-tmpfiles --root=", root(),
                         " --create spanpool.conf"));
  EXPECT_TRUE(made.ok()) << made;
  std::ostringstream users;
  users << std::ifstream(root() + "/etc/passwd").rdbuf();
  EXPECT_THAT(users.str(), HasSubstr("spanpool:x:"));
  struct stat directory;
  ASSERT_EQ(stat((root() + "/run/spanpool").c_str(), &directory), 0);
  EXPECT_EQ(directory.st_mode & 07777, 0755u);
  EXPECT_THAT(users.str(), HasSubstr(absl::StrCat("spanpool:x:", directory.st_uid, ":",
                                                  directory.st_gid, ":spanpool daemon:")));
}

TEST_F(Packages, AnUpgradeLeavesTheDaemonRunning) {
  const ShellResult scripts =
      Shell(absl::StrCat("dpkg-deb -e ", folder(), "/spanpool_*.deb ", folder(), "/control && cat ",
                         folder(), "/control/postinst ", folder(), "/control/prerm"));
  ASSERT_TRUE(scripts.ok()) << scripts;
  // To start what runs is nothing; and it is stopped when the package goes, and only then.
  EXPECT_THAT(scripts.output, HasSubstr("deb-systemd-invoke start 'spanpoold.service'"));
  EXPECT_THAT(scripts.output, Not(HasSubstr("restart")));
  EXPECT_THAT(scripts.output, HasSubstr("\"$1\" = remove"));
}

TEST_F(Packages, TheConfigurationIsTakenAsItIs) {
  fs::create_directory(folder() + "/run");
  const std::string config = folder() + "/config.textproto";
  // Its directory is the system's.
  ASSERT_TRUE(Shell(absl::StrCat("sed 's#/run/spanpool#", folder(), "/run#' ", root(),
                                 "/etc/spanpool/spanpoold.textproto > ", config))
                  .ok());
  Process daemon({root() + "/usr/bin/spanpoold", "--config", config, "--fd_store=none"});
  EXPECT_EQ(daemon.ReadLine(), "READY") << daemon.standard_error();
}

}  // namespace
}  // namespace spanpool::testing

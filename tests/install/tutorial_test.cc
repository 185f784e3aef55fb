// docs/tutorial.md, as a newcomer follows it: every command is run, and what it says will be
// printed is compared with what is.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/support/document.h"
#include "tests/support/process.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

TEST(Tutorial, DoesWhatItSays) {
  const std::string page = Runfile("docs/tutorial.md");
  // Whatever happens, nothing stays running.
  std::string script = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n";
  for (const std::string& block : Blocks(page, "sh")) {
    // All was built already: the rest of what `./dev install` does.
    absl::StrAppend(&script,
                    absl::StrReplaceAll(block, {{"./dev install", "deploy/install/install.sh ."}}));
  }
  ASSERT_THAT(script, ::testing::HasSubstr("install.sh . \"$HOME/spanpool\""));
  const std::string home = TemporaryDirectory();
  std::ofstream(home + "/tutorial.sh") << script;

  const ShellResult ran = Shell(absl::StrCat("cd ", Runfile(""), " && HOME=", home,
                                             " timeout 300 bash -eu ", home, "/tutorial.sh"));
  EXPECT_TRUE(ran.ok()) << ran;

  const std::vector<std::string> printed = Blocks(page, "text");
  EXPECT_FALSE(printed.empty());
  for (const std::string& text : printed) EXPECT_THAT(ran.output, ::testing::HasSubstr(text));
  std::filesystem::remove_all(home);
}

}  // namespace
}  // namespace spanpool::testing

// The commands of the examples' READMEs, run as they stand there.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/support/daemon.h"
#include "tests/support/document.h"
#include "tests/support/process.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

struct Readme {
  std::string folder;
  std::vector<std::string> prints;
};

void PrintTo(const Readme& readme, std::ostream* out) { *out << readme.folder; }

class ExampleReadmes : public ::testing::TestWithParam<Readme> {};

TEST_P(ExampleReadmes, DoesWhatItSays) {
  Daemon daemon;
  const std::string home = TemporaryDirectory();
  fs::create_directory_symlink(Runfile(""), home + "/bazel-bin");
  std::ofstream(home + "/README.md") << "a text with some words in a text\n";
  // Whatever happens, nothing stays running.
  std::string script = "trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\n";
  for (const std::string& block :
       Blocks(Runfile(absl::StrCat("examples/", GetParam().folder, "/README.md")), "sh")) {
    absl::StrAppend(&script, absl::StrReplaceAll(block, {{"/tmp/", home + "/"}}));
  }
  ASSERT_THAT(script, HasSubstr("bazel-bin/examples/" + GetParam().folder));
  std::ofstream(home + "/readme.sh") << script;
  const ShellResult ran = Shell(absl::StrCat("cd ", home, " && SPANPOOL_TARGET=", daemon.run_dir(),
                                             " timeout 100 bash -eu readme.sh"));
  EXPECT_TRUE(ran.ok()) << ran;
  for (const std::string& text : GetParam().prints) EXPECT_THAT(ran.output, HasSubstr(text));
  if (GetParam().folder == "pipeline") {
    EXPECT_EQ(fs::file_size(home + "/frames.pgm"), 250 * (15 + 640 * 480));
  }
  fs::remove_all(home);
}

INSTANTIATE_TEST_SUITE_P(
    Each, ExampleReadmes,
    ::testing::Values(Readme{"hello", {"\nhello\n"}}, Readme{"pipeline", {}},
                      Readme{"pmr", {"2 text", "KiB on loan"}},
                      Readme{"dictionary", {"span: a run of pages", "heap: ?"}},
                      Readme{"workers", {"5000 jobs done"}},
                      Readme{"grpc", {"mean 2, by handle", "mean 2, as bytes"}},
                      Readme{"handover", {"sent 1000 buffers", "received 1000 buffers"}}),
    [](const auto& test) { return test.param.folder; });

}  // namespace
}  // namespace spanpool::testing

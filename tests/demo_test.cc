// The demo as a user runs it, on files of every awkward size.

#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

struct Result {
  int code;
  std::string output;
  std::string error;
};

Result RunDemo(const std::vector<std::string>& files) {
  std::vector<std::string> arguments = {Runfile("examples/files/files_demo"), "--spanpoold",
                                        Runfile("server/spanpoold"), "--spanpool",
                                        Runfile("cli/spanpool")};
  arguments.insert(arguments.end(), files.begin(), files.end());
  Process demo(arguments);
  std::string output;
  while (const std::optional<std::string> line = demo.ReadLine()) output += *line + "\n";
  const int code = demo.Wait();
  return {code, output, demo.standard_error()};
}

TEST(Demo, FilesOfEveryAwkwardSizeArriveWhole) {
  const std::string dir = TemporaryDirectory();
  std::mt19937_64 random(7);
  std::vector<std::string> files;
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{4096}, size_t{1000003},
                       size_t{20} << 20}) {
    files.push_back(dir + "/" + std::to_string(bytes));
    std::ofstream file(files.back(), std::ios::binary);
    for (size_t i = 0; i < bytes; ++i) file.put(static_cast<char>(random()));
  }
  const Result result = RunDemo(files);
  EXPECT_EQ(result.code, 0) << result.output << result.error;
  EXPECT_NE(result.output.find("hashes equal: 7, different: 0"), std::string::npos)
      << result.output;
  std::filesystem::remove_all(dir);
}

TEST(Demo, AnInterruptEndsItsProcessesAndLeavesNothing) {
  const auto leftovers = [] {
    std::set<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator("/tmp")) {
      const std::string name = entry.path().filename();
      if (name.starts_with("spanpool-demo-")) found.insert(name);
    }
    return found;
  };
  const std::string dir = TemporaryDirectory();
  const std::string file = dir + "/sparse";
  std::ofstream(file).close();
  std::filesystem::resize_file(file, uint64_t{64} << 30);  // more than is read in any patience
  const std::set<std::string> before = leftovers();
  Process demo({Runfile("examples/files/files_demo"), "--spanpoold", Runfile("server/spanpoold"),
                "--spanpool", Runfile("cli/spanpool"), file});
  while (leftovers() == before) std::this_thread::yield();
  demo.Signal(SIGTERM);
  EXPECT_EQ(demo.Wait(), 130);
  EXPECT_EQ(leftovers(), before);
  std::filesystem::remove_all(dir);
}

TEST(Demo, AMissingFileIsNamed) {
  const Result result = RunDemo({"/no/such/file"});
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.error.find("/no/such/file"), std::string::npos) << result.error;
}

}  // namespace
}  // namespace spanpool::testing

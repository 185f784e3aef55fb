#include "tests/deploy/engine.h"

#include <cstdlib>
#include <optional>

#include "absl/strings/ascii.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

std::string* MutableWhyNone() {
  static auto* const why = new std::string;
  return why;
}

}  // namespace

const std::string& Engine::WhyNone() { return *MutableWhyNone(); }

void Engine::SetUp() {
  hold_ = std::make_unique<Process>(std::vector<std::string>{Runfile("deploy/engine"), "hold"});
  std::optional<std::string> host;
  // Each waits a minute: another engine may have to end first.
  for (int minutes = 0; minutes < 10 && !host.has_value(); ++minutes) host = hold_->ReadLine();
  if (!host.has_value()) {
    const int exit = hold_->Wait();
    *MutableWhyNone() = "no engine: " + hold_->standard_error();
    ASSERT_EQ(exit, 3) << WhyNone();
    return;
  }
  setenv("DOCKER_HOST", host->c_str(), 1);
  setenv("SPANPOOL_TAG", "test", 1);
  const ShellResult images = Shell("cd " + Runfile("") + " && deploy/image.sh .");
  ASSERT_TRUE(images.ok()) << images;
}

void Engine::TearDown() {
  // The engine of our own ends with its input.
  hold_->CloseInput();
  hold_->Wait();
}

std::string Must(const std::string& command) {
  const ShellResult result = Shell(command);
  EXPECT_TRUE(result.ok()) << command << ": " << result;
  return std::string(absl::StripTrailingAsciiWhitespace(result.output));
}

}  // namespace spanpool::testing

// Memory that a peak needed goes back to the machine.

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"

namespace spanpool::testing {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// What fstat says the data of the pool's arenas takes.
uint64_t ArenaFileBytes(pid_t daemon) {
  uint64_t bytes = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(absl::StrCat("/proc/", daemon, "/fd"))) {
    std::error_code gone;
    const std::string name = std::filesystem::read_symlink(entry.path(), gone).string();
    struct stat info;
    if (gone || !absl::StartsWith(name, "/memfd:") || !absl::StrContains(name, ".data") ||
        stat(entry.path().c_str(), &info) != 0) {
      continue;
    }
    bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

TEST(Scavenge, AfterAPeakThatIsFreedTheFilesKeepATenthOfIt) {
  Daemon daemon({.config = "", .flags = {"--limit", absl::StrCat(1200 * kMiB)}});
  {
    Actor client;
    client.Must("attach " + daemon.run_dir());
    for (int i = 0; i < 16; ++i) client.Must(absl::StrCat("allocate b", i, " ", 64 * kMiB));
    EXPECT_GE(ArenaFileBytes(daemon.process().pid()), 1024 * kMiB);
    for (int i = 0; i < 16; ++i) client.Must(absl::StrCat("drop b", i));
  }
  ASSERT_TRUE(daemon.EventuallyEmpty());
  // A run of 2 MiB that is not whole may stay above and below.
  const uint64_t kept = 1024 * kMiB / 10 + 4 * kMiB;
  EXPECT_TRUE(daemon.Eventually([&](const v1::PoolStatus&) {
    return ArenaFileBytes(daemon.process().pid()) <= kept;
  })) << ArenaFileBytes(daemon.process().pid());
}

}  // namespace
}  // namespace spanpool::testing

// Huge pages go back to the kernel however the process that reserved them ends.

#include "bench/handoff/huge_pages.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/support/huge_pages.h"

namespace spanpool::bench {
namespace {

TEST(HugePages, AreGivenBack) {
  const uint64_t before = testing::HugePages::Free();
  {
    const absl::StatusOr<std::unique_ptr<HugePages>> pages = HugePages::Reserve(1);
    if (!pages.ok()) GTEST_SKIP() << pages.status();
    EXPECT_EQ(testing::HugePages::Free(), before + 1);
  }
  EXPECT_EQ(testing::HugePages::Free(), before);
}

TEST(HugePages, AreGivenBackWhenTheProcessIsKilled) {
  const uint64_t before = testing::HugePages::Free();
  const pid_t suite = fork();
  ASSERT_GE(suite, 0);
  if (suite == 0) {
    const auto pages = HugePages::Reserve(1);
    if (!pages.ok()) _exit(0);
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(suite, &status, 0), suite);
  if (WIFEXITED(status)) GTEST_SKIP() << "huge pages cannot be reserved here";
  // The test's timeout ends this if they never are.
  while (testing::HugePages::Free() != before) absl::SleepFor(absl::Milliseconds(1));
}

}  // namespace
}  // namespace spanpool::bench

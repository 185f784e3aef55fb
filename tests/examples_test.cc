// The examples, as a user runs them.

#include <gtest/gtest.h>

#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

TEST(Examples, HelloSharesABlockWithItself) {
  Daemon daemon;
  Process hello({Runfile("examples/hello/hello")},
                {.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}});
  const auto handle = hello.ReadLine();
  ASSERT_TRUE(handle.has_value()) << hello.standard_error();
  EXPECT_EQ(handle->size(), 32u);
  EXPECT_EQ(hello.ReadLine(), "hello");
  EXPECT_EQ(hello.Wait(), 0);
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

}  // namespace
}  // namespace spanpool::testing

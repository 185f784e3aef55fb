// The examples, as a user runs them.

#include <gtest/gtest.h>

#include <string>

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

TEST(Examples, HandoverPassesEveryByteFromOneProcessToAnother) {
  Daemon daemon;
  const Process::Options options = {.uid = 0,
                                    .environment = {{"SPANPOOL_TARGET", daemon.run_dir()}}};
  const std::string program = Runfile("examples/handover/handover");
  const std::string socket = daemon.run_dir() + "/handover.sock";
  Process sender({program, "send", socket, "40"}, options);
  Process receiver({program, "receive", socket}, options);
  EXPECT_EQ(receiver.Wait(), 0) << receiver.standard_error();
  EXPECT_EQ(sender.Wait(), 0) << sender.standard_error();
  EXPECT_TRUE(receiver.ReadLine().value_or("").starts_with("received 40 buffers"));
  EXPECT_TRUE(daemon.EventuallyEmpty());
}

}  // namespace
}  // namespace spanpool::testing

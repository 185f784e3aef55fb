#include "client/target.h"

#include <gtest/gtest.h>
#include <stdlib.h>

namespace spanpool::internal {
namespace {

class TargetTest : public testing::Test {
 protected:
  TargetTest() {
    for (const char* name : {"SPANPOOL_TARGET", "SPANPOOL_RUN_DIR", "SPANPOOL_POOL"}) {
      unsetenv(name);
    }
    setenv("XDG_RUNTIME_DIR", "/run/user/1", 1);
  }
};

TEST_F(TargetTest, TheArgumentWinsThenTheTargetVariableThenTheRunDirectory) {
  setenv("SPANPOOL_RUN_DIR", "/c", 1);
  EXPECT_EQ(*ResolveRunDirectory(""), "/c");
  setenv("SPANPOOL_TARGET", "/b", 1);
  EXPECT_EQ(*ResolveRunDirectory(""), "/b");
  EXPECT_EQ(*ResolveRunDirectory("/a"), "/a");
}

TEST_F(TargetTest, HostAndPortIsUnimplementedAndAPathIsNot) {
  for (const char* target : {"host:1", "10.0.0.1:8717", "[::1]:8717"}) {
    EXPECT_EQ(ResolveRunDirectory(target).status().code(), absl::StatusCode::kUnimplemented);
  }
  setenv("SPANPOOL_TARGET", "host:99", 1);
  EXPECT_EQ(ResolveRunDirectory("").status().code(), absl::StatusCode::kUnimplemented);
  for (const char* target : {"/run/a:1", "relative", "./a:1", "a:", "a:b"}) {
    EXPECT_EQ(*ResolveRunDirectory(target), target);
  }
}

TEST_F(TargetTest, ThePoolIsTheArgumentTheVariableOrDefault) {
  EXPECT_EQ(ResolvePool(""), "default");
  setenv("SPANPOOL_POOL", "frames", 1);
  EXPECT_EQ(ResolvePool(""), "frames");
  EXPECT_EQ(ResolvePool("other"), "other");
}

}  // namespace
}  // namespace spanpool::internal

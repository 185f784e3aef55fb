#include "server/log.h"

#include <gtest/gtest.h>

#include <string>

namespace spanpool {
namespace {

TEST(Log, AnUnknownLevelIsRefusedAndTheKnownOnesAreNamed) {
  const absl::Status status = SetUpLog(LogFormat::kText, "loud");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("trace, debug, info, warning, error"), std::string::npos);
}

TEST(Log, AJsonLineEscapesWhatWouldEndTheString) {
  ASSERT_TRUE(SetUpLog(LogFormat::kJson, "debug").ok());
  testing::internal::CaptureStderr();
  Log().info("a \"quote\", a \\ and a line\nbreak");
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_NE(line.find(R"("message":"a \"quote\", a \\ and a line\u000abreak"})"), std::string::npos)
      << line;
  EXPECT_EQ(line.find('\n'), line.size() - 1);
}

TEST(Log, LinesBelowTheLevelAreNotShown) {
  ASSERT_TRUE(SetUpLog(LogFormat::kText, "error").ok());
  testing::internal::CaptureStderr();
  Log().warn("not this");
  Log().error("but this");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("not this"), std::string::npos);
  EXPECT_NE(text.find("but this"), std::string::npos);
}

TEST(Log, ClientTextIsEscapedAndCut) {
  EXPECT_EQ(Printable("a\nb"), "a\\nb");
  EXPECT_LE(Printable(std::string(1000, 'x')).size(), 203u);
}

TEST(LogLimit, ABurstPassesThenOnePerIntervalWithTheCountOfTheRest) {
  LogLimit limit(3, absl::Seconds(1));
  absl::Time now = absl::UnixEpoch();
  uint64_t suppressed = 0;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(limit.Allow(now, &suppressed));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(limit.Allow(now, &suppressed));
  now += absl::Seconds(1);
  EXPECT_TRUE(limit.Allow(now, &suppressed));
  EXPECT_EQ(suppressed, 5u);
  EXPECT_FALSE(limit.Allow(now, &suppressed));
}

}  // namespace
}  // namespace spanpool

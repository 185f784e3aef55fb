#include "spanpool/handle.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace spanpool {
namespace {

TEST(Handle, EveryHandleSurvivesItsText) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 10000; ++i) {
    const Handle handle{{random() >> (random() % 64), random() >> (random() % 64)}};
    const std::string text = handle.ToString();
    ASSERT_EQ(text.size(), 32u);
    absl::StatusOr<Handle> parsed = Handle::Parse(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    ASSERT_EQ(*parsed, handle);
  }
}

TEST(Handle, TextThatIsNoHandleIsInvalid) {
  for (const std::string& text :
       {std::string(), std::string("0"), std::string(31, '0'), std::string(33, '0'),
        std::string(31, '0') + "g", std::string(31, '0') + " ", std::string(32, '\0'),
        "0x" + std::string(30, '0'), std::string(1000, 'f')}) {
    EXPECT_EQ(Handle::Parse(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_TRUE(Handle::Parse("ABCDEFabcdef00000000000000000000").ok());
}

}  // namespace
}  // namespace spanpool

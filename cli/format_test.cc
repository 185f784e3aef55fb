#include "cli/format.h"

#include <gtest/gtest.h>

namespace spanpool::cli {
namespace {

TEST(Format, BytesHaveTheUnitThatKeepsThemShort) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(64 << 20), "64.0 MiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(uint64_t{1} << 44), "16.0 TiB");
  EXPECT_EQ(HumanBytes(UINT64_MAX), "16.0 EiB");
}

TEST(Format, SecondsHaveTwoUnitsAtMost) {
  EXPECT_EQ(HumanSeconds(0.4), "0s");
  EXPECT_EQ(HumanSeconds(59.9), "59s");
  EXPECT_EQ(HumanSeconds(125), "2m 5s");
  EXPECT_EQ(HumanSeconds(3 * 3600 + 120), "3h 2m");
  EXPECT_EQ(HumanSeconds(4 * 86400 + 3600), "4d 1h");
}

TEST(Format, ColumnsLineUpWithTheFirstFlushLeft) {
  EXPECT_EQ(Table({{"POOL", "N"}, {"a", "123"}, {"long", "4"}}),
            "POOL    N\n"
            "a     123\n"
            "long    4\n");
  EXPECT_EQ(Table({}), "");
}

}  // namespace
}  // namespace spanpool::cli

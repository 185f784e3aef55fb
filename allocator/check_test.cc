#include "allocator/check.h"

#include <gtest/gtest.h>

#include "allocator/units.h"

namespace spanpool {
namespace {

TEST(Check, ConditionsThatHoldCostNothingAndStreamNothing) {
  int evaluated = 0;
  auto text = [&] {
    ++evaluated;
    return "text";
  };
  SPANPOOL_CHECK(true) << text();
  SPANPOOL_CHECK_EQ(1, 1) << text();
  SPANPOOL_CHECK_LT(PageId(1), PageId(2)) << text();
  EXPECT_EQ(evaluated, 0);
}

TEST(CheckDeathTest, AFailurePrintsPlaceConditionAndText) {
  EXPECT_DEATH(SPANPOOL_CHECK(1 > 2) << "page " << PageId(7),
               "allocator/check_test.cc:[0-9]+: check failed: 1 > 2 page 7");
}

TEST(CheckDeathTest, AFailedComparisonPrintsBothOperands) {
  const uint8_t small = 3;
  EXPECT_DEATH(SPANPOOL_CHECK_EQ(PageCount(5), PageCount(6)) << "pages",
               "check failed: PageCount\\(5\\) == PageCount\\(6\\) \\(5 vs. 6\\) pages");
  EXPECT_DEATH(SPANPOOL_CHECK_GE(small, 4), "small >= 4 \\(3 vs. 4\\)");
}

TEST(Check, AnElseBelongsToTheOuterIf) {
  bool reached = false;
  if (true)
    SPANPOOL_CHECK(true);
  else
    reached = true;
  EXPECT_FALSE(reached);
}

TEST(CheckDeathTest, DebugChecksFollowTheBuild) {
  int evaluated = 0;
  SPANPOOL_DCHECK([&] { return ++evaluated > 0; }());
  EXPECT_EQ(evaluated, SPANPOOL_DCHECK_IS_ON);
#if SPANPOOL_DCHECK_IS_ON
  EXPECT_DEATH(SPANPOOL_DCHECK_EQ(1, 2), "1 == 2");
#endif
}

}  // namespace
}  // namespace spanpool

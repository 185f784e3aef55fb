#include "allocator/units.h"

#include <gtest/gtest.h>

namespace spanpool {
namespace {

TEST(Units, PagesForRoundsUpAndNeverOverflows) {
  EXPECT_EQ(PagesFor(0), PageCount(0));
  EXPECT_EQ(PagesFor(1), PageCount(1));
  EXPECT_EQ(PagesFor(kPageBytes), PageCount(1));
  EXPECT_EQ(PagesFor(kPageBytes + 1), PageCount(2));
  EXPECT_EQ(PagesFor(UINT64_MAX), PageCount(uint64_t{1} << (64 - kPageShift)));
}

TEST(Units, AnArenaHasItsPagesAndGranules) {
  EXPECT_EQ(kPagesPerArena, 8192u);
  EXPECT_EQ(kGranulesPerArena, 1048576u);
  EXPECT_EQ(FirstPageOf(ArenaIndex(3)), PageId(3 * 8192));
  EXPECT_EQ(ArenaOf(PageId(3 * 8192 - 1)), ArenaIndex(2));
  EXPECT_EQ(ArenaOf(OffsetOf(PageId(3 * 8192))), ArenaIndex(3));
}

TEST(Units, PagesGranulesAndOffsetsConvertIntoEachOther) {
  const PageId page(12345);
  EXPECT_EQ(PageOf(OffsetOf(page)), page);
  EXPECT_EQ(PageOf(GranuleOf(page)), page);
  EXPECT_EQ(OffsetOf(GranuleOf(page)), OffsetOf(page));
  EXPECT_EQ(GranuleOf(PoolOffset(127)), GranuleId(1));
  EXPECT_EQ((PageRange{page, PageCount(5)}.end()), PageId(12350));
}

}  // namespace
}  // namespace spanpool

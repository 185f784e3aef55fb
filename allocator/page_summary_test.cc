#include "allocator/page_summary.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "allocator/units.h"

namespace spanpool {
namespace {

constexpr uint64_t kMax = PageSummary::kMaxPages;

PageSummary Summary(uint64_t start, uint64_t max, uint64_t end) {
  return PageSummary(PageCount(start), PageCount(max), PageCount(end));
}

// The summary of the low `pages` bits of `used`, by looking at each.
PageSummary Look(uint64_t used, size_t pages) {
  uint64_t start = 0;
  uint64_t max = 0;
  uint64_t run = 0;
  for (size_t i = 0; i < pages; ++i) {
    run = (used >> i & 1) != 0 ? 0 : run + 1;
    max = std::max(max, run);
    if (run == i + 1) start = run;
  }
  return Summary(start, max, run);
}

TEST(PageSummary, ZeroMeansNothingFree) {
  EXPECT_TRUE(PageSummary().none_free());
  EXPECT_EQ(PageSummary(), Summary(0, 0, 0));
  EXPECT_EQ(PageSummary().packed(), 0u);
}

TEST(PageSummary, EveryCornerOfTheFieldsSurvivesPacking) {
  const std::vector<uint64_t> corners = {0, 1, 2, 511, 512, kMax / 2, kMax - 2, kMax - 1};
  for (uint64_t start : corners) {
    for (uint64_t end : corners) {
      for (uint64_t max : corners) {
        if (max < start || max < end) continue;
        const PageSummary summary = Summary(start, max, end);
        EXPECT_EQ(summary.start(), PageCount(start));
        EXPECT_EQ(summary.max(), PageCount(max));
        EXPECT_EQ(summary.end(), PageCount(end));
        EXPECT_EQ(summary.none_free(), max == 0);
        EXPECT_EQ(summary.packed() >> 63, 0u) << "bit 63 is the special value's alone";
      }
    }
  }
}

TEST(PageSummary, AStretchOf16GiBWhollyFreeIsBit63Alone) {
  const PageSummary summary = PageSummary::AllFree(PageCount(kMax));
  EXPECT_EQ(summary.packed(), uint64_t{1} << 63);
  EXPECT_EQ(summary.start(), PageCount(kMax));
  EXPECT_EQ(summary.max(), PageCount(kMax));
  EXPECT_EQ(summary.end(), PageCount(kMax));
}

TEST(PageSummary, MergingFillsTheFieldsToTheirLastValue) {
  std::array<PageSummary, 8> parts;
  parts.fill(PageSummary::AllFree(PageCount(kMax / 8)));
  EXPECT_EQ(PageSummary::Merge(parts.data(), 8, PageCount(kMax / 8)),
            PageSummary::AllFree(PageCount(kMax)));
  // One page taken at either end: the longest runs that still are packed in fields.
  parts[7] = Summary(kMax / 8 - 1, kMax / 8 - 1, 0);
  EXPECT_EQ(PageSummary::Merge(parts.data(), 8, PageCount(kMax / 8)),
            Summary(kMax - 1, kMax - 1, 0));
  parts[7] = PageSummary::AllFree(PageCount(kMax / 8));
  parts[0] = Summary(0, kMax / 8 - 1, kMax / 8 - 1);
  EXPECT_EQ(PageSummary::Merge(parts.data(), 8, PageCount(kMax / 8)),
            Summary(0, kMax - 1, kMax - 1));
}

TEST(PageSummary, MergingEqualsLookingAtEveryPageForEveryPattern) {
  for (const auto& [parts, pages] :
       std::vector<std::pair<size_t, size_t>>{{8, 2}, {4, 4}, {2, 8}}) {
    for (uint64_t used = 0; used < uint64_t{1} << (parts * pages); ++used) {
      std::array<PageSummary, 8> summaries;
      for (size_t i = 0; i < parts; ++i) summaries[i] = Look(used >> (i * pages), pages);
      ASSERT_EQ(PageSummary::Merge(summaries.data(), parts, PageCount(pages)),
                Look(used, parts * pages))
          << parts << " parts of " << pages << ", used " << used;
    }
  }
}

}  // namespace
}  // namespace spanpool

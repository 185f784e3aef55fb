#include "allocator/page_ranges.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace spanpool {
namespace {

constexpr size_t kPages = 40;
using Bits = std::vector<bool>;

PageRange Pages(uint64_t first, uint64_t count) { return {PageId(first), PageCount(count)}; }

PageRanges RangesOf(const Bits& bits) {
  PageRanges ranges;
  for (size_t i = 0; i < bits.size(); ++i) {
    if (bits[i]) Append(&ranges, Pages(i, 1));
  }
  return ranges;
}

Bits BitsOf(const PageRanges& ranges) {
  Bits bits(kPages);
  for (const PageRange& range : ranges) {
    for (PageId page = range.first; page < range.end(); ++page) bits[page.value()] = true;
  }
  return bits;
}

void ExpectSound(const PageRanges& ranges) {
  for (size_t i = 0; i < ranges.size(); ++i) {
    EXPECT_GT(ranges[i].count, PageCount(0));
    if (i > 0) {
      EXPECT_LT(ranges[i - 1].end(), ranges[i].first);
    }
  }
}

TEST(PageRanges, WhatTouchesOrOverlapsTheLastRunBecomesPartOfIt) {
  PageRanges ranges;
  Append(&ranges, Pages(3, 0));
  EXPECT_TRUE(ranges.empty());
  Append(&ranges, Pages(3, 2));
  Append(&ranges, Pages(5, 1));
  Append(&ranges, Pages(4, 1));
  Append(&ranges, Pages(5, 3));
  Append(&ranges, Pages(9, 1));
  EXPECT_EQ(ranges, (PageRanges{Pages(3, 5), Pages(9, 1)}));
  EXPECT_EQ(CountPages(ranges), PageCount(6));
}

TEST(PageRangesDeathTest, RunsAreAddedInOrder) {
  PageRanges ranges{Pages(3, 2)};
  EXPECT_DEATH(Append(&ranges, Pages(2, 2)), "");
}

TEST(PageRanges, AreWhatTheirPagesAre) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const uint64_t one_in = 1 + random() % 6;
    Bits a(kPages);
    Bits b(kPages);
    Bits either(kPages);
    Bits rest(kPages);
    for (size_t i = 0; i < kPages; ++i) {
      // Runs rather than single pages.
      a[i] = random() % one_in == 0 ? random() % 2 == 0 : i > 0 && a[i - 1];
      b[i] = random() % 3 == 0 ? random() % 2 == 0 : i > 0 && b[i - 1];
      either[i] = a[i] || b[i];
      rest[i] = a[i] && !b[i];
    }
    ExpectSound(RangesOf(a));
    ExpectSound(Union(RangesOf(a), RangesOf(b)));
    ExpectSound(Minus(RangesOf(a), RangesOf(b)));
    EXPECT_EQ(BitsOf(Union(RangesOf(a), RangesOf(b))), either);
    EXPECT_EQ(BitsOf(Minus(RangesOf(a), RangesOf(b))), rest);
  }
}

}  // namespace
}  // namespace spanpool

#include "allocator/arena_map.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace spanpool {
namespace {

constexpr ArenaIndex kLast(static_cast<uint32_t>(kMaxArenas - 1));

TEST(ArenaMap, ArenasAreFoundByIndexUpToTheLastOf2To22) {
  ArenaMap map(MetadataSource::System());
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::set<ArenaIndex> added = {ArenaIndex(0), kLast};
  while (added.size() < 200) added.insert(ArenaIndex(static_cast<uint32_t>(random() % kMaxArenas)));
  for (const ArenaIndex arena : added) {
    EXPECT_EQ(map.Find(arena), nullptr);
    ASSERT_TRUE(map.Add(arena));
  }
  std::set<Arena*> records;
  for (const ArenaIndex arena : added) records.insert(map.Find(arena));
  EXPECT_EQ(records.size(), added.size());
  EXPECT_FALSE(records.contains(nullptr));
  for (int i = 0; i < 10000; ++i) {
    const ArenaIndex arena(static_cast<uint32_t>(random() % kMaxArenas));
    EXPECT_EQ(map.Find(arena) != nullptr, added.contains(arena));
  }
}

TEST(ArenaMap, AnyPageIsAValidQuestion) {
  ArenaMap map(MetadataSource::System());
  ASSERT_TRUE(map.Add(kLast));
  EXPECT_EQ(map.SpanOf(FirstPageOf(kLast)), nullptr);
  EXPECT_EQ(map.SpanOf(PageId(kMaxArenas * kPagesPerArena)), nullptr);
  EXPECT_EQ(map.SpanOf(PageId(UINT64_MAX)), nullptr);
  EXPECT_EQ(map.Find(ArenaIndex(UINT32_MAX)), nullptr);
}

TEST(ArenaMap, ASpanIsFoundByEachOfItsPagesAcrossArenas) {
  ArenaMap map(MetadataSource::System());
  for (const uint32_t arena : {6, 7, 8}) ASSERT_TRUE(map.Add(ArenaIndex(arena)));
  Span span;
  span.first_page = FirstPageOf(ArenaIndex(7)) - PageCount(2);
  span.pages = PageCount(kPagesPerArena + 5);
  map.Enter(&span);
  for (PageId page = span.first_page; page < span.range().end(); ++page) {
    ASSERT_EQ(map.SpanOf(page), &span);
  }
  EXPECT_EQ(map.SpanOf(span.first_page - PageCount(1)), nullptr);
  EXPECT_EQ(map.SpanOf(span.range().end()), nullptr);
  map.SetListed(span, true);
  map.SetSpecials(span, true);
  EXPECT_TRUE(map.Find(ArenaIndex(6))->listed.Test(kPagesPerArena - 2));
  EXPECT_TRUE(map.Find(ArenaIndex(6))->specials.Test(kPagesPerArena - 2));
  EXPECT_FALSE(map.Find(ArenaIndex(7))->listed.Test(0)) << "only a first page has the bit";
  map.SetListed(span, false);
  map.SetSpecials(span, false);
  EXPECT_FALSE(map.Find(ArenaIndex(6))->listed.Test(kPagesPerArena - 2));
  EXPECT_FALSE(map.Find(ArenaIndex(6))->specials.Test(kPagesPerArena - 2));
  map.Leave(&span);
  for (PageId page = span.first_page; page < span.range().end(); ++page) {
    ASSERT_EQ(map.SpanOf(page), nullptr);
  }
}

TEST(ArenaMap, TheWatermarkKnowsWhichPagesWereNeverUsed) {
  ArenaMap map(MetadataSource::System());
  ASSERT_TRUE(map.Add(ArenaIndex(0)));
  ASSERT_TRUE(map.Add(ArenaIndex(1)));
  EXPECT_FALSE(map.MarkUsed({PageId(0), PageCount(10)}));
  EXPECT_FALSE(map.MarkUsed({PageId(10), PageCount(1)}));
  EXPECT_TRUE(map.MarkUsed({PageId(3), PageCount(1)}));
  EXPECT_TRUE(map.MarkUsed({PageId(10), PageCount(2)}));
  // Across a border each arena has its own mark.
  EXPECT_FALSE(map.MarkUsed({PageId(kPagesPerArena - 1), PageCount(2)}));
  EXPECT_TRUE(map.MarkUsed({PageId(500), PageCount(1)})) << "below the mark, if never used";
  EXPECT_TRUE(map.MarkUsed({PageId(kPagesPerArena), PageCount(1)}));
  EXPECT_FALSE(map.MarkUsed({PageId(kPagesPerArena + 1), PageCount(1)}));
}

TEST(ArenaMap, TheRecordOfAnArenaIsSmall) {
  // 3.2 % of an arena may go into the heap's records; the lion's share is for spans.
  static_assert(sizeof(Arena) * 100 < kArenaBytes * 11 / 100);
  ArenaMap map(MetadataSource::System());
  ASSERT_TRUE(map.Add(ArenaIndex(0)));
  EXPECT_LE(map.metadata_bytes(), size_t{128} << 10);
}

}  // namespace
}  // namespace spanpool

#include "allocator/page_cache.h"

#include <gtest/gtest.h>

#include <iostream>
#include <random>
#include <vector>

#include "allocator/page_alloc.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

PageRange Range(uint64_t first, uint64_t count) {
  return PageRange{PageId(first), PageCount(count)};
}

TEST(PageCache, AnEmptyCacheServesNothingAndFlushesNothing) {
  PageAlloc pages;
  PageCache cache;
  EXPECT_TRUE(cache.empty());
  EXPECT_FALSE(cache.Alloc(PageCount(1)).has_value());
  EXPECT_FALSE(cache.Refill(&pages));
  cache.Flush(&pages);
  cache.CheckInvariants(pages);
}

TEST(PageCache, RefillTakesAllFreePagesOfTheFirstBlockThatIsNotFull) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(Range(0, kPagesPerChunk)).ok());
  ASSERT_EQ(pages.Alloc(PageCount(70))->first, PageId(0));
  PageCache cache;
  ASSERT_TRUE(cache.Refill(&pages));
  EXPECT_EQ(cache.pages(), PageCount(58));
  EXPECT_EQ(cache.scavenged(), PageCount(58));
  EXPECT_EQ(pages.allocated(), PageCount(128));
  cache.CheckInvariants(pages);
  EXPECT_EQ(cache.Alloc(PageCount(1))->first, PageId(70));
  EXPECT_EQ(pages.Alloc(PageCount(1))->first, PageId(128)) << "what is cached is taken";
}

TEST(PageCache, RunsAreTheLowestThatFitAndSayWhatHasNoMemory) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(Range(0, kPagesPerChunk)).ok());
  pages.AllocRange(Range(3, 1));
  pages.AllocRange(Range(20, 1));
  pages.ClearScavenged(Range(0, 6));
  PageCache cache;
  ASSERT_TRUE(cache.Refill(&pages));
  const auto four = cache.Alloc(PageCount(4));
  EXPECT_EQ(four->first, PageId(4));
  EXPECT_EQ(four->scavenged, PageCount(2));
  EXPECT_EQ(cache.Alloc(PageCount(3))->first, PageId(0));
  EXPECT_EQ(cache.Alloc(PageCount(15))->first, PageId(21));
  EXPECT_EQ(cache.Alloc(PageCount(15))->first, PageId(36));
  EXPECT_EQ(cache.Alloc(PageCount(13))->first, PageId(51));
  EXPECT_FALSE(cache.Alloc(PageCount(13)).has_value());
  EXPECT_EQ(cache.Alloc(PageCount(12))->first, PageId(8));
  EXPECT_TRUE(cache.empty());
}

TEST(PageCache, FlushingReturnsEachPageAsItCame) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(Range(0, kPagesPerChunk)).ok());
  pages.ClearScavenged(Range(10, 5));
  PageCache cache;
  ASSERT_TRUE(cache.Refill(&pages));
  ASSERT_EQ(cache.Alloc(PageCount(12))->first, PageId(0));
  cache.Flush(&pages);
  EXPECT_TRUE(cache.empty());
  EXPECT_EQ(pages.allocated(), PageCount(12));
  EXPECT_EQ(pages.free_backed(), PageCount(3));
  EXPECT_EQ(pages.free_scavenged(), PageCount(kPagesPerChunk - 15));
  pages.CheckInvariants();
}

TEST(PageCache, PagesOfItsBlockComeBackToItAndOthersDoNot) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(Range(0, kPagesPerChunk)).ok());
  PageCache cache;
  ASSERT_TRUE(cache.Refill(&pages));
  ASSERT_EQ(cache.Alloc(PageCount(3))->first, PageId(0));
  ASSERT_EQ(pages.Alloc(PageCount(100))->first, PageId(64));
  EXPECT_TRUE(cache.Free(Range(1, 2)));
  EXPECT_FALSE(cache.Free(Range(64, 1))) << "of another block";
  EXPECT_EQ(cache.pages(), PageCount(63));
  EXPECT_EQ(cache.scavenged(), PageCount(61)) << "what comes back is backed";
  EXPECT_EQ(cache.Alloc(PageCount(1))->first, PageId(1));
  cache.Flush(&pages);
  EXPECT_FALSE(cache.Free(Range(127, 2))) << "of two blocks";
  EXPECT_TRUE(cache.Free(Range(64, 64))) << "an empty cache adopts any block";
  EXPECT_TRUE(cache.Alloc(PageCount(15)).has_value());
  EXPECT_EQ(pages.allocated(), PageCount(102));
  cache.CheckInvariants(pages);
}

TEST(PageCacheDeathTest, FreeingAPageThatIsInTheCacheAborts) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(Range(0, kPagesPerChunk)).ok());
  PageCache cache;
  ASSERT_TRUE(cache.Refill(&pages));
  EXPECT_DEATH(cache.Free(Range(5, 1)), "page 5 is free already");
}

TEST(PageCache, SeveralCachesAndTheAllocatorNeverHandOutAPageTwice) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  PageAlloc pages;
  constexpr uint64_t kPages = 4 * kPagesPerChunk;
  ASSERT_TRUE(pages.Grow(Range(0, kPages)).ok());
  std::vector<bool> taken(kPages);
  std::vector<PageRange> live;
  std::vector<PageCache> caches(3);
  uint64_t held = 0;
  for (int i = 0; i < 200'000; ++i) {
    PageCache& cache = caches[random() % caches.size()];
    if (random() % 100 < 52) {
      const PageCount n(random() % 8 == 0 ? 1 + random() % PageCache::kMaxRun : 1);
      auto run = cache.Alloc(n);
      if (!run.has_value()) {
        cache.Flush(&pages);
        if (!cache.Refill(&pages)) continue;
        run = cache.Alloc(n);
      }
      if (!run.has_value()) run = pages.Alloc(n);
      if (!run.has_value()) continue;
      for (uint64_t page = run->first.value(); page < (run->first + n).value(); ++page) {
        ASSERT_FALSE(taken[page]) << page;
        taken[page] = true;
      }
      held += n.value();
      live.push_back(PageRange{run->first, n});
    } else if (!live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      pages.Free(live.back());
      for (PageId page = live.back().first; page < live.back().end(); ++page) {
        taken[page.value()] = false;
      }
      held -= live.back().count.value();
      live.pop_back();
    }
    if (i % 4096 == 0) {
      pages.CheckInvariants();
      uint64_t cached = 0;
      for (const PageCache& c : caches) {
        c.CheckInvariants(pages);
        cached += c.pages().value();
      }
      ASSERT_EQ(pages.allocated(), PageCount(held + cached));
    }
  }
  for (PageCache& c : caches) c.Flush(&pages);
  for (const PageRange& range : live) pages.Free(range);
  EXPECT_EQ(pages.allocated(), PageCount(0));
  EXPECT_TRUE(pages.Alloc(PageCount(kPages)).has_value());
}

}  // namespace
}  // namespace spanpool

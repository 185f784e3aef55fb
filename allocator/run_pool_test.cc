#include "allocator/run_pool.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "allocator/faulty_arena_source.h"

namespace spanpool {
namespace {

class RunPoolTest : public testing::Test {
 protected:
  FaultyArenaSource source_;
  PageHeap heap_{{.limit_bytes = kArenaBytes, .reserve_bytes = 0, .max_arenas = 4},
                 &source_,
                 MetadataSource::System()};
  RunPool pool_{&heap_};
};

TEST_F(RunPoolTest, OrdersArePowersOfTwoOfPages) {
  EXPECT_EQ(RunOrderFor(PageCount(1)), RunOrder(0));
  EXPECT_EQ(RunOrderFor(PageCount(2)), RunOrder(1));
  EXPECT_EQ(RunOrderFor(PageCount(3)), RunOrder(2));
  EXPECT_EQ(RunOrderFor(PageCount(8)), RunOrder(3));
  EXPECT_EQ(RunOrderFor(PageCount(9)), RunOrder(kRunOrders));
}

TEST_F(RunPoolTest, RunsOfAnOrderFillASpanBeforeTheNextIsMade) {
  for (uint8_t k = 0; k < kRunOrders; ++k) {
    const RunOrder order(k);
    const uint64_t per_span = RunPool::kSpanPages.value() / RunPages(order).value();
    std::vector<PageRange> runs;
    for (uint64_t i = 0; i < per_span; ++i) runs.push_back(*pool_.Alloc(order));
    EXPECT_EQ(pool_.held(), RunPool::kSpanPages);
    pool_.CheckInvariants();
    runs.push_back(*pool_.Alloc(order));
    EXPECT_EQ(pool_.held(), RunPool::kSpanPages + RunPool::kSpanPages);
    for (uint64_t i = 1; i < per_span; ++i) {
      EXPECT_EQ(runs[i].first, runs[i - 1].first + RunPages(order));
    }
    for (const PageRange& run : runs) pool_.Free(run);
    EXPECT_EQ(pool_.held(), PageCount(0));
    pool_.CheckInvariants();
  }
  EXPECT_EQ(heap_.stats().in_use, PageCount(0));
  heap_.CheckInvariants();
}

TEST_F(RunPoolTest, WithoutMemoryARunIsRefused) {
  source_.FailCall(FaultyArenaSource::Call::kPopulate, 1);
  EXPECT_EQ(pool_.Alloc(RunOrder(0)).status().code(), absl::StatusCode::kResourceExhausted);
  pool_.CheckInvariants();
  const absl::StatusOr<PageRange> run = pool_.Alloc(RunOrder(0));
  ASSERT_TRUE(run.ok());
  pool_.Free(*run);
}

using RunPoolDeathTest = RunPoolTest;

TEST_F(RunPoolDeathTest, FreeingWhatIsNotTakenAborts) {
  const PageRange run = *pool_.Alloc(RunOrder(1));
  const PageRange other = *pool_.Alloc(RunOrder(1));
  EXPECT_DEATH(pool_.Free({run.first, PageCount(1)}), "run.count");
  EXPECT_DEATH(pool_.Free({run.first + PageCount(1), PageCount(2)}), "offset");
  EXPECT_DEATH(pool_.Free({PageId(5000), PageCount(2)}), "no manual span");
  pool_.Free(run);
  EXPECT_DEATH(pool_.Free(run), "is free");
  pool_.Free(other);
}

TEST_F(RunPoolTest, ACacheFillsToHalfAndReleasesToHalf) {
  RunCache cache(&pool_);
  const RunOrder order(1);  // 16 KiB: 16 fit
  std::vector<PageRange> runs = {*cache.Alloc(order)};
  EXPECT_EQ(cache.size(order), 7u);
  EXPECT_EQ(pool_.taken(), PageCount(16));
  for (int i = 0; i < 7; ++i) runs.push_back(*cache.Alloc(order));
  EXPECT_EQ(pool_.taken(), PageCount(16)) << "no more was taken from the pool";
  for (int i = 0; i < 16; ++i) runs.push_back(*cache.Alloc(order));
  for (int i = 0; i < 16; ++i) {
    cache.Free(runs.back());
    runs.pop_back();
  }
  EXPECT_EQ(cache.size(order), 16u);
  cache.Free(runs.back());
  runs.pop_back();
  EXPECT_EQ(cache.size(order), 9u) << "down to half, and the one that came";
  const PageCount taken = pool_.taken();
  for (int i = 0; i < 100; ++i) {
    const PageRange run = *cache.Alloc(order);
    cache.Free(run);
  }
  EXPECT_EQ(pool_.taken(), taken) << "taking and giving in turns stays in the cache";
  for (const PageRange& run : runs) cache.Free(run);
  cache.Flush();
  EXPECT_EQ(pool_.taken(), PageCount(0));
}

TEST_F(RunPoolTest, FourThreadsWithCachesNeverGetTheSameRun) {
  std::vector<std::atomic<int>> owner(kPagesPerArena);
  std::vector<std::thread> threads;
  for (int seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(static_cast<uint64_t>(seed));
      RunCache cache(&pool_);
      std::vector<PageRange> runs;
      for (int i = 0; i < 4000; ++i) {
        if (random() % 2 == 0) {
          absl::StatusOr<PageRange> run =
              cache.Alloc(RunOrder(static_cast<uint8_t>(random() % kRunOrders)));
          ASSERT_TRUE(run.ok());
          for (PageId page = run->first; page < run->end(); ++page) {
            EXPECT_EQ(owner[page.value()].exchange(seed), 0);
          }
          runs.push_back(*run);
        } else if (!runs.empty()) {
          std::swap(runs[random() % runs.size()], runs.back());
          for (PageId page = runs.back().first; page < runs.back().end(); ++page) {
            EXPECT_EQ(owner[page.value()].exchange(0), seed);
          }
          cache.Free(runs.back());
          runs.pop_back();
        }
        if (runs.size() > 100) {
          for (const PageRange& run : runs) {
            for (PageId page = run.first; page < run.end(); ++page) owner[page.value()] = 0;
            cache.Free(run);
          }
          runs.clear();
        }
      }
      for (const PageRange& run : runs) {
        for (PageId page = run.first; page < run.end(); ++page) owner[page.value()] = 0;
        cache.Free(run);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  pool_.CheckInvariants();
  EXPECT_EQ(pool_.held(), PageCount(0));
  heap_.CheckInvariants();
}

}  // namespace
}  // namespace spanpool

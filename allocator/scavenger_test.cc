#include "allocator/scavenger.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <vector>

#include "allocator/faulty_arena_source.h"
#include "allocator/memfd_arena_source.h"

namespace spanpool {
namespace {

constexpr SpanClass kLarge = SpanClass(kLargeSizeClass, /*noscan=*/true);

PageHeapOptions Options() {
  return {.limit_bytes = 8 * kArenaBytes, .reserve_bytes = 0, .max_arenas = 16};
}

// A clock that moves only when told to.
struct FakeClock {
  int64_t now = 1'000'000'000;
  int64_t step = 0;  // by how much each reading moves it
  Scavenger::Clock reader() {
    return [this] {
      now += step;
      return now;
    };
  }
  void Sleep(absl::Duration duration) { now += absl::ToInt64Nanoseconds(duration); }
};

void UseAndFree(PageHeap* heap, PageCount pages) {
  heap->Free(*heap->Allocate(kLarge, pages, PageCount(1)));
}

TEST(Scavenger, KeepsATenthOfTheRecentPeakAndInTimeOnlyTheReserve) {
  FaultyArenaSource source;
  PageHeap heap(Options(), &source, MetadataSource::System());
  FakeClock clock;
  clock.step = 1'000'000;
  Scavenger scavenger(&heap, /*reserve_bytes=*/4 << 20, clock.reader());
  UseAndFree(&heap, PageCount(4 * kPagesPerArena));
  const PageCount tenth(4 * kPagesPerArena / 10);
  const int64_t began = clock.now;
  while (true) {
    const absl::Duration sleep = scavenger.Step();
    EXPECT_EQ(scavenger.goal(), tenth);
    if (sleep == Scavenger::kIdle) break;
    clock.Sleep(sleep);
  }
  EXPECT_LT(clock.now - began, absl::ToInt64Nanoseconds(Scavenger::kPeakWindow));
  EXPECT_GE(heap.stats().free, tenth);
  EXPECT_LT(heap.stats().free, tenth + PageHeap::kDiscardRun);
  heap.CheckInvariants();
  // The peak is recent in the window after its own, too.
  clock.Sleep(Scavenger::kPeakWindow);
  for (int i = 0; i < 2; ++i) {
    scavenger.Step();
    EXPECT_EQ(scavenger.goal(), tenth);
  }
  for (int i = 0; i < 200; ++i) clock.Sleep(scavenger.Step());
  EXPECT_EQ(scavenger.goal(), PageCount((4 << 20) / kPageBytes));
  EXPECT_LT(heap.stats().free, scavenger.goal() + PageHeap::kDiscardRun);
  heap.CheckInvariants();
}

TEST(Scavenger, SpendsAHundredthOfItsTimeEvenIfSleepsLastTooLong) {
  for (const double oversleep : {1.0, 1.5}) {
    FaultyArenaSource source;
    PageHeap heap(Options(), &source, MetadataSource::System());
    FakeClock clock;
    clock.step = 300'000;
    Scavenger scavenger(&heap, 0, clock.reader());
    UseAndFree(&heap, PageCount(6 * kPagesPerArena));
    const int64_t began = clock.now;
    int64_t steps = 0;
    for (; steps < 100; ++steps) {
      const absl::Duration sleep = scavenger.Step();
      ASSERT_NE(sleep, Scavenger::kIdle);
      clock.Sleep(sleep * oversleep);
    }
    const double spent =
        static_cast<double>(steps * clock.step) / static_cast<double>(clock.now - began);
    EXPECT_GT(spent, 0.007) << oversleep;
    EXPECT_LT(spent, 0.014) << oversleep;
  }
}

TEST(Scavenger, DiscardsTheHighestRunsFirst) {
  FaultyArenaSource source;
  PageHeap heap(Options(), &source, MetadataSource::System());
  Scavenger scavenger(&heap, 0);
  UseAndFree(&heap, PageCount(kPagesPerArena));
  EXPECT_EQ(heap.DiscardOne(), PageHeap::kDiscardRun);
  // What is granted next comes from the other end, and has memory.
  const uint64_t populated = source.calls(FaultyArenaSource::Call::kPopulate);
  Span* const span =
      *heap.Allocate(kLarge, PageCount(kPagesPerArena) - PageHeap::kDiscardRun, PageCount(1));
  EXPECT_EQ(span->first_page, PageId(0));
  EXPECT_TRUE(span->needs_zero);
  EXPECT_EQ(source.calls(FaultyArenaSource::Call::kPopulate), populated);
  Span* const last = *heap.Allocate(kLarge, PageHeap::kDiscardRun, PageCount(1));
  EXPECT_EQ(source.calls(FaultyArenaSource::Call::kPopulate), populated + 1);
  EXPECT_FALSE(last->needs_zero) << "discarded memory reads as zero";
  heap.CheckInvariants();
}

TEST(Scavenger, TrimGivesTheMemoryOfTheFilesBackAtOnce) {
  MemfdArenaSource source("test", 0);
  PageHeap heap(Options(), &source, MetadataSource::System());
  Scavenger scavenger(&heap, /*reserve_bytes=*/8 << 20);
  const auto file_bytes = [&] {
    struct stat info;
    EXPECT_EQ(fstat(source.data_fd(ArenaIndex(0)), &info), 0);
    return static_cast<uint64_t>(info.st_blocks) * 512;
  };
  // With small spans, too, so that the page caches hold some of it.
  std::vector<Span*> spans;
  for (int i = 0; i < 100; ++i) spans.push_back(*heap.Allocate(kLarge, PageCount(1), PageCount(1)));
  UseAndFree(&heap, PageCount(4096));
  for (Span* span : spans) heap.Free(span);
  EXPECT_EQ(file_bytes(), Bytes(heap.stats().free));
  EXPECT_GE(file_bytes(), uint64_t{32} << 20);
  const PageCount trimmed = scavenger.Trim();
  EXPECT_GE(trimmed, PageCount(2900));
  EXPECT_GE(file_bytes(), uint64_t{8} << 20) << "the reserve is kept";
  EXPECT_LT(file_bytes(), uint64_t{10} << 20);
  EXPECT_EQ(file_bytes(), Bytes(heap.stats().free));
  EXPECT_EQ(scavenger.Trim(), PageCount(0));
  heap.CheckInvariants();
}

TEST(Scavenger, MemoryThatCannotBeDiscardedIsNotTrustedToBeZero) {
  FaultyArenaSource source;
  PageHeap heap(Options(), &source, MetadataSource::System());
  UseAndFree(&heap, PageCount(512));
  source.FailCall(FaultyArenaSource::Call::kDiscard, 1);
  EXPECT_EQ(heap.DiscardOne(), PageCount(0));
  heap.CheckInvariants();
  // Whether it has memory is unknown, so it gets some before it is granted, and is cleared.
  const uint64_t populated = source.calls(FaultyArenaSource::Call::kPopulate);
  ASSERT_TRUE(heap.Allocate(kLarge, PageHeap::kDiscardRun, PageCount(1)).ok());
  EXPECT_EQ(source.calls(FaultyArenaSource::Call::kPopulate), populated);
  Span* const span = *heap.Allocate(kLarge, PageHeap::kDiscardRun, PageCount(1));
  EXPECT_EQ(source.calls(FaultyArenaSource::Call::kPopulate), populated + 1);
  EXPECT_TRUE(span->needs_zero);
}

TEST(Scavenger, MemoryInAllNeverExceedsTheLimitForLong) {
  FaultyArenaSource source;
  PageHeapOptions options = Options();
  options.limit_bytes = kArenaBytes;
  PageHeap heap(options, &source, MetadataSource::System());
  // Half the pool is freed in pieces too short for what is asked next.
  std::vector<Span*> spans;
  for (int i = 0; i < 16; ++i) {
    spans.push_back(*heap.Allocate(kLarge, PageCount(512), PageCount(1)));
  }
  for (size_t i = 0; i < spans.size(); i += 2) heap.Free(spans[i]);
  ASSERT_TRUE(heap.Allocate(kLarge, PageCount(kPagesPerArena / 2), PageCount(1)).ok());
  const PageHeapStats stats = heap.stats();
  EXPECT_LE(Bytes(stats.in_use + stats.free), options.limit_bytes);
  heap.CheckInvariants();
}

}  // namespace
}  // namespace spanpool

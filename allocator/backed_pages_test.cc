#include "allocator/backed_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/page_ranges.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

constexpr uint64_t kPages = 512;
constexpr PageRange kAll{PageId(0), PageCount(kPages)};

PageRange Pages(uint64_t first, uint64_t count) { return {PageId(first), PageCount(count)}; }

class BackedPages : public testing::Test {
 protected:
  BackedPages() : fd_(memfd_create("test", MFD_CLOEXEC)) {
    EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(kPages * kPageBytes)), 0);
  }
  ~BackedPages() override { close(fd_); }

  void Allocate(uint64_t offset, uint64_t bytes) {
    EXPECT_EQ(fallocate(fd_, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)), 0);
  }
  void Allocate(PageRange range) { Allocate(OffsetOf(range.first).value(), Bytes(range.count)); }
  void Touch(PageRange range) {
    const std::vector<char> bytes(Bytes(range.count), 'x');
    EXPECT_EQ(
        pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(OffsetOf(range.first).value())),
        static_cast<ssize_t>(bytes.size()));
  }
  void Punch(uint64_t offset, uint64_t bytes) {
    EXPECT_EQ(fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                        static_cast<off_t>(bytes)),
              0);
  }

  // Skips where the kernel has no cachestat.
  PageRanges ByCount(PageRange range = kAll) {
    const absl::StatusOr<PageRanges> found = FindBackedByCount(fd_, range);
    if (absl::IsUnimplemented(found.status())) {
      skip_ = true;
      return {};
    }
    EXPECT_TRUE(found.ok()) << found.status();
    return *found;
  }
  PageRanges ByData(PageRange range = kAll) {
    const absl::StatusOr<PageRanges> found = FindBackedByData(fd_, range);
    EXPECT_TRUE(found.ok()) << found.status();
    return *found;
  }

  const int fd_;
  bool skip_ = false;
};

TEST_F(BackedPages, AFileWithoutMemoryHasNone) {
  EXPECT_EQ(ByData(), PageRanges());
  EXPECT_EQ(ByCount(), PageRanges());
}

TEST_F(BackedPages, WhatWasAllocatedAndNeverTouchedIsCountedButNoData) {
  Allocate(Pages(100, 50));
  EXPECT_EQ(ByData(), PageRanges());
  const PageRanges counted = ByCount();
  if (skip_) GTEST_SKIP() << "no cachestat";
  EXPECT_EQ(counted, PageRanges{Pages(100, 50)});
}

TEST_F(BackedPages, WhatWasTouchedIsBoth) {
  Touch(Pages(100, 50));
  Touch(Pages(0, 1));
  Touch(Pages(kPages - 1, 1));
  const PageRanges expected{Pages(0, 1), Pages(100, 50), Pages(kPages - 1, 1)};
  EXPECT_EQ(ByData(), expected);
  const PageRanges counted = ByCount();
  if (skip_) GTEST_SKIP() << "no cachestat";
  EXPECT_EQ(counted, expected);
}

TEST_F(BackedPages, HalfAPageIsNone) {
  Touch(Pages(10, 3));
  Punch(10 * kPageBytes, 4096);
  Punch(12 * kPageBytes + 4096, 4096);
  EXPECT_EQ(ByData(), PageRanges{Pages(11, 1)});
  const PageRanges counted = ByCount();
  if (skip_) GTEST_SKIP() << "no cachestat";
  EXPECT_EQ(counted, PageRanges{Pages(11, 1)});
}

TEST_F(BackedPages, OnlyTheRangeIsLookedAt) {
  Touch(Pages(10, 20));
  for (const PageRange range :
       {Pages(0, 15), Pages(15, 10), Pages(25, 100), Pages(12, 1), Pages(5, 0)}) {
    PageRanges expected;
    const PageId first = std::max(range.first, PageId(10));
    const PageId end = std::min(range.end(), PageId(30));
    if (first < end) Append(&expected, {first, end - first});
    EXPECT_EQ(ByData(range), expected) << range.first;
    const PageRanges counted = ByCount(range);
    if (!skip_) {
      EXPECT_EQ(counted, expected) << range.first;
    }
  }
}

TEST_F(BackedPages, AnyPatternIsFound) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 20; ++round) {
    Punch(0, kPages * kPageBytes);
    PageRanges touched;
    PageRanges allocated;
    const uint64_t longest = 1 + random() % 64;
    for (uint64_t page = random() % longest; page < kPages;) {
      const uint64_t count = std::min(1 + random() % longest, kPages - page);
      if (random() % 2 == 0) {
        Touch(Pages(page, count));
        Append(&touched, Pages(page, count));
      } else {
        Allocate(Pages(page, count));
      }
      Append(&allocated, Pages(page, count));
      page += count + random() % longest;
    }
    EXPECT_EQ(ByData(), touched);
    const PageRanges counted = ByCount();
    if (!skip_) {
      EXPECT_EQ(counted, allocated);
    }
  }
}

TEST(BackedPagesOfAnythingElse, AreAnError) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  for (const int fd : {-1, pipe_ends[0]}) {
    EXPECT_TRUE(absl::IsInternal(FindBackedByData(fd, kAll).status()));
  }
  EXPECT_TRUE(absl::IsUnimplemented(FindBackedByCount(-1, kAll).status()));
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

}  // namespace
}  // namespace spanpool

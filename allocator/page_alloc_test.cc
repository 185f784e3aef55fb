#include "allocator/page_alloc.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <iostream>
#include <map>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "allocator/failing_metadata_source.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

constexpr uint64_t kChunks = PageAlloc::kMaxPages / kPagesPerChunk;

PageRange Range(uint64_t first, uint64_t count) {
  return PageRange{PageId(first), PageCount(count)};
}
PageRange ChunkRange(uint64_t chunk, uint64_t count = 1) {
  return Range(chunk * kPagesPerChunk, count * kPagesPerChunk);
}

// One byte a page, scanned from the start each time.
class NaivePages {
 public:
  static constexpr uint8_t kScavenged = 1;
  static constexpr uint8_t kAllocated = 2;

  void Grow(uint64_t chunk) { chunks_[chunk].fill(kScavenged); }
  uint8_t& At(uint64_t page) { return chunks_.at(page / kPagesPerChunk)[page % kPagesPerChunk]; }
  bool Exists(uint64_t page) const { return chunks_.contains(page / kPagesPerChunk); }
  const auto& chunks() const { return chunks_; }

  // The lowest aligned run of `count` pages p with At(p) & mask == value.
  std::optional<uint64_t> Lowest(uint64_t count, uint64_t alignment, uint8_t mask, uint8_t value) {
    uint64_t run = 0;
    uint64_t next = 0;
    for (const auto& [chunk, pages] : chunks_) {
      if (chunk * kPagesPerChunk != next) run = 0;
      for (size_t i = 0; i < kPagesPerChunk; ++i) {
        if (run == 0 && i % 8 == 0 && AllAllocated(&pages[i])) {
          i += 7;
          continue;
        }
        const uint64_t page = chunk * kPagesPerChunk + i;
        if ((pages[i] & mask) != value || (run == 0 && page % alignment != 0)) {
          // A misaligned start is skipped; a run that ends too early may hide an aligned start only
          // at a multiple of the alignment, which begins a new run here.
          run = 0;
          continue;
        }
        if (++run == count) return page + 1 - count;
      }
      next = (chunk + 1) * kPagesPerChunk;
    }
    return std::nullopt;
  }

  // Counts pages with At(p) & mask == value from `first` on, up to `max`.
  uint64_t RunLength(uint64_t first, uint64_t max, uint8_t mask, uint8_t value) {
    uint64_t n = 0;
    while (n < max && Exists(first + n) && (At(first + n) & mask) == value) ++n;
    return n;
  }

  std::optional<uint64_t> HighestScavengable(uint64_t run) {
    for (auto it = chunks_.rbegin(); it != chunks_.rend(); ++it) {
      for (size_t begin = kPagesPerChunk; begin > 0;) {
        begin -= run;
        bool free = true;
        bool backed = false;
        for (size_t i = begin; free && i < begin + run; ++i) {
          free &= (it->second[i] & kAllocated) == 0;
          backed |= (it->second[i] & kScavenged) == 0;
        }
        if (free && backed) return it->first * kPagesPerChunk + begin;
      }
    }
    return std::nullopt;
  }

 private:
  static bool AllAllocated(const uint8_t* eight) {
    uint64_t word;
    std::memcpy(&word, eight, sizeof(word));
    constexpr uint64_t kAll = 0x0101010101010101u * kAllocated;
    return (word & kAll) == kAll;
  }

  std::map<uint64_t, std::array<uint8_t, kPagesPerChunk>> chunks_;
};

// Drives a PageAlloc and a NaivePages with the same random operations and compares each answer.
class Duel {
 public:
  Duel(uint64_t seed, std::vector<uint64_t> chunks_to_grow)
      : random_(seed), to_grow_(std::move(chunks_to_grow)) {
    Grow();
  }

  void Run(uint64_t operations) {
    for (uint64_t i = 0; i < operations && !testing::Test::HasFatalFailure(); ++i) {
      // Phases in which the heap fills and in which it empties.
      fill_percent_ = i / 8192 % 2 == 0 ? 56 : 44;
      Step();
      if (i % 65536 == 0) Compare();
    }
    Compare();
    while (!live_.empty()) FreeOne(false);
    Compare();
  }

  uint64_t allocations() const { return allocations_; }

 private:
  uint64_t Random(uint64_t below) { return random_() % below; }

  void Step() {
    const uint64_t dice = Random(1000);
    if (dice < 900) {
      if (Random(100) < fill_percent_) {
        AllocOne();
      } else {
        FreeOne(Random(8) == 0);
      }
    } else if (dice < 925) {
      ToggleScavenged();
    } else if (dice < 940) {
      FindScavenged();
    } else if (dice < 942) {
      TakeScavengable();
    } else if (dice < 970) {
      AllocRange();
    } else if (dice < 999) {
      CacheBlock();
    } else if (!to_grow_.empty() && Random(20) == 0) {
      Grow();
    }
  }

  void Grow() {
    const uint64_t chunk = to_grow_.back();
    to_grow_.pop_back();
    ASSERT_TRUE(pages_.Grow(ChunkRange(chunk)).ok());
    naive_.Grow(chunk);
  }

  void Mark(uint64_t first, uint64_t count, bool clear_scavenged) {
    for (uint64_t page = first; page < first + count; ++page) {
      naive_.At(page) |= NaivePages::kAllocated;
      if (clear_scavenged) naive_.At(page) &= static_cast<uint8_t>(~NaivePages::kScavenged);
    }
  }

  uint64_t CountScavenged(uint64_t first, uint64_t count) {
    uint64_t n = 0;
    for (uint64_t page = first; page < first + count; ++page) {
      n += naive_.At(page) & NaivePages::kScavenged;
    }
    return n;
  }

  void AllocOne() {
    const uint64_t dice = Random(100);
    const uint64_t n = dice < 70 ? 1 : dice < 95 ? 1 + Random(16) : 1 + Random(1200);
    const uint64_t alignment = Random(10) == 0 ? uint64_t{1} << Random(10) : 1;
    const auto want = naive_.Lowest(n, alignment, NaivePages::kAllocated, 0);
    const auto got = pages_.Alloc(PageCount(n), PageCount(alignment));
    ASSERT_EQ(got.has_value(), want.has_value()) << n << " aligned " << alignment;
    if (!got.has_value()) return;
    ASSERT_EQ(got->first, PageId(*want)) << n << " aligned " << alignment;
    ASSERT_EQ(got->scavenged, PageCount(CountScavenged(*want, n)));
    Mark(*want, n, true);
    live_.push_back(Range(*want, n));
    ++allocations_;
  }

  void FreeOne(bool scavenged) {
    if (live_.empty()) return;
    std::swap(live_[Random(live_.size())], live_.back());
    PageRange range = live_.back();
    live_.pop_back();
    if (range.count > PageCount(1) && Random(4) == 0) {  // in two parts
      const PageCount head(1 + Random(range.count.value() - 1));
      live_.push_back(PageRange{range.first + head, range.count - head});
      range.count = head;
    }
    if (scavenged) {
      pages_.FreeScavenged(range);
    } else {
      pages_.Free(range);
    }
    for (PageId page = range.first; page < range.end(); ++page) {
      uint8_t& state = naive_.At(page.value());
      state &= static_cast<uint8_t>(~NaivePages::kAllocated);
      if (scavenged) state |= NaivePages::kScavenged;
    }
  }

  uint64_t RandomPage() {
    auto it = naive_.chunks().begin();
    std::advance(it, Random(naive_.chunks().size()));
    return it->first * kPagesPerChunk + Random(kPagesPerChunk);
  }

  void ToggleScavenged() {
    const uint64_t first = RandomPage();
    const uint64_t count = naive_.RunLength(first, 1 + Random(600), 0, 0);
    const bool set = Random(3) == 0;
    if (set) {
      pages_.SetScavenged(Range(first, count));
    } else {
      pages_.ClearScavenged(Range(first, count));
    }
    for (uint64_t page = first; page < first + count; ++page) {
      naive_.At(page) &= static_cast<uint8_t>(~NaivePages::kScavenged);
      if (set) naive_.At(page) |= NaivePages::kScavenged;
    }
  }

  void FindScavenged() {
    constexpr uint8_t kBoth = NaivePages::kScavenged | NaivePages::kAllocated;
    const uint64_t max = 1 + Random(800);
    const auto want = naive_.Lowest(1, 1, kBoth, NaivePages::kScavenged);
    const auto got = pages_.FindScavenged(PageCount(max));
    ASSERT_EQ(got.has_value(), want.has_value());
    if (!got.has_value()) return;
    ASSERT_EQ(*got, Range(*want, naive_.RunLength(*want, max, kBoth, NaivePages::kScavenged)));
    if (Random(2) == 0) {  // back it, as the populater does
      pages_.AllocRange(*got);
      pages_.ClearScavenged(*got);
      pages_.Free(*got);
      for (PageId page = got->first; page < got->end(); ++page) naive_.At(page.value()) = 0;
    }
  }

  void TakeScavengable() {
    const uint64_t run = Random(4) == 0 ? uint64_t{1} << Random(10) : 256;
    const auto want = naive_.HighestScavengable(run);
    const auto got = pages_.TakeScavengable(PageCount(run));
    ASSERT_EQ(got.has_value(), want.has_value()) << run;
    if (!got.has_value()) return;
    ASSERT_EQ(*got, Range(*want, run));
    if (Random(4) == 0) {  // the system refused
      pages_.Free(*got);
      return;
    }
    pages_.FreeScavenged(*got);
    for (PageId page = got->first; page < got->end(); ++page) {
      naive_.At(page.value()) = NaivePages::kScavenged;
    }
  }

  void AllocRange() {
    const uint64_t first = RandomPage();
    const uint64_t count = naive_.RunLength(first, 1 + Random(32), NaivePages::kAllocated, 0);
    if (count == 0) return;
    pages_.AllocRange(Range(first, count));
    Mark(first, count, false);
    live_.push_back(Range(first, count));
  }

  void CacheBlock() {
    const auto want = naive_.Lowest(1, 1, NaivePages::kAllocated, 0);
    auto got = pages_.TakeBlock();
    ASSERT_EQ(got.has_value(), want.has_value());
    if (!got.has_value()) return;
    ASSERT_EQ(got->first, PageId(*want / 64 * 64));
    PageAlloc::Block back{.first = got->first};
    for (uint64_t i = 0; i < 64; ++i) {
      uint8_t& state = naive_.At(got->first.value() + i);
      const uint64_t bit = uint64_t{1} << i;
      ASSERT_EQ((got->pages & bit) != 0, (state & NaivePages::kAllocated) == 0);
      if ((got->pages & bit) == 0) continue;
      ASSERT_EQ((got->scavenged & bit) != 0, state == NaivePages::kScavenged);
      if (Random(2) == 0) {
        back.pages |= bit;
        back.scavenged |= got->scavenged & bit;
      } else {
        state = NaivePages::kAllocated;
        live_.push_back(Range(got->first.value() + i, 1));
      }
    }
    pages_.ReturnBlock(back);
  }

  void Compare() {
    pages_.CheckInvariants();
    uint64_t allocated = 0;
    uint64_t free_scavenged = 0;
    for (const auto& [chunk, states] : naive_.chunks()) {
      for (size_t i = 0; i < kPagesPerChunk; ++i) {
        const bool is_allocated = (states[i] & NaivePages::kAllocated) != 0;
        allocated += is_allocated;
        free_scavenged += states[i] == NaivePages::kScavenged;
        ASSERT_EQ(pages_.IsFree(PageId(chunk * kPagesPerChunk + i)), !is_allocated);
      }
    }
    ASSERT_EQ(pages_.allocated(), PageCount(allocated));
    ASSERT_EQ(pages_.free_scavenged(), PageCount(free_scavenged));
    ASSERT_EQ(pages_.free_backed(),
              PageCount(naive_.chunks().size() * kPagesPerChunk - allocated - free_scavenged));
  }

  std::mt19937_64 random_;
  std::vector<uint64_t> to_grow_;  // last first
  uint64_t fill_percent_ = 50;
  uint64_t allocations_ = 0;
  PageAlloc pages_;
  NaivePages naive_;
  std::vector<PageRange> live_;
};

void RunDuel(uint64_t operations, std::vector<uint64_t> chunks) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Duel duel(seed, std::move(chunks));
  duel.Run(operations);
  EXPECT_GT(duel.allocations(), operations / 10) << "the heap was full or empty most of the time";
}

#ifdef SPANPOOL_DEBUG
constexpr uint64_t kMillion = 20'000;  // sanitizers are slow; the optimised run is the proof
#else
constexpr uint64_t kMillion = 1'000'000;
#endif

TEST(PageAlloc, EqualsANaiveBitmapWhenDense) { RunDuel(6 * kMillion, {2, 0, 1}); }

TEST(PageAlloc, EqualsANaiveBitmapWhenSparse) { RunDuel(3 * kMillion, {4096, 513, 64, 7, 9, 8}); }

TEST(PageAlloc, EqualsANaiveBitmapWhen2To48BytesApart) {
  RunDuel(3 * kMillion, {kChunks - 1, kChunks / 2, 0, kChunks / 2 - 1});
}

TEST(PageAlloc, AnEmptyAllocatorHasNothing) {
  PageAlloc pages;
  EXPECT_FALSE(pages.Alloc(PageCount(1)).has_value());
  EXPECT_FALSE(pages.FindScavenged(PageCount(1)).has_value());
  EXPECT_FALSE(pages.TakeScavengable(PageCount(256)).has_value());
  EXPECT_FALSE(pages.TakeBlock().has_value());
  EXPECT_FALSE(pages.IsFree(PageId(0)));
  EXPECT_EQ(pages.metadata_bytes(), 0u);
  pages.CheckInvariants();
}

TEST(PageAlloc, NewMemoryIsFreeAndScavenged) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(ChunkRange(3, 2)).ok());
  EXPECT_EQ(pages.free_scavenged(), PageCount(2 * kPagesPerChunk));
  EXPECT_EQ(pages.free_backed(), PageCount(0));
  EXPECT_EQ(pages.allocated(), PageCount(0));
  const auto run = pages.Alloc(PageCount(5));
  ASSERT_TRUE(run.has_value());
  EXPECT_EQ(run->first, PageId(3 * kPagesPerChunk));
  EXPECT_EQ(run->scavenged, PageCount(5));
  pages.Free(PageRange{run->first, PageCount(5)});
  EXPECT_EQ(pages.free_backed(), PageCount(5));
  EXPECT_EQ(pages.Alloc(PageCount(8))->scavenged, PageCount(3));
}

TEST(PageAlloc, RunsCrossTheBordersOfEveryLevel) {
  // 32 GiB: two root entries, with a border of every level at 16 GiB.
  constexpr uint64_t kBorder = uint64_t{1} << 21;
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(Range(0, 2 * kBorder)).ok());
  ASSERT_TRUE(pages.Alloc(PageCount(2 * kBorder)).has_value());
  EXPECT_FALSE(pages.Alloc(PageCount(1)).has_value());
  for (uint64_t half = 1; half <= kBorder; half *= 8) {
    pages.Free(Range(kBorder - half, 2 * half));
    pages.CheckInvariants();
    EXPECT_FALSE(pages.Alloc(PageCount(2 * half + 1)).has_value());
    const auto run = pages.Alloc(PageCount(2 * half));
    ASSERT_TRUE(run.has_value()) << half;
    EXPECT_EQ(run->first, PageId(kBorder - half));
  }
}

TEST(PageAlloc, ARunLongerThanARootEntryIsFound) {
  constexpr uint64_t kRoot = uint64_t{1} << 21;
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(Range(0, 4 * kRoot)).ok());
  ASSERT_EQ(pages.Alloc(PageCount(1))->first, PageId(0));
  ASSERT_EQ(pages.Alloc(PageCount(3 * kRoot))->first, PageId(1));
  ASSERT_EQ(pages.Alloc(PageCount(kRoot / 2), PageCount(kRoot / 2))->first,
            PageId(3 * kRoot + kRoot / 2));
  pages.CheckInvariants();
}

TEST(PageAlloc, RequestsBeyondTheIndexFindNothing) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(ChunkRange(0)).ok());
  EXPECT_FALSE(pages.Alloc(PageCount(UINT64_MAX)).has_value());
  EXPECT_FALSE(pages.Alloc(PageCount(1), PageCount(uint64_t{1} << 63)).has_value());
  EXPECT_FALSE(pages.Alloc(PageCount(kPagesPerChunk + 1)).has_value());
  pages.CheckInvariants();
}

TEST(PageAlloc, TheWholeIndexCostsLittleMemoryWhereLittleExists) {
  PageAlloc pages;
  // One arena at each end of 2^48 bytes.
  ASSERT_TRUE(pages.Grow(Range(0, kPagesPerArena)).ok());
  ASSERT_TRUE(pages.Grow(Range(PageAlloc::kMaxPages - kPagesPerArena, kPagesPerArena)).ok());
  EXPECT_LE(pages.metadata_bytes(), 200u << 10);
  ASSERT_EQ(pages.Alloc(PageCount(kPagesPerArena))->first, PageId(0));
  ASSERT_EQ(pages.Alloc(PageCount(kPagesPerArena))->first,
            PageId(PageAlloc::kMaxPages - kPagesPerArena));
  EXPECT_FALSE(pages.Alloc(PageCount(1)).has_value());
  pages.CheckInvariants();
}

TEST(PageAlloc, MetadataIsASmallPartOfALargeHeap) {
  PageAlloc pages;
  constexpr uint64_t kPages = (uint64_t{1} << 40) / kPageBytes;  // 1 TiB
  ASSERT_TRUE(pages.Grow(Range(0, kPages)).ok());
  EXPECT_LE(pages.metadata_bytes(), (uint64_t{1} << 40) / 25'000);
}

TEST(PageAlloc, ScavengedMemoryIsTakenFromTheTopAndFoundFromTheBottom) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(ChunkRange(0, 2)).ok());
  pages.ClearScavenged(ChunkRange(0, 2));
  ASSERT_EQ(pages.Alloc(PageCount(300))->first, PageId(0));
  EXPECT_EQ(pages.TakeScavengable(PageCount(256)), Range(768, 256));
  EXPECT_EQ(pages.TakeScavengable(PageCount(256)), Range(512, 256));
  // The run at 256 is partly allocated; taken runs are nobody's to take again.
  EXPECT_FALSE(pages.TakeScavengable(PageCount(256)).has_value());
  EXPECT_EQ(pages.allocated(), PageCount(300 + 512));
  pages.FreeScavenged(Range(768, 256));
  pages.Free(Range(512, 256));  // the system refused: still backed
  EXPECT_EQ(pages.free_scavenged(), PageCount(256));
  EXPECT_EQ(pages.FindScavenged(PageCount(1000)), Range(768, 256));
  EXPECT_EQ(pages.TakeScavengable(PageCount(256)), Range(512, 256));
  pages.CheckInvariants();
}

TEST(PageAlloc, AFailureAnywhereInGrowthChangesNothing) {
  int failures = 0;
  for (int allowed = 0;; ++allowed) {
    FailingMetadataSource metadata(allowed);
    PageAlloc pages(&metadata);
    absl::Status status = pages.Grow(ChunkRange(0));
    if (status.ok()) status = pages.Grow(ChunkRange(kChunks - 1));
    pages.CheckInvariants();
    if (!metadata.hit()) {
      EXPECT_TRUE(status.ok());
      break;
    }
    ++failures;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    const PageCount before = pages.free_scavenged();
    metadata.Heal();
    ASSERT_TRUE(pages.Grow(ChunkRange(7)).ok());
    EXPECT_EQ(pages.free_scavenged(), before + PageCount(kPagesPerChunk));
    EXPECT_TRUE(pages.Alloc(PageCount(kPagesPerChunk)).has_value());
    pages.CheckInvariants();
  }
  EXPECT_EQ(failures, 6 + 6 + 6);  // reservations, then commits of each growth
}

TEST(PageAllocDeathTest, FreeingAFreePageIsABug) {
  PageAlloc pages;
  ASSERT_TRUE(pages.Grow(ChunkRange(0)).ok());
  ASSERT_EQ(pages.Alloc(PageCount(4))->first, PageId(0));
  EXPECT_DEATH(pages.Free(Range(3, 2)), "check failed");
  EXPECT_DEATH(pages.AllocRange(Range(3, 2)), "check failed");
  EXPECT_DEATH(pages.Free(Range(512, 1)), "check failed");
  EXPECT_DEATH((void)pages.Grow(ChunkRange(0)), "check failed");
}

}  // namespace
}  // namespace spanpool

#include "allocator/chunk_bits.h"

#include <gtest/gtest.h>

#include <random>

#include "allocator/page_summary.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

PageSummary Look(const ChunkBits& bits) {
  uint64_t start = 0;
  uint64_t max = 0;
  uint64_t run = 0;
  for (size_t i = 0; i < kPagesPerChunk; ++i) {
    run = bits.Get(i) ? 0 : run + 1;
    max = std::max(max, run);
    if (run == i + 1) start = run;
  }
  return PageSummary(PageCount(start), PageCount(max), PageCount(run));
}

ptrdiff_t LookFor(const ChunkBits& bits, size_t count, size_t from, size_t carry) {
  size_t run = carry;
  if (run >= count) return -static_cast<ptrdiff_t>(run);
  for (size_t i = from; i < kPagesPerChunk; ++i) {
    run = bits.Get(i) ? 0 : run + 1;
    if (run == count) return static_cast<ptrdiff_t>(i + 1) - static_cast<ptrdiff_t>(count);
  }
  return ChunkBits::kNone;
}

// Patterns from nearly full to nearly empty, of long runs and of short ones.
ChunkBits RandomBits(std::mt19937_64& random) {
  ChunkBits bits{};
  const size_t longest = size_t{1} << (random() % 10);
  const bool mostly_used = random() % 2 == 0;
  for (size_t i = 0; i < kPagesPerChunk;) {
    const size_t used = 1 + random() % (mostly_used ? longest : 2);
    const size_t free = 1 + random() % (mostly_used ? 2 : longest);
    bits.Set(i, std::min(used, kPagesPerChunk - i));
    i += used + free;
  }
  return bits;
}

TEST(ChunkBits, EveryRangeIsSetCountedAndCleared) {
  for (size_t begin = 0; begin < kPagesPerChunk; begin += 13) {
    for (size_t count = 1; begin + count <= kPagesPerChunk; count += 7) {
      ChunkBits bits{};
      bits.Set(begin, count);
      ASSERT_EQ(bits.Count(0, kPagesPerChunk), count);
      ASSERT_TRUE(bits.AllSet(begin, count));
      ASSERT_EQ(bits.TrailingZeroes(), kPagesPerChunk - begin - count);
      if (begin > 0) {
        ASSERT_TRUE(bits.NoneSet(0, begin));
      }
      bits.Clear(begin, count);
      ASSERT_TRUE(bits.NoneSet(0, kPagesPerChunk));
    }
  }
}

TEST(ChunkBits, TheSummaryOfASingleRunIsThatRun) {
  for (size_t begin = 0; begin < kPagesPerChunk; ++begin) {
    for (size_t count = 1; begin + count <= kPagesPerChunk; ++count) {
      ChunkBits bits{};
      bits.Set(0, kPagesPerChunk);
      bits.Clear(begin, count);
      const bool at_end = begin + count == kPagesPerChunk;
      ASSERT_EQ(bits.SummarizeZeroes(),
                PageSummary(PageCount(begin == 0 ? count : 0), PageCount(count),
                            PageCount(at_end ? count : 0)))
          << begin << "+" << count;
      for (size_t want : {count - 1, count, count + 1}) {
        if (want == 0) continue;
        ASSERT_EQ(bits.FindZeroes(want, 0, 0), LookFor(bits, want, 0, 0)) << begin << "+" << count;
      }
    }
  }
}

TEST(ChunkBits, SummariesAndSearchesEqualLookingAtEveryBit) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 20000; ++round) {
    const ChunkBits bits = RandomBits(random);
    ASSERT_EQ(bits.SummarizeZeroes(), Look(bits));
    const size_t count = 1 + random() % (size_t{1} << (random() % 11));
    const size_t from = random() % 2 == 0 ? 0 : random() % kPagesPerChunk;
    const size_t carry = from == 0 && count > 1 ? random() % count : 0;
    ASSERT_EQ(bits.FindZeroes(count, from, carry), LookFor(bits, count, from, carry))
        << count << " from " << from << " carry " << carry;
  }
}

}  // namespace
}  // namespace spanpool

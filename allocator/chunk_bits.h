// The bitmap of one chunk: 512 pages, one bit each.
//
// The page allocator keeps two per chunk: which pages are allocated, and which have no memory
// behind them. Positions and lengths here are indices inside the chunk, 0 … 512.
//
// Plain data: all zeroes is a valid value. Not thread-safe; guarded as the page allocator is.

#ifndef SPANPOOL_ALLOCATOR_CHUNK_BITS_H_
#define SPANPOOL_ALLOCATOR_CHUNK_BITS_H_

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "allocator/page_summary.h"

namespace spanpool {

inline constexpr size_t kChunkPagesShift = 9;
inline constexpr size_t kPagesPerChunk = size_t{1} << kChunkPagesShift;  // 4 MiB
inline constexpr size_t kChunkWords = kPagesPerChunk / 64;

struct ChunkBits {
  uint64_t words[kChunkWords];

  bool Get(size_t i) const { return (words[i / 64] >> (i % 64) & 1) != 0; }

  // Each of these works on the bits [begin, begin + count), count >= 1.
  void Set(size_t begin, size_t count) {
    ForEachWord(begin, count, [](uint64_t& word, uint64_t mask) { word |= mask; });
  }
  void Clear(size_t begin, size_t count) {
    ForEachWord(begin, count, [](uint64_t& word, uint64_t mask) { word &= ~mask; });
  }
  bool AllSet(size_t begin, size_t count) const { return Count(begin, count) == count; }
  bool NoneSet(size_t begin, size_t count) const { return Count(begin, count) == 0; }
  size_t Count(size_t begin, size_t count) const {
    size_t sum = 0;
    const_cast<ChunkBits*>(this)->ForEachWord(begin, count, [&sum](uint64_t& word, uint64_t mask) {
      sum += static_cast<size_t>(std::popcount(word & mask));
    });
    return sum;
  }

  // The runs of zeroes, summed up.
  PageSummary SummarizeZeroes() const;

  // Zeroes before the end: how long the last run is.
  size_t TrailingZeroes() const;

  // First position at or after `from` where a run of `count` zeroes begins, counting the `carry`
  // zeroes that the neighbour below ends with as lying before position 0 (then the result may be
  // negative). Only bits at or after `from` count as zero; a carry requires from == 0. If there is
  // none, returns kNone.
  static constexpr ptrdiff_t kNone = kPagesPerChunk;
  ptrdiff_t FindZeroes(size_t count, size_t from, size_t carry) const;

 private:
  template <typename F>
  void ForEachWord(size_t begin, size_t count, F f) {
    const size_t end = begin + count;
    for (size_t i = begin / 64; i * 64 < end; ++i) {
      uint64_t mask = ~uint64_t{0};
      if (begin > i * 64) mask &= ~uint64_t{0} << (begin - i * 64);
      if (end < i * 64 + 64) mask &= ~uint64_t{0} >> (i * 64 + 64 - end);
      f(words[i], mask);
    }
  }
};
static_assert(sizeof(ChunkBits) == 64);

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_CHUNK_BITS_H_

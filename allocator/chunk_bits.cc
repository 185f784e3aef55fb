#include "allocator/chunk_bits.h"

#include "allocator/units.h"

namespace spanpool {
namespace {

// Bit i of the result: the bits i … i + count - 1 of `ones` are all set. 1 <= count <= 64.
// Doubling what is known needs log2(count) steps.
uint64_t RunStarts(uint64_t ones, size_t count) {
  size_t known = 1;
  while (known < count && ones != 0) {
    const size_t step = std::min(known, count - known);
    ones &= ones >> step;
    known += step;
  }
  return ones;
}

}  // namespace

PageSummary ChunkBits::SummarizeZeroes() const {
  size_t start = 0;
  bool only_zeroes_so_far = true;
  size_t max = 0;
  size_t run = 0;  // zeroes up to the current position
  for (const uint64_t word : words) {
    if (word == 0) {
      run += 64;
      continue;
    }
    run += static_cast<size_t>(std::countr_zero(word));
    if (only_zeroes_so_far) {
      start = run;
      only_zeroes_so_far = false;
    }
    max = std::max(max, run);
    run = static_cast<size_t>(std::countl_zero(word));
  }
  if (only_zeroes_so_far) return PageSummary::AllFree(PageCount(kPagesPerChunk));
  max = std::max(max, run);
  // What is left are runs inside a word, at most 62 long. Look only for longer ones than known.
  for (const uint64_t word : words) {
    if (max >= 62) break;
    for (uint64_t starts = RunStarts(~word, max + 1); starts != 0; starts &= ~word >> max) ++max;
  }
  return PageSummary(PageCount(start), PageCount(max), PageCount(run));
}

size_t ChunkBits::TrailingZeroes() const {
  size_t run = 0;
  for (size_t i = kChunkWords; i-- > 0; run += 64) {
    if (words[i] != 0) return run + static_cast<size_t>(std::countl_zero(words[i]));
  }
  return run;
}

ptrdiff_t ChunkBits::FindZeroes(size_t count, size_t from, size_t carry) const {
  size_t run = carry;  // zeroes that end right before the current word
  for (size_t i = from / 64; i < kChunkWords; ++i) {
    uint64_t zeroes = ~words[i];
    if (from > i * 64) zeroes &= ~uint64_t{0} << (from - i * 64);
    const size_t leading = static_cast<size_t>(std::countr_one(zeroes));
    if (run + leading >= count) return static_cast<ptrdiff_t>(i * 64) - static_cast<ptrdiff_t>(run);
    if (leading == 64) {
      run += 64;
      continue;
    }
    if (count < 64) {
      const uint64_t starts = RunStarts(zeroes, count);
      if (starts != 0) {
        return static_cast<ptrdiff_t>(i * 64 + static_cast<size_t>(std::countr_zero(starts)));
      }
    }
    run = static_cast<size_t>(std::countl_one(zeroes));
  }
  return kNone;
}

}  // namespace spanpool

// Reads every byte of a payload, as fast as memory gives it: what "the peer reads it" means here.

#ifndef SPANPOOL_BENCH_WORD_SUM_H_
#define SPANPOOL_BENCH_WORD_SUM_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace spanpool::bench {

// The sum, modulo 2^64, of `bytes` bytes as words of 64 bits. Requires a multiple of 64 bytes.
inline uint64_t WordSum(const void* data, size_t bytes) {
  // Several sums, so that no addition waits for the one before it.
  uint64_t sums[8] = {};
  const char* at = static_cast<const char*>(data);
  for (const char* const end = at + bytes; at != end; at += sizeof(sums)) {
    for (size_t i = 0; i < 8; ++i) {
      uint64_t word;
      std::memcpy(&word, at + i * sizeof(word), sizeof(word));
      sums[i] += word;
    }
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_WORD_SUM_H_

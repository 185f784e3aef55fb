// Picks allocations for a profile, so that the profile says what a full record would, but for
// noise.
//
// Bytes are sampled at random with a mean distance of 512 KiB: the distance to the next sampled
// byte is drawn from an exponential distribution, so every byte has the same chance whatever came
// before, and no rhythm of the program can hide from it. An allocation is picked if a sampled byte
// falls into it: with probability 1 - e^(-size / mean). Dividing by that undoes the bias towards
// large ones: each picked allocation stands for 1 / (1 - e^(-size / mean)) of its size.
//
// The cost is a subtraction and a comparison per allocation. Not thread-safe: one per thread.

#ifndef SPANPOOL_ALLOCATOR_SAMPLER_H_
#define SPANPOOL_ALLOCATOR_SAMPLER_H_

#include <cmath>
#include <cstdint>

#include "absl/base/optimization.h"

namespace spanpool {

class Sampler {
 public:
  static constexpr uint64_t kMeanBytes = 512 << 10;

  // Samplers with different seeds pick independently; a mean of 0 picks nothing, 1 everything.
  explicit Sampler(uint64_t seed, uint64_t mean_bytes = kMeanBytes);

  // Whether the allocation of `bytes` bytes that is being made is picked.
  bool Pick(uint64_t bytes) {
    if (ABSL_PREDICT_TRUE(bytes < left_)) {
      left_ -= bytes;
      return false;
    }
    return PickSlow();
  }

  // How many allocations of `bytes` bytes one that was picked stands for.
  static double Weight(uint64_t bytes, uint64_t mean_bytes = kMeanBytes) {
    if (mean_bytes <= 1 || bytes == 0) return 1;
    return -1 / std::expm1(-static_cast<double>(bytes) / static_cast<double>(mean_bytes));
  }

 private:
  bool PickSlow();
  uint64_t Draw();

  const uint64_t mean_;
  uint64_t state_;  // of the generator
  uint64_t left_;   // bytes before the next sampled one, and it
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SAMPLER_H_

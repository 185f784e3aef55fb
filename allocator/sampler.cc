#include "allocator/sampler.h"

#include <algorithm>

namespace spanpool {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): fine for any seed, 0 included.
uint64_t NextRandom(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

Sampler::Sampler(uint64_t seed, uint64_t mean_bytes)
    : mean_(mean_bytes), state_(seed), left_(Draw()) {}

bool Sampler::PickSlow() {
  if (mean_ == 0) return false;
  left_ = Draw();
  return true;
}

uint64_t Sampler::Draw() {
  if (mean_ == 0) return UINT64_MAX;
  if (mean_ == 1) return 0;
  // Uniform in (0, 1]: 53 bits, never 0, so the logarithm is finite.
  const double uniform =
      (static_cast<double>(NextRandom(&state_) >> 11) + 1) / static_cast<double>(uint64_t{1} << 53);
  return std::max<uint64_t>(1,
                            static_cast<uint64_t>(-std::log(uniform) * static_cast<double>(mean_)));
}

}  // namespace spanpool

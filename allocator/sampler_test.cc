#include "allocator/sampler.h"

#include <gtest/gtest.h>

#include <cmath>

namespace spanpool {
namespace {

// The seeds are fixed: three standard deviations are exceeded once in 370 times by right.
TEST(Sampler, TheUnbiasedEstimateIsWithinThreeStandardDeviationsOfTheTruth) {
  for (const uint64_t size : {64, 1000, 32768, 524288, 4 << 20}) {
    Sampler sampler(/*seed=*/size);
    const double p = -std::expm1(-static_cast<double>(size) / Sampler::kMeanBytes);
    const uint64_t allocations = static_cast<uint64_t>(20000 / p);
    double estimate = 0;
    for (uint64_t i = 0; i < allocations; ++i) {
      if (sampler.Pick(size)) estimate += Sampler::Weight(size);
    }
    const double n = static_cast<double>(allocations);
    const double sigma = std::sqrt(n * (1 - p) / p);
    EXPECT_NEAR(estimate, n, 3 * sigma + 1) << size << " bytes";
  }
}

TEST(Sampler, AMixtureIsEstimatedSizeBySize) {
  Sampler sampler(/*seed=*/42);
  constexpr uint64_t kSizes[] = {48, 4096, 100000};
  double estimates[3] = {};
  constexpr int kRounds = 300000;
  for (int i = 0; i < kRounds; ++i) {
    for (int k = 0; k < 3; ++k) {
      if (sampler.Pick(kSizes[k])) estimates[k] += Sampler::Weight(kSizes[k]);
    }
  }
  for (int k = 0; k < 3; ++k) {
    const double p = -std::expm1(-static_cast<double>(kSizes[k]) / Sampler::kMeanBytes);
    EXPECT_NEAR(estimates[k], kRounds, 3 * std::sqrt(kRounds * (1 - p) / p)) << kSizes[k];
  }
}

TEST(Sampler, AMeanOfOnePicksEverythingAndOfZeroNothing) {
  Sampler all(1, 1);
  Sampler none(1, 0);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(all.Pick(8));
    EXPECT_FALSE(none.Pick(UINT64_MAX));
  }
  EXPECT_EQ(Sampler::Weight(100, 1), 1);
}

TEST(Sampler, SeedsDiffer) {
  Sampler a(1);
  Sampler b(2);
  int differences = 0;
  for (int i = 0; i < 10000; ++i) differences += a.Pick(65536) != b.Pick(65536);
  EXPECT_GT(differences, 100);
}

}  // namespace
}  // namespace spanpool

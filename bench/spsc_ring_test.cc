#include "bench/spsc_ring.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <thread>

namespace spanpool::bench {
namespace {

TEST(SpscRing, ValuesArriveOnceAndInOrder) {
  constexpr uintptr_t kCount = 100'000;
  const auto ring = std::make_unique<SpscRing<uintptr_t, 8>>();
  std::thread producer([&] {
    for (uintptr_t i = 1; i <= kCount; ++i) ring->Push(i);
  });
  for (uintptr_t i = 1; i <= kCount; ++i) {
    ASSERT_EQ(ring->Front(), i);
    ASSERT_EQ(ring->Pop(), i);
  }
  producer.join();
}

}  // namespace
}  // namespace spanpool::bench

#include "bench/alloc/spsc_ring.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <thread>

namespace spanpool::bench {
namespace {

TEST(SpscRing, PointersArriveOnceAndInOrder) {
  constexpr uintptr_t kCount = 100'000;
  const auto ring = std::make_unique<SpscRing<8>>();
  std::thread producer([&] {
    for (uintptr_t i = 1; i <= kCount; ++i) ring->Push(reinterpret_cast<void*>(i));
  });
  for (uintptr_t i = 1; i <= kCount; ++i) {
    ASSERT_EQ(ring->Pop(), reinterpret_cast<void*>(i));
  }
  producer.join();
}

}  // namespace
}  // namespace spanpool::bench

#include "bench/trace/block_allocators.h"

#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <vector>

namespace spanpool::bench {
namespace {

class BlockAllocators : public testing::TestWithParam<std::string> {};

TEST_P(BlockAllocators, BlocksAreAlignedAndNeverOverlap) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const auto allocator = MakeBlockAllocator(GetParam());
  ASSERT_NE(allocator, nullptr);
  struct Block {
    unsigned char* data;
    size_t bytes;
    unsigned char fill;
  };
  std::vector<Block> live;
  const auto give_back = [&](size_t i) {
    std::swap(live[i], live.back());
    const Block block = live.back();
    live.pop_back();
    for (size_t j = 0; j < block.bytes; ++j) ASSERT_EQ(block.data[j], block.fill);
    allocator->Free(block.data, block.bytes);
  };
  for (int i = 0; i < 20'000; ++i) {
    if (random() % 100 < (i / 2000 % 2 == 0 ? 60u : 40u)) {
      const size_t bytes = 1 + random() % (size_t{1} << (random() % 17));
      const size_t alignment = random() % 10 == 0 ? size_t{1} << (4 + random() % 12) : 16;
      auto* data = static_cast<unsigned char*>(allocator->Alloc(bytes, alignment));
      ASSERT_NE(data, nullptr);
      const size_t wanted = alignment > 16 ? alignment : bytes >= 16 ? 16 : 8;
      ASSERT_EQ(reinterpret_cast<uintptr_t>(data) % wanted, 0u) << bytes << " " << alignment;
      const size_t usable = allocator->Usable(data, bytes);
      ASSERT_GE(usable, bytes);
      live.push_back({data, usable, static_cast<unsigned char>(random())});
      std::memset(data, live.back().fill, usable);
      live.back().bytes = usable;
    } else if (!live.empty()) {
      give_back(random() % live.size());
      if (HasFatalFailure()) return;
    }
  }
  while (!live.empty() && !HasFatalFailure()) give_back(live.size() - 1);
}

INSTANTIATE_TEST_SUITE_P(All, BlockAllocators,
                         testing::Values("malloc", "linear", "free_list", "size_class"),
                         [](const auto& info) { return info.param; });

TEST(MakeBlockAllocator, AnUnknownNameIsNoAllocator) {
  EXPECT_EQ(MakeBlockAllocator("buddy"), nullptr);
}

}  // namespace
}  // namespace spanpool::bench

#include "allocator/linear_alloc.h"

#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <map>
#include <random>
#include <vector>

#include "allocator/failing_metadata_source.h"
#include "allocator/metadata_source.h"

namespace spanpool {
namespace {

TEST(LinearAlloc, HandsOutAscendingAlignedPositionsUntilTheEnd) {
  LinearAlloc linear(10, 100);
  EXPECT_EQ(linear.Alloc(3, 1), 10u);
  EXPECT_EQ(linear.Alloc(3, 8), 16u);
  EXPECT_EQ(linear.Alloc(0, 1), 19u);
  EXPECT_EQ(linear.Alloc(81, 1), 19u);
  EXPECT_FALSE(linear.Alloc(1, 1).has_value());
  EXPECT_EQ(linear.Alloc(0, 1), 100u);
  linear.CheckInvariants();
}

TEST(LinearAlloc, ARefusedRequestChangesNothing) {
  LinearAlloc linear(0, 100);
  ASSERT_EQ(linear.Alloc(60, 1), 0u);
  EXPECT_FALSE(linear.Alloc(41, 1).has_value());
  EXPECT_FALSE(linear.Alloc(1, 128).has_value());
  EXPECT_FALSE(linear.Alloc(UINT64_MAX, 1).has_value());
  EXPECT_FALSE(linear.Alloc(UINT64_MAX, uint64_t{1} << 63).has_value());
  EXPECT_EQ(linear.next(), 60u);
  EXPECT_EQ(linear.Alloc(40, 1), 60u);
}

TEST(LinearAlloc, WorksUpToTheLastBytesOfTheNumberRange) {
  LinearAlloc linear(UINT64_MAX - 100, UINT64_MAX);
  EXPECT_FALSE(linear.Alloc(1, 256).has_value());
  EXPECT_FALSE(linear.Alloc(101, 1).has_value());
  EXPECT_EQ(linear.Alloc(100, 1), UINT64_MAX - 100);
}

TEST(LinearAlloc, AnEmptyOneHasNothing) {
  LinearAlloc linear;
  EXPECT_FALSE(linear.Alloc(1, 1).has_value());
  linear.CheckInvariants();
}

TEST(LinearAlloc, EveryByteHandedOutIsBackedExactlyOnceWhateverTheSize) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 200; ++round) {
    const uint64_t begin = random() % 10'000;
    const uint64_t end = begin + random() % 200'000;
    uint64_t backed_to = begin;
    LinearAlloc linear(begin, end, [&](uint64_t from, uint64_t bytes) {
      EXPECT_EQ(from, backed_to);
      EXPECT_GT(bytes, 0u);
      backed_to = from + bytes;
      return true;
    });
    while (true) {
      const uint64_t bytes = 1 + random() % (random() % 4 == 0 ? 20'000 : 5000);
      const uint64_t alignment = uint64_t{1} << random() % 13;
      const auto position = linear.Alloc(bytes, alignment);
      linear.CheckInvariants();
      if (!position.has_value()) break;
      ASSERT_EQ(*position % alignment, 0u);
      ASSERT_EQ(*position + bytes, linear.next());
      ASSERT_LE(linear.next(), backed_to);
      ASSERT_LE(backed_to, end);
      ASSERT_EQ(backed_to, linear.committed());
      ASSERT_LT(backed_to - linear.next(), kOsPageBytes) << "more than needed";
    }
  }
}

TEST(LinearAlloc, WhenBackingFailsNothingIsAllocated) {
  bool works = false;
  LinearAlloc linear(0, 1 << 20, [&works](uint64_t, uint64_t) { return works; });
  EXPECT_FALSE(linear.Alloc(1, 1).has_value());
  linear.CheckInvariants();
  works = true;
  EXPECT_EQ(linear.Alloc(1, 1), 0u);
  works = false;
  EXPECT_EQ(linear.Alloc(kOsPageBytes - 1, 1), 1u);
  EXPECT_FALSE(linear.Alloc(1, 1).has_value());
  EXPECT_EQ(linear.next(), kOsPageBytes);
}

TEST(PersistentAlloc, MemoryIsZeroedAlignedDisjointAndKeepsItsContents) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  PersistentAlloc persistent;
  struct Piece {
    unsigned char* data;
    size_t bytes;
    unsigned char fill;
  };
  std::vector<Piece> pieces;
  uint64_t sum = 0;
  for (int i = 0; i < 3000; ++i) {
    const size_t bytes = 1 + random() % (random() % 100 == 0 ? 200'000 : 2000);
    const size_t alignment = size_t{1} << random() % 13;
    auto* data = static_cast<unsigned char*>(persistent.Alloc(bytes, alignment));
    ASSERT_NE(data, nullptr);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(data) % alignment, 0u);
    for (size_t j = 0; j < bytes; ++j) ASSERT_EQ(data[j], 0);
    pieces.push_back({data, bytes, static_cast<unsigned char>(1 + random() % 255)});
    std::memset(data, pieces.back().fill, bytes);
    sum += bytes;
    persistent.CheckInvariants();
  }
  for (const Piece& piece : pieces) {
    for (size_t j = 0; j < piece.bytes; ++j) ASSERT_EQ(piece.data[j], piece.fill);
  }
  EXPECT_GE(persistent.committed_bytes(), sum);
}

TEST(PersistentAlloc, SmallRequestsShareOsPagesAndLargeOnesWasteLessThanOne) {
  PersistentAlloc persistent;
  EXPECT_EQ(persistent.committed_bytes(), 0u);
  for (int i = 0; i < 10; ++i) ASSERT_NE(persistent.Alloc(100, 8), nullptr);
  EXPECT_EQ(persistent.committed_bytes(), kOsPageBytes);
  ASSERT_NE(persistent.Alloc(PersistentAlloc::kDirectBytes + 1, 64), nullptr);
  EXPECT_EQ(persistent.committed_bytes(), 2 * kOsPageBytes + PersistentAlloc::kDirectBytes);
  EXPECT_EQ(persistent.Alloc(SIZE_MAX, 1), nullptr);
}

TEST(PersistentAlloc, AnyRefusalBySystemIsSurvived) {
  int failures = 0;
  for (int allowed = 0;; ++allowed) {
    FailingMetadataSource metadata(allowed);
    PersistentAlloc persistent(&metadata);
    bool all = true;
    for (int i = 0; i < 100; ++i) all &= persistent.Alloc(5000, 64) != nullptr;
    all &= persistent.Alloc(100'000, 64) != nullptr;
    persistent.CheckInvariants();
    ASSERT_EQ(all, !metadata.hit());
    if (!metadata.hit()) break;
    ++failures;
    metadata.Heal();
    ASSERT_NE(persistent.Alloc(5000, 64), nullptr);
    ASSERT_NE(persistent.Alloc(100'000, 64), nullptr);
    persistent.CheckInvariants();
  }
  EXPECT_GT(failures, 100);
}

TEST(LinearAllocDeathTest, AnAlignmentThatIsNoPowerOfTwoIsABug) {
  LinearAlloc linear(0, 100);
  EXPECT_DEATH((void)linear.Alloc(1, 3), "check failed");
  EXPECT_DEATH((void)linear.Alloc(1, 0), "check failed");
}

}  // namespace
}  // namespace spanpool

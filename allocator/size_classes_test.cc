#include "allocator/size_classes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace spanpool {
namespace {

// The table of the Go runtime (sizeclasses.go): class, block bytes, span bytes, blocks, tail waste,
// largest waste in hundredths of a percent, guaranteed alignment.
struct Row {
  uint8_t size_class;
  uint32_t block_bytes;
  uint32_t span_bytes;
  uint32_t blocks;
  uint32_t tail_bytes;
  uint32_t max_waste;
  uint32_t alignment;
};

constexpr Row kTable[] = {
    {1, 8, 8192, 1024, 0, 8750, 8},        {2, 16, 8192, 512, 0, 4375, 16},
    {3, 24, 8192, 341, 8, 2924, 8},        {4, 32, 8192, 256, 0, 2188, 32},
    {5, 48, 8192, 170, 32, 3152, 16},      {6, 64, 8192, 128, 0, 2344, 64},
    {7, 80, 8192, 102, 32, 1907, 16},      {8, 96, 8192, 85, 32, 1595, 32},
    {9, 112, 8192, 73, 16, 1356, 16},      {10, 128, 8192, 64, 0, 1172, 128},
    {11, 144, 8192, 56, 128, 1182, 16},    {12, 160, 8192, 51, 32, 973, 32},
    {13, 176, 8192, 46, 96, 959, 16},      {14, 192, 8192, 42, 128, 925, 64},
    {15, 208, 8192, 39, 80, 812, 16},      {16, 224, 8192, 36, 128, 815, 32},
    {17, 240, 8192, 34, 32, 662, 16},      {18, 256, 8192, 32, 0, 586, 256},
    {19, 288, 8192, 28, 128, 1216, 32},    {20, 320, 8192, 25, 192, 1180, 64},
    {21, 352, 8192, 23, 96, 988, 32},      {22, 384, 8192, 21, 128, 951, 128},
    {23, 416, 8192, 19, 288, 1071, 32},    {24, 448, 8192, 18, 128, 837, 64},
    {25, 480, 8192, 17, 32, 682, 32},      {26, 512, 8192, 16, 0, 605, 512},
    {27, 576, 8192, 14, 128, 1233, 64},    {28, 640, 8192, 12, 512, 1548, 128},
    {29, 704, 8192, 11, 448, 1393, 64},    {30, 768, 8192, 10, 512, 1394, 256},
    {31, 896, 8192, 9, 128, 1552, 128},    {32, 1024, 8192, 8, 0, 1240, 1024},
    {33, 1152, 8192, 7, 128, 1241, 128},   {34, 1280, 8192, 6, 512, 1555, 256},
    {35, 1408, 16384, 11, 896, 1400, 128}, {36, 1536, 8192, 5, 512, 1400, 512},
    {37, 1792, 16384, 9, 256, 1557, 256},  {38, 2048, 8192, 4, 0, 1245, 2048},
    {39, 2304, 16384, 7, 256, 1246, 256},  {40, 2688, 8192, 3, 128, 1559, 128},
    {41, 3072, 24576, 8, 0, 1247, 1024},   {42, 3200, 16384, 5, 384, 622, 128},
    {43, 3456, 24576, 7, 384, 883, 128},   {44, 4096, 8192, 2, 0, 1560, 4096},
    {45, 4864, 24576, 5, 256, 1665, 256},  {46, 5376, 16384, 3, 256, 1092, 256},
    {47, 6144, 24576, 4, 0, 1248, 2048},   {48, 6528, 32768, 5, 128, 623, 128},
    {49, 6784, 40960, 6, 256, 436, 128},   {50, 6912, 49152, 7, 768, 337, 256},
    {51, 8192, 8192, 1, 0, 1561, 8192},    {52, 9472, 57344, 6, 512, 1428, 256},
    {53, 9728, 49152, 5, 512, 364, 512},   {54, 10240, 40960, 4, 0, 499, 2048},
    {55, 10880, 32768, 3, 128, 624, 128},  {56, 12288, 24576, 2, 0, 1145, 4096},
    {57, 13568, 40960, 3, 256, 999, 256},  {58, 14336, 57344, 4, 0, 535, 2048},
    {59, 16384, 16384, 1, 0, 1249, 8192},  {60, 18432, 73728, 4, 0, 1111, 2048},
    {61, 19072, 57344, 3, 128, 357, 128},  {62, 20480, 40960, 2, 0, 687, 4096},
    {63, 21760, 65536, 3, 256, 625, 256},  {64, 24576, 24576, 1, 0, 1145, 8192},
    {65, 27264, 81920, 3, 128, 1000, 128}, {66, 28672, 57344, 2, 0, 491, 4096},
    {67, 32768, 32768, 1, 0, 1250, 8192},
};
static_assert(std::size(kTable) == kNumSizeClasses - 1);

TEST(SizeClasses, TheRulesYieldTheTable) {
  uint32_t previous_bytes = 0;
  for (const Row& row : kTable) {
    SCOPED_TRACE(+row.size_class);
    const SizeClass c(row.size_class);
    EXPECT_EQ(BlockBytes(c), row.block_bytes);
    EXPECT_EQ(Bytes(SpanPages(c)), row.span_bytes);
    EXPECT_EQ(BlocksPerSpan(c), row.blocks);
    EXPECT_EQ(GuaranteedAlignment(c), row.alignment);
    const uint32_t tail = row.span_bytes - row.blocks * row.block_bytes;
    EXPECT_EQ(tail, row.tail_bytes);
    const double waste =
        double((row.block_bytes - previous_bytes - 1) * row.blocks + tail) / row.span_bytes;
    EXPECT_NEAR(waste * 10000, row.max_waste, 0.51);
    previous_bytes = row.block_bytes;
  }
}

TEST(SizeClasses, BeyondEightyBytesLittleOfASpanIsWasted) {
  for (const Row& row : kTable) {
    if (row.block_bytes > 80) {
      EXPECT_LE(row.max_waste, 1670u) << row.block_bytes << " bytes";
    }
  }
}

TEST(SizeClasses, ClassZeroIsLargeAndHasNoBlocks) {
  EXPECT_EQ(BlockBytes(kLargeSizeClass), 0u);
  EXPECT_EQ(SpanPages(kLargeSizeClass), PageCount(0));
}

TEST(SizeClasses, NoSpanHasMoreBlocksThanABitmapHolds) {
  uint32_t most = 0;
  for (const Row& row : kTable) most = std::max(most, BlocksPerSpan(SizeClass(row.size_class)));
  EXPECT_EQ(most, kMaxBlocksPerSpan);
}

TEST(SizeClasses, EverySizeFindsTheSmallestClassThatHoldsIt) {
  for (size_t bytes = 1; bytes <= kMaxSmallBytes; ++bytes) {
    const Row* row = std::find_if(std::begin(kTable), std::end(kTable), [&](const Row& candidate) {
      return candidate.block_bytes >= bytes;
    });
    ASSERT_EQ(SizeClassFor(bytes), SizeClass(row->size_class)) << bytes;
  }
  EXPECT_EQ(SizeClassFor(0), SizeClass(1));
  EXPECT_EQ(SizeClassFor(kMaxSmallBytes + 1), kLargeSizeClass);
  EXPECT_EQ(SizeClassFor(SIZE_MAX), kLargeSizeClass);
}

TEST(SizeClasses, EveryAlignmentFindsTheSmallestClassThatGuaranteesIt) {
  for (size_t alignment = 1; alignment <= kPageBytes * 2; alignment *= 2) {
    for (size_t bytes = 1; bytes <= kMaxSmallBytes; ++bytes) {
      SizeClass expected = kLargeSizeClass;
      for (const Row& row : kTable) {
        if (row.block_bytes >= bytes && row.alignment >= alignment) {
          expected = SizeClass(row.size_class);
          break;
        }
      }
      ASSERT_EQ(SizeClassFor(bytes, alignment), expected) << bytes << " at " << alignment;
    }
  }
  EXPECT_EQ(SizeClassFor(kMaxSmallBytes + 1, 8), kLargeSizeClass);
}

TEST(SizeClasses, TheGuaranteedAlignmentIsThatOfEveryBlock) {
  for (const Row& row : kTable) {
    for (uint32_t i = 0; i < row.blocks; ++i) {
      ASSERT_EQ(i * row.block_bytes % GuaranteedAlignment(SizeClass(row.size_class)), 0u);
    }
  }
}

TEST(SizeClasses, DivisionByMultiplicationIsExactForEveryOffsetOfEverySpan) {
  for (const Row& row : kTable) {
    for (uint32_t offset = 0; offset <= row.span_bytes; ++offset) {
      ASSERT_EQ(BlockIndex(SizeClass(row.size_class), offset), offset / row.block_bytes)
          << "class " << +row.size_class << " offset " << offset;
    }
  }
}

TEST(SpanClass, HasASizeClassAndWhetherItsBlocksAreScanned) {
  std::set<SpanClass> all;
  for (uint8_t c = 0; c < kNumSizeClasses; ++c) {
    for (const bool noscan : {false, true}) {
      const SpanClass span_class(SizeClass(c), noscan);
      EXPECT_EQ(span_class.size_class(), SizeClass(c));
      EXPECT_EQ(span_class.noscan(), noscan);
      EXPECT_EQ(span_class.value(), c * 2 + noscan);
      EXPECT_EQ(SpanClass::FromValue(span_class.value()), span_class);
      EXPECT_EQ(span_class.large(), c == 0);
      all.insert(span_class);
    }
  }
  EXPECT_EQ(all.size(), kNumSpanClasses);
}

}  // namespace
}  // namespace spanpool

#include "client/cache_class.h"

#include <gtest/gtest.h>

#include <random>

namespace spanpool::internal {
namespace {

TEST(CacheClass, TheStepForALengthIsTheSmallestThatHoldsItAndWastesAtMostAnEighth) {
  const auto check = [](uint64_t pages) {
    const Step step = StepFor(PageCount(pages));
    ASSERT_LT(step.value(), kSteps) << pages;
    const uint64_t length = PagesOf(step).value();
    ASSERT_GE(length, pages);
    ASSERT_LE(length - pages, pages / 8) << pages;
    if (step.value() > 0) {
      ASSERT_LT(PagesOf(Step(static_cast<uint16_t>(step.value() - 1))).value(), pages);
    }
    ASSERT_EQ(StepFor(PagesOf(step)), step);
  };
  for (uint64_t pages = 1; pages < 100000; ++pages) check(pages);
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 100000; ++i) check(1 + random() % (uint64_t{1} << (1 + random() % 31)));
  check(uint64_t{1} << 31);
}

TEST(CacheClass, ClassesSpanClassesAndStepsMapBothWays) {
  for (uint16_t i = 2; i < kCacheClasses; ++i) {
    const CacheClass c(i);
    if (IsLarge(c)) {
      EXPECT_EQ(CacheClassOf(StepOf(c), SpanClassOf(c).noscan()), c);
      EXPECT_TRUE(SpanClassOf(c).large());
    } else {
      EXPECT_EQ(CacheClassOf(SpanClassOf(c)), c);
    }
    if (const size_t stack = StackIndexOf(c); stack != 0) {
      EXPECT_LT(stack, kStacks);
      EXPECT_EQ(CacheClassOfStack(stack), c);
    }
    EXPECT_GE(SpanBytesOf(c), BlockBytesOf(c));
    EXPECT_GE(BatchOf(c), 1u);
    EXPECT_GE(StackCapacityOf(c), BatchOf(c));
  }
  EXPECT_EQ(StackIndexOf(CacheClass(0)), 0u);
  EXPECT_EQ(StackIndexOf(CacheClass(1)), 0u);
}

TEST(CacheClass, MallocsStackHoldsBlocksThatAreLargeAndAlignedEnough) {
  for (size_t bytes = 0; bytes <= 5 << 20; bytes += bytes < 40000 ? 1 : 997) {
    const size_t stack = MallocStackIndex(bytes);
    if (stack == 0) {
      ASSERT_GT(bytes, Bytes(PageCount(512)));
      continue;
    }
    const CacheClass c = CacheClassOfStack(stack);
    ASSERT_GE(BlockBytesOf(c), bytes);
    ASSERT_TRUE(SpanClassOf(c).noscan());
    if (!IsLarge(c)) {
      ASSERT_GE(GuaranteedAlignment(SpanClassOf(c).size_class()), bytes <= 8 ? 8u : 16u) << bytes;
    }
  }
}

TEST(CacheClass, SizesLookedUpInlineHaveTheStackOfTheirOwn) {
  for (size_t bytes = 0; bytes <= kInlineBytes; bytes += bytes < 40000 ? 1 : 509) {
    const size_t index = IndexOfSize(bytes);
    ASSERT_LT(index, kInlineSizes);
    ASSERT_GE(SizeOfIndex(index), bytes);
    ASSERT_EQ(IndexOfSize(SizeOfIndex(index)), index);
    ASSERT_EQ(MallocStackIndex(SizeOfIndex(index)), MallocStackIndex(bytes)) << bytes;
  }
  EXPECT_EQ(IndexOfSize(kInlineBytes), kInlineSizes - 1);
}

TEST(CacheClass, BatchesAre64KiBWithin2To32BlocksAndStacksHoldSeveral) {
  for (size_t index = 2; index < kStacks; ++index) {
    const CacheClass c = CacheClassOfStack(index);
    const uint64_t bytes = BlockBytesOf(c);
    SCOPED_TRACE(testing::Message() << bytes << " bytes");
    const size_t least = IsLarge(c) ? 1 : 2;
    EXPECT_GE(BatchOf(c), least);
    EXPECT_LE(BatchOf(c), 32u);
    if (BatchOf(c) > least) {
      EXPECT_LE(BatchOf(c) * bytes, 64u << 10);
    }
    if (BatchOf(c) < 32) {
      EXPECT_GT((BatchOf(c) + 1) * bytes, 64u << 10);
    }
    EXPECT_GE(StackCapacityOf(c), 2 * BatchOf(c));
    EXPECT_LE(StackCapacityOf(c) * bytes,
              std::max<uint64_t>(4 * bytes, (IsLarge(c) ? 512u : 256u) << 10));
  }
}

}  // namespace
}  // namespace spanpool::internal

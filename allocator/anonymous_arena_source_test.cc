#include "allocator/anonymous_arena_source.h"

#include <gtest/gtest.h>

namespace spanpool {
namespace {

TEST(AnonymousArenaSource, OffsetsAndAddressesDifferByAConstant) {
  AnonymousArenaSource source(4);
  ASSERT_TRUE(source.Create(ArenaIndex(1)).ok());
  ASSERT_TRUE(source.Create(ArenaIndex(2)).ok());
  const PageRange pages{FirstPageOf(ArenaIndex(2)) - PageCount(1), PageCount(2)};
  ASSERT_TRUE(source.Populate(pages).ok());
  std::byte* const block = source.At(OffsetOf(pages.first));
  block[kPageBytes] = std::byte{7};  // in the next arena
  EXPECT_EQ(*source.At(OffsetOf(FirstPageOf(ArenaIndex(2)))), std::byte{7});
  EXPECT_EQ(source.OffsetOfAddress(block), OffsetOf(pages.first));
}

TEST(AnonymousArenaSource, PopulateKeepsContentsAndDiscardLosesThem) {
  AnonymousArenaSource source(1);
  ASSERT_TRUE(source.Create(ArenaIndex(0)).ok());
  const PageRange page{PageId(5), PageCount(1)};
  ASSERT_TRUE(source.Populate(page).ok());
  *source.At(OffsetOf(page.first)) = std::byte{9};
  ASSERT_TRUE(source.Populate(page).ok());
  EXPECT_EQ(*source.At(OffsetOf(page.first)), std::byte{9});
  ASSERT_TRUE(source.Discard(page).ok());
  EXPECT_EQ(*source.At(OffsetOf(page.first)), std::byte{0});
}

TEST(AnonymousArenaSource, ArenasAreCreatedOnceAndOnlyWithinTheReservedRange) {
  AnonymousArenaSource source(2);
  EXPECT_TRUE(source.Create(ArenaIndex(1)).ok());
  EXPECT_EQ(source.Create(ArenaIndex(1)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(source.Create(ArenaIndex(2)).code(), absl::StatusCode::kResourceExhausted);
}

TEST(AnonymousArenaSource, WhatIsBackedIsFound) {
  AnonymousArenaSource source(2);
  for (const uint32_t arena : {0, 1}) ASSERT_TRUE(source.Create(ArenaIndex(arena)).ok());
  const PageRange all{PageId(0), PageCount(2 * kPagesPerArena)};
  EXPECT_EQ(*source.FindBacked(all), PageRanges());
  const PageId border(kPagesPerArena);
  ASSERT_TRUE(source.Populate({border - PageCount(3), PageCount(9)}).ok());
  ASSERT_TRUE(source.Discard({border + PageCount(1), PageCount(2)}).ok());
  EXPECT_EQ(*source.FindBacked(all), (PageRanges{{border - PageCount(3), PageCount(4)},
                                                 {border + PageCount(3), PageCount(3)}}));
}

}  // namespace
}  // namespace spanpool

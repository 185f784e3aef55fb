// The heap as a program without a daemon uses it: over private memory, through its public headers.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocator/anonymous_arena_source.h"
#include "allocator/free_slots.h"
#include "allocator/heap.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

TEST(Alone, ASpanIsCutIntoItsBlocksAndGivenBack) {
  AnonymousArenaSource source(/*max_arenas=*/4);
  Heap heap({.limit_bytes = 64 << 20, .max_arenas = 4}, &source, /*states=*/nullptr);

  const SpanClass span_class(SizeClassFor(100), /*noscan=*/true);
  absl::StatusOr<Span*> span = heap.Grant(span_class);
  ASSERT_TRUE(span.ok()) << span.status();
  std::byte* const first = source.At(OffsetOf((*span)->first_page));
  FreeSlots slots((*span)->in_use(), (*span)->blocks);
  std::set<std::byte*> blocks;
  while (std::optional<uint32_t> slot = slots.Next()) {
    std::byte* const block = first + *slot * (*span)->block_bytes;
    EXPECT_EQ(*block, std::byte{0});
    std::memset(block, 0xAA, (*span)->block_bytes);
    blocks.insert(block);
  }
  EXPECT_EQ(blocks.size(), 73u);
  EXPECT_EQ(heap.SpanOf(PageOf(source.OffsetOfAddress(*blocks.rbegin()))), *span);
  heap.Return(*span);
  EXPECT_EQ(heap.stats().on_loan_bytes, 0u);
}

// Whose blocks live on when their span is given back says so through BlockStates.
TEST(Alone, ABlockThatLivesOnKeepsItsSpan) {
  struct OneBlock : BlockStates {
    uint32_t Sweep(const Span&, absl::Span<uint64_t> in_use) override {
      in_use[0] = alive ? 1 : 0;
      return alive ? 1 : 0;
    }
    bool alive = true;
  } states;
  AnonymousArenaSource source(/*max_arenas=*/4);
  Heap heap({.limit_bytes = 64 << 20, .max_arenas = 4}, &source, &states);
  absl::StatusOr<Span*> span = heap.GrantLarge(PageCount(300), /*scan=*/false);
  ASSERT_TRUE(span.ok()) << span.status();
  const PageId page = (*span)->first_page;
  std::memset(source.At(OffsetOf(page)), 0x55, (*span)->block_bytes);
  heap.Return(*span);
  heap.Sweep();
  EXPECT_EQ(heap.stats().in_lists_bytes, Bytes(PageCount(300)));
  EXPECT_EQ(*source.At(OffsetOf(page)), std::byte{0x55});
  states.alive = false;
  EXPECT_EQ(heap.Sweep(), PageCount(300));
  EXPECT_EQ(heap.Trim(), PageCount(300));
}

TEST(Alone, LimitsThatMakeNoSenseAreRefusalsAndNotCrashes) {
  for (const uint64_t limit : {uint64_t{0}, uint64_t{1}, kPageBytes - 1, kPageBytes, UINT64_MAX}) {
    for (const uint64_t reserve : {uint64_t{0}, uint64_t{1}, 2 * kArenaBytes}) {
      AnonymousArenaSource source(/*max_arenas=*/3);
      Heap heap({.limit_bytes = limit, .reserve_bytes = reserve, .max_arenas = 3}, &source,
                /*states=*/nullptr);
      EXPECT_TRUE(heap.Replenish().ok());
      EXPECT_EQ(heap.stats().free_bytes, std::min(reserve, limit) / kPageBytes * kPageBytes);
      for (const uint64_t alignment : {uint64_t{1}, uint64_t{1} << 40, uint64_t{1} << 63}) {
        for (const uint64_t pages : {uint64_t{1}, 4 * kPagesPerArena, UINT64_MAX}) {
          const absl::StatusOr<Span*> span =
              heap.GrantLarge(PageCount(pages), /*scan=*/false, PageCount(alignment));
          if (pages == 1 && alignment == 1 && limit >= kPageBytes) {
            ASSERT_TRUE(span.ok()) << span.status();
            heap.Return(*span);
          } else {
            EXPECT_EQ(span.status().code(), absl::StatusCode::kResourceExhausted);
          }
        }
      }
      heap.Sweep();
      heap.Scavenge();
      heap.Trim();
      heap.CheckInvariants();
    }
  }
}

}  // namespace
}  // namespace spanpool

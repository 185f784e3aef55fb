// The block table of one arena: a memfd of its own, mapped by every member of the pool.
//
//   offset 0        words    one BlockWord per granule, 8 MiB
//   then            lengths  for a large block, its exact length in bytes, by first page: 64 KiB
//   then            hints    one bit per page: "a block of this page was freed": 1 KiB
//
// Words are the summary of who refers to what; the slots of the sessions are the truth. A hint only
// says where to look. All of it may be written by any member: readers check what they find.

#ifndef SPANPOOL_PROTO_LAYOUT_BLOCK_TABLE_H_
#define SPANPOOL_PROTO_LAYOUT_BLOCK_TABLE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "allocator/units.h"
#include "proto/layout/block_word.h"
#include "proto/layout/step.h"

namespace spanpool::layout {

using SharedWord = std::atomic<uint64_t>;
static_assert(SharedWord::is_always_lock_free && sizeof(SharedWord) == 8);

struct BlockMarks {
  SharedWord lengths[kPagesPerArena];
  SharedWord hints[kPagesPerArena / 64];
};
struct BlockTable {
  SharedWord words[kGranulesPerArena];
  BlockMarks marks;
};

static_assert(std::is_standard_layout_v<BlockTable>);
static_assert(offsetof(BlockTable, marks) == 8 << 20);
static_assert(offsetof(BlockMarks, hints) == 64 << 10);
static_assert(sizeof(BlockTable) == (8 << 20) + (65 << 10));

// The size of the memfd: whole 4 KiB pages.
inline constexpr size_t kBlockTableBytes = (sizeof(BlockTable) + 4095) / 4096 * 4096;

// The next thing done to `word` is a compare-and-swap. Fetched for writing at once, its cache line
// comes from the processor that had it last in one transfer, where a load and then a write take
// two.
inline void PrefetchForChange(const SharedWord& word) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(word));  // a hint; processors without it do nothing
#else
  __builtin_prefetch(&word, 1);
#endif
}

inline SharedWord& WordOf(BlockTable& table, GranuleId granule) {
  return table.words[granule.value() % kGranulesPerArena];
}
inline SharedWord& LengthOf(BlockMarks& marks, PageId page) {
  return marks.lengths[page.value() % kPagesPerArena];
}
inline void SetHint(BlockMarks& marks, PageId page) {
  const uint64_t bit = uint64_t{1} << (page.value() % 64);
  SharedWord& word = marks.hints[page.value() % kPagesPerArena / 64];
  // The common case is that the page is marked already; a plain look keeps the line shared.
  if ((word.load(std::memory_order_relaxed) & bit) == 0) {
    SPANPOOL_STEP("hint.set");
    word.fetch_or(bit, std::memory_order_release);
  }
}
// Whether the page was marked; clears the mark.
inline bool TakeHint(BlockMarks& marks, PageId page) {
  const uint64_t bit = uint64_t{1} << (page.value() % 64);
  SharedWord& word = marks.hints[page.value() % kPagesPerArena / 64];
  if ((word.load(std::memory_order_relaxed) & bit) == 0) return false;
  SPANPOOL_STEP("hint.take");
  return (word.fetch_and(~bit, std::memory_order_acquire) & bit) != 0;
}

// Collects a block whose last reference is gone. Only the holder of its span may call this.
// True: the block is private now, under a new generation (or was private already).
// False: it is in use, frozen, or retired at the largest generation.
inline bool CollectBlock(SharedWord& shared) {
  // acquire: pairs with the release of the last dropper's CAS, whose reads of the block come first.
  uint64_t bits = shared.load(std::memory_order_acquire);
  const BlockWord word(bits);
  if (word.is_private()) return true;
  if (!word.freed() || word.refs() != 0 || word.frozen()) return false;
  if (word.generation() == kMaxGeneration) return false;
  SPANPOOL_STEP("collect.4");
  // Fails only if somebody scribbles or a reaper froze the word: then it is not ours to take.
  return shared.compare_exchange_strong(bits, word.Collected().bits(), std::memory_order_acq_rel);
}

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_BLOCK_TABLE_H_

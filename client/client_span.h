// A span on loan, as its session sees it.
//
// Each block of a span on loan is in one state:
//   free       in the session cache: its bit in `free` is set
//   elsewhere  its life is governed by references, ours or others': its bit in `elsewhere` is set.
//              Once the last reference is gone the block is collected and becomes free
//   out        neither: in a thread's stack, or the user's
//
// Invariants
//  1. available = bits set in free; away = bits set in elsewhere; no bit is set in both.
//  2. The span may be returned when available + away = blocks: no block is out.
//  3. Records are never freed while the session lives, so a stale pointer to one may be locked and
//     looked at; `cache_class` of a record in use never changes, and whether the span is (still)
//     on loan is known by the page map.
//
// Guarded by the lock of the span's class in the SessionCache, but for what is constant.

#ifndef SPANPOOL_CLIENT_CLIENT_SPAN_H_
#define SPANPOOL_CLIENT_CLIENT_SPAN_H_

#include <atomic>
#include <cstdint>

#include "allocator/size_classes.h"
#include "allocator/units.h"
#include "client/cache_class.h"
#include "client/span_source.h"

namespace spanpool::internal {

inline constexpr size_t kSpanWords = kMaxBlocksPerSpan / 64;

struct ClientSpan {
  // Written before the span enters the page map, constant until it has left it. The class is atomic
  // because a thread with a stale pointer reads it to find the lock.
  std::atomic<uint16_t> cache_class{0};
  SpanClass span_class;
  bool exact_step = true;  // false: its length is no step's, so it is not kept for reuse
  PageRange pages;
  uint64_t block_bytes = 0;
  uint32_t blocks = 0;
  uint32_t reciprocal = 0;  // ⌈2^32 / block_bytes⌉ for small blocks
  GrantSequence sequence;

  uint32_t available = 0;
  uint32_t away = 0;
  uint64_t free[kSpanWords] = {};
  uint64_t elsewhere[kSpanWords] = {};
#ifdef SPANPOOL_DEBUG
  // Bit i: block i is the user's. Changed by any thread without the lock.
  std::atomic<uint64_t> in_hand[kSpanWords] = {};
#endif

  // Places in the lists of the session cache.
  ClientSpan* next = nullptr;
  ClientSpan* previous = nullptr;
  ClientSpan* next_away = nullptr;
  ClientSpan* previous_away = nullptr;
  enum class List : uint8_t { kNone, kPartial, kFull, kIdle, kDisowned } list = List::kNone;

  bool returnable() const { return available + away == blocks; }
  PoolOffset offset() const { return OffsetOf(pages.first); }
  PoolOffset OffsetOfBlock(uint32_t index) const {
    return PoolOffset(offset().value() + index * block_bytes);
  }
  // The block that starts at `offset`, which lies in the span; `blocks` if none does.
  uint32_t BlockAt(PoolOffset offset) const {
    const uint64_t within = offset.value() - this->offset().value();
    if (reciprocal == 0) return within == 0 ? 0 : blocks;
    const auto index = static_cast<uint32_t>((within * reciprocal) >> 32);
    return index < blocks && index * block_bytes == within ? index : blocks;
  }
  bool IsFree(uint32_t index) const { return (free[index / 64] >> (index % 64)) & 1; }
  bool IsElsewhere(uint32_t index) const { return (elsewhere[index / 64] >> (index % 64)) & 1; }
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_CLIENT_SPAN_H_

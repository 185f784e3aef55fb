// Hands out the free blocks of one span, lowest first, a few instructions each.
//
// The bitmap says which blocks are in use; it is a snapshot from when the span was swept and is not
// written here. What has been handed out since is said by the free index alone: every slot below it
// is taken. So slot n is free if and only if n >= free_index() and bit n is 0.
//
// The next 64 slots' bits are kept inverted in one word, shifted so that bit 0 stands for the free
// index: the next free slot is a count of trailing zeroes away. When the word is used up, or the
// free index reaches a multiple of 64, it is loaded again.
//
//   in use     1 1 0 1 0 0 1 0 ...          free_index = 3
//   cache            0 1 1 0 1 ...          ~bits >> 3;  the next free slot is 3 + ctz = 4
//
// A default-made FreeSlots stands for no span: it is full, so whoever holds one needs no null test.
// Bits of the bitmap past the last block may be anything.
//
// Not thread-safe: one owner. The bitmap outlives it and stays constant.

#ifndef SPANPOOL_ALLOCATOR_FREE_SLOTS_H_
#define SPANPOOL_ALLOCATOR_FREE_SLOTS_H_

#include <bit>
#include <cstdint>
#include <optional>

#include "absl/base/optimization.h"
#include "absl/types/span.h"

namespace spanpool {

class FreeSlots {
 public:
  FreeSlots() = default;
  // The slots 0 … blocks - 1, of which those with a bit in `in_use` are taken.
  FreeSlots(absl::Span<const uint64_t> in_use, uint32_t blocks) : bits_(in_use), blocks_(blocks) {
    if (blocks_ != 0) Load(0);
  }

  // Takes the lowest free slot; nothing if the span is full.
  std::optional<uint32_t> Next() {
    const uint32_t skip = static_cast<uint32_t>(std::countr_zero(cache_));  // 64 if none
    const uint32_t slot = free_index_ + skip;
    const uint32_t next = slot + 1;
    // Where the next slot begins another word of the bitmap, and where there is none, it is slower.
    if (ABSL_PREDICT_FALSE(skip == 64 || slot >= blocks_ || (next % 64 == 0 && next != blocks_))) {
      return NextSlow();
    }
    // Two shifts: skip + 1 may be 64.
    cache_ = cache_ >> skip >> 1;
    free_index_ = next;
    ++taken_;
    return slot;
  }

  // Every slot below is taken, or was in use; blocks() when the span is full.
  uint32_t free_index() const { return free_index_; }
  uint32_t blocks() const { return blocks_; }
  // Slots handed out here.
  uint32_t taken() const { return taken_; }
  bool IsFree(uint32_t slot) const {
    return slot >= free_index_ && slot < blocks_ && (bits_[slot / 64] >> (slot % 64) & 1) == 0;
  }

 private:
  // The cache for a free index that is a multiple of 64.
  void Load(uint32_t index) {
    free_index_ = index;
    cache_ = ~bits_[index / 64];
  }

  std::optional<uint32_t> NextSlow() {
    while (cache_ == 0) {
      const uint32_t next_word = (free_index_ + 64) / 64 * 64;
      if (next_word >= blocks_) {
        free_index_ = blocks_;
        return std::nullopt;
      }
      Load(next_word);
    }
    const uint32_t skip = static_cast<uint32_t>(std::countr_zero(cache_));
    const uint32_t slot = free_index_ + skip;
    if (slot >= blocks_) {
      free_index_ = blocks_;
      cache_ = 0;
      return std::nullopt;
    }
    cache_ = cache_ >> skip >> 1;
    free_index_ = slot + 1;
    ++taken_;
    // At the border of a word what was shifted in is not the next word's.
    if (free_index_ % 64 == 0 && free_index_ < blocks_) Load(free_index_);
    return slot;
  }

  absl::Span<const uint64_t> bits_;
  uint64_t cache_ = 0;
  uint32_t free_index_ = 0;
  uint32_t blocks_ = 0;
  uint32_t taken_ = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_FREE_SLOTS_H_

// The block word: one block's generation and reference count in 64 bits.
//
// The block table has one word per 64-byte granule; a block is named by its first granule. Many
// processes write the word, so every change is a compare-and-swap of the whole of it, from a value
// that was looked at to one of the transitions below.
//
//    63 FROZEN │ 62 FREED │ 61..54 era │ 53..40 refs │ 39..0 generation
//
//   private  refs 0, neither flag: known only to the holder of its span
//   shared   refs ≥ 1: a handle with this generation opens it
//   freed    refs 0, FREED: the last reference is gone; the span's holder may collect it, which
//            makes it private under the next generation, so that old handles find nothing
//   frozen   FROZEN: a reaper is recounting; everyone else leaves the word alone
//
// Any process that maps the table may write anything: whoever reads a word treats it as input.

#ifndef SPANPOOL_PROTO_LAYOUT_BLOCK_WORD_H_
#define SPANPOOL_PROTO_LAYOUT_BLOCK_WORD_H_

#include <cstdint>

namespace spanpool::layout {

inline constexpr int kGenerationBits = 40;
inline constexpr uint64_t kMaxGeneration = (uint64_t{1} << kGenerationBits) - 1;
inline constexpr uint32_t kMaxRefs = (1u << 14) - 1;  // 16,383 processes

class BlockWord {
 public:
  constexpr BlockWord() = default;
  constexpr explicit BlockWord(uint64_t bits) : bits_(bits) {}

  constexpr uint64_t bits() const { return bits_; }
  constexpr uint64_t generation() const { return bits_ & kMaxGeneration; }
  constexpr uint32_t refs() const { return (bits_ >> 40) & kMaxRefs; }
  constexpr uint32_t era() const { return (bits_ >> 54) & 0xff; }
  constexpr bool freed() const { return (bits_ & kFreed) != 0; }
  constexpr bool frozen() const { return (bits_ & kFrozen) != 0; }

  constexpr bool is_private() const { return refs() == 0 && !freed() && !frozen(); }
  constexpr bool is_shared() const { return refs() != 0 && !freed(); }

  // Share: private → one reference. Requires is_private().
  constexpr BlockWord Shared() const { return BlockWord(bits_ + kOneRef); }
  // Open: one reference more. Requires is_shared(), refs() < kMaxRefs, not frozen().
  constexpr BlockWord Acquired() const { return BlockWord(bits_ + kOneRef); }
  // Release: one reference less, FREED if it was the last. Requires refs() ≥ 1, not frozen().
  constexpr BlockWord Released() const {
    return BlockWord((bits_ - kOneRef) | (refs() == 1 ? kFreed : 0));
  }
  // Collect: freed → private under the next generation. Requires freed(), refs() 0, and
  // generation() < kMaxGeneration: at the largest generation a granule is retired.
  constexpr BlockWord Collected() const { return BlockWord((bits_ & ~kFreed) + 1); }

  friend constexpr bool operator==(BlockWord, BlockWord) = default;

 private:
  static constexpr uint64_t kOneRef = uint64_t{1} << 40;
  static constexpr uint64_t kFreed = uint64_t{1} << 62;
  static constexpr uint64_t kFrozen = uint64_t{1} << 63;

  uint64_t bits_ = 0;
};

static_assert(sizeof(BlockWord) == 8);

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_BLOCK_WORD_H_

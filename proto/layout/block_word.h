// The block word: one block's generation and reference count in 64 bits.
//
// The block table has one word per 64-byte granule; a block is named by its first granule. Many
// processes write the word, so every change is a compare-and-swap of the whole of it, from a value
// that was looked at to one of the transitions below (tests/model/README.md has the rules). Only
// from private to shared a store will do: nobody else changes a private word.
//
//    63 FROZEN │ 62 FREED │ 61 SENT │ 60..58 number │ 57..54 era │ 53..40 refs │ 39..0 generation
//
//   private  refs 0, no flag: known only to the holder of its span
//   shared   refs ≥ 1: a handle with this generation opens it
//   freed    refs 0, FREED: the last reference is gone; the span's holder may collect it, which
//            makes it private under the next generation, so that old handles find nothing
//   frozen   FROZEN: the daemon is recounting; everyone else leaves the word alone
//   SENT     one of the references is on its way with a handle, under `number`, and was not taken
//   era      changes with each recount, so that whoever looked before it cannot change the word
//
// Any process that maps the table may write anything: whoever reads a word treats it as input.

#ifndef SPANPOOL_PROTO_LAYOUT_BLOCK_WORD_H_
#define SPANPOOL_PROTO_LAYOUT_BLOCK_WORD_H_

#include <cstdint>
#include <type_traits>

namespace spanpool::layout {

inline constexpr int kGenerationBits = 40;
inline constexpr uint64_t kMaxGeneration = (uint64_t{1} << kGenerationBits) - 1;
inline constexpr uint32_t kMaxRefs = (1u << 14) - 1;
// Clients stop here, so that the daemon has room to take over what dead senders had under way.
inline constexpr uint32_t kMaxClientRefs = kMaxRefs - 1000;
inline constexpr uint32_t kEras = 1u << 4;
inline constexpr uint32_t kSendNumbers = 1u << 3;

class BlockWord {
 public:
  constexpr BlockWord() = default;
  constexpr explicit BlockWord(uint64_t bits) : bits_(bits) {}

  constexpr uint64_t bits() const { return bits_; }
  constexpr uint64_t generation() const { return bits_ & kMaxGeneration; }
  constexpr uint32_t refs() const { return (bits_ >> kRefsShift) & kMaxRefs; }
  constexpr uint32_t era() const { return (bits_ >> kEraShift) & (kEras - 1); }
  // Of the last Send, SENT or not.
  constexpr uint32_t send_number() const { return (bits_ >> kNumberShift) & (kSendNumbers - 1); }
  constexpr bool sent() const { return (bits_ & kSent) != 0; }
  constexpr bool freed() const { return (bits_ & kFreed) != 0; }
  constexpr bool frozen() const { return (bits_ & kFrozen) != 0; }

  constexpr bool is_private() const {
    return (bits_ & (kFrozen | kFreed | kSent | uint64_t{kMaxRefs} << kRefsShift)) == 0;
  }
  constexpr bool is_shared() const { return refs() != 0 && !freed(); }
  // One reference, no flag but SENT: Released() of this one is the last, and not yet FREED.
  constexpr bool is_last() const {
    return (bits_ & (kFrozen | kFreed | uint64_t{kMaxRefs} << kRefsShift)) == kOneRef;
  }
  // At the largest generation a block never is.
  constexpr bool can_be_collected() const { return generation() != kMaxGeneration; }
  // The reference that was sent under `number` has not been taken.
  constexpr bool IsUnderWay(uint32_t number) const { return sent() && send_number() == number; }
  constexpr uint32_t next_send_number() const { return (send_number() + 1) % kSendNumbers; }

  // Share: private → one reference. Requires is_private().
  constexpr BlockWord Shared() const { return BlockWord(bits_ + kOneRef); }
  // Open: one reference more. Requires is_shared(), refs() < kMaxRefs, not frozen().
  constexpr BlockWord Acquired() const { return BlockWord(bits_ + kOneRef); }
  // Release: one reference less, FREED if it was the last. Requires refs() ≥ 1, not frozen().
  constexpr BlockWord Released() const {
    return BlockWord((bits_ - kOneRef) | (refs() == 1 ? kFreed : 0));
  }
  // Release in part: one reference less, and no flag. Requires refs() ≥ 2; or Collected() to
  // follow.
  constexpr BlockWord Dropped() const { return BlockWord(bits_ - kOneRef); }
  // Collect: freed → private under the next generation; the era stays. Requires freed(), refs() 0,
  // and generation() < kMaxGeneration: at the largest generation a granule is retired.
  constexpr BlockWord Collected() const { return BlockWord((bits_ & ~(kFreed | kSendMask)) + 1); }

  // Send: one of the references is on its way, under next_send_number(). Requires is_shared(),
  // neither sent() nor frozen().
  constexpr BlockWord Sent() const {
    return BlockWord((bits_ & ~kSendMask) | kSent | uint64_t{next_send_number()} << kNumberShift);
  }
  // The reference that was on its way has arrived, or was taken back. Requires not frozen().
  constexpr BlockWord Taken() const { return BlockWord(bits_ & ~kSent); }

  // The daemon's: from here on nobody else changes the word. Requires refs() ≥ 1.
  constexpr BlockWord Frozen() const { return BlockWord(bits_ | kFrozen); }
  // And its end: `refs` references were counted. Requires frozen(), refs <= kMaxRefs, era < kEras
  // and not era().
  constexpr BlockWord Recounted(uint32_t refs, uint32_t era) const {
    return BlockWord((bits_ & (kMaxGeneration | kSendMask)) | uint64_t{refs} << kRefsShift |
                     uint64_t{era} << kEraShift | (refs == 0 ? kFreed : 0));
  }

  friend constexpr bool operator==(BlockWord, BlockWord) = default;

 private:
  static constexpr int kRefsShift = 40;
  static constexpr int kEraShift = 54;
  static constexpr int kNumberShift = 58;
  static constexpr uint64_t kOneRef = uint64_t{1} << kRefsShift;
  static constexpr uint64_t kSent = uint64_t{1} << 61;
  static constexpr uint64_t kFreed = uint64_t{1} << 62;
  static constexpr uint64_t kFrozen = uint64_t{1} << 63;
  static constexpr uint64_t kSendMask = kSent | uint64_t{kSendNumbers - 1} << kNumberShift;

  uint64_t bits_ = 0;
};

static_assert(sizeof(BlockWord) == 8 && std::is_standard_layout_v<BlockWord>);
// The fields fill the word without a gap or an overlap.
static_assert(BlockWord(kMaxGeneration).refs() == 0);
static_assert(BlockWord(kMaxGeneration + 1).refs() == 1);
static_assert(BlockWord(uint64_t{kMaxRefs} << 40).era() == 0);
static_assert(BlockWord((uint64_t{kMaxRefs} + 1) << 40).era() == 1);
static_assert(BlockWord(uint64_t{kEras - 1} << 54).send_number() == 0);
static_assert(BlockWord(uint64_t{kEras} << 54).send_number() == 1);
static_assert(!BlockWord(uint64_t{kSendNumbers - 1} << 58).sent());
static_assert(BlockWord(uint64_t{kSendNumbers} << 58).sent());

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_BLOCK_WORD_H_

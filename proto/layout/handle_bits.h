// What is in the 16 bytes of a handle.
//
//   low   37..0 granule │ 39..38 start within the granule / 16 │ 55..40 length, 0 = in the table
//         63..56 incarnation, bits 7..0
//   high  39..0 generation │ 63..40 incarnation, bits 31..8
//
// The length of a block of at most 32 KiB travels in the handle, so that opening it touches no
// memory but the word. That of a larger one stands in the block table, by its first page.

#ifndef SPANPOOL_PROTO_LAYOUT_HANDLE_BITS_H_
#define SPANPOOL_PROTO_LAYOUT_HANDLE_BITS_H_

#include <cstdint>

#include "allocator/units.h"
#include "proto/layout/block_word.h"

namespace spanpool::layout {

inline constexpr uint32_t kMaxHandleLength = 32768;
inline constexpr uint64_t kMaxHandleGranules = uint64_t{1} << 38;  // pools of up to 2^44 bytes

struct HandleBits {
  uint32_t incarnation = 0;
  GranuleId granule;
  uint32_t start = 0;   // bytes into the granule: 0, 16, 32 or 48
  uint32_t length = 0;  // exact length in bytes; 0 = see BlockTable::lengths
  uint64_t generation = 0;

  constexpr uint64_t low() const {
    return granule.value() | uint64_t{start / 16} << 38 | uint64_t{length} << 40 |
           uint64_t{incarnation & 0xff} << 56;
  }
  constexpr uint64_t high() const { return generation | uint64_t{incarnation >> 8} << 40; }

  // Any 16 bytes unpack to something; `length` may exceed kMaxHandleLength in a forged handle.
  static constexpr HandleBits Unpack(uint64_t low, uint64_t high) {
    HandleBits bits;
    bits.granule = GranuleId(low & (kMaxHandleGranules - 1));
    bits.start = static_cast<uint32_t>((low >> 38) & 3) * 16;
    bits.length = static_cast<uint32_t>((low >> 40) & 0xffff);
    bits.incarnation = static_cast<uint32_t>(low >> 56) | static_cast<uint32_t>(high >> 40) << 8;
    bits.generation = high & kMaxGeneration;
    return bits;
  }
  constexpr PoolOffset offset() const { return PoolOffset(OffsetOf(granule).value() + start); }

  friend constexpr bool operator==(const HandleBits&, const HandleBits&) = default;
};

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_HANDLE_BITS_H_

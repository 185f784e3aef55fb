// A slot: one process's record of one reference it holds, in its session segment.
//
// Slots are the truth about references: after a death the reaper reads the dead process's slots
// and takes back exactly the references they name. So a slot is written before the word it speaks
// of, and cleared after.
//
//    63..61 state │ 60..53 era (VOID only) │ 52..0 granule
//
//   FREE       names nothing
//   ACQUIRING  the process is about to add, or has just added, a reference
//   HELD       the process has one reference
//   RELEASING  the process is about to drop, or has just dropped, its reference
//   VOID       a recount left this slot's reference out

#ifndef SPANPOOL_PROTO_LAYOUT_SLOT_H_
#define SPANPOOL_PROTO_LAYOUT_SLOT_H_

#include <cstdint>

#include "allocator/units.h"

namespace spanpool::layout {

enum class SlotState : uint8_t { kFree = 0, kAcquiring = 1, kHeld = 2, kReleasing = 3, kVoid = 4 };

class Slot {
 public:
  constexpr Slot() = default;
  constexpr explicit Slot(uint64_t bits) : bits_(bits) {}
  constexpr Slot(SlotState state, GranuleId granule)
      : bits_(uint64_t{static_cast<uint8_t>(state)} << 61 | (granule.value() & kGranuleMask)) {}

  constexpr uint64_t bits() const { return bits_; }
  // Values 5..7 are nobody's: treat them as a lie of the slot's owner.
  constexpr SlotState state() const { return static_cast<SlotState>(bits_ >> 61); }
  constexpr GranuleId granule() const { return GranuleId(bits_ & kGranuleMask); }
  constexpr uint32_t era() const { return (bits_ >> 53) & 0xff; }

  friend constexpr bool operator==(Slot, Slot) = default;

 private:
  static constexpr uint64_t kGranuleMask = (uint64_t{1} << 53) - 1;
  uint64_t bits_ = 0;
};

static_assert(sizeof(Slot) == 8);

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_SLOT_H_

// A slot: one process's record of one reference it holds, in its session segment.
//
// Slots are the truth about references: after a death the reaper reads the dead process's slots
// and takes back exactly the references they name. So a slot is written before the word it speaks
// of, and cleared after.
//
//    63..61 state │ 60..53 detail │ 52..0 granule
//
//   FREE       names nothing
//   ACQUIRING  the process is about to add, or has just added, a reference
//   HELD       the process has one reference
//   RELEASING  the process is about to drop, or has just dropped, its reference
//   VOID       a recount left this slot's reference out; detail = the word's era then
//   TRANSIT    like HELD, but the reference is on its way to somebody else. detail = the number
//              under which the block's word says SENT; or kNoted: the slot's note says where to
//              look
//
// A note stands beside each slot (session_segment.h). It names a place in the pool and the value
// that is there as long as the reference is under way: an entry of a channel, filled.

#ifndef SPANPOOL_PROTO_LAYOUT_SLOT_H_
#define SPANPOOL_PROTO_LAYOUT_SLOT_H_

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "allocator/units.h"

namespace spanpool::layout {

enum class SlotState : uint8_t {
  kFree = 0,
  kAcquiring = 1,
  kHeld = 2,
  kReleasing = 3,
  kVoid = 4,
  kTransit = 5,
};

class Slot {
 public:
  constexpr Slot() = default;
  constexpr explicit Slot(uint64_t bits) : bits_(bits) {}
  constexpr Slot(SlotState state, GranuleId granule) : Slot(state, granule, 0) {}

  static constexpr Slot Void(GranuleId granule, uint32_t era) {
    return Slot(SlotState::kVoid, granule, era);
  }
  static constexpr Slot Transit(GranuleId granule, uint32_t send_number) {
    return Slot(SlotState::kTransit, granule, send_number);
  }
  static constexpr Slot NotedTransit(GranuleId granule) {
    return Slot(SlotState::kTransit, granule, kNoted);
  }

  constexpr uint64_t bits() const { return bits_; }
  // Values 6 and 7 are nobody's: treat them as a lie of the slot's owner.
  constexpr SlotState state() const { return static_cast<SlotState>(bits_ >> 61); }
  constexpr GranuleId granule() const { return GranuleId(bits_ & kGranuleMask); }
  // Of a VOID.
  constexpr uint32_t era() const { return detail(); }
  // Of a TRANSIT that is not noted.
  constexpr uint32_t send_number() const { return detail(); }
  // Of a TRANSIT.
  constexpr bool noted() const { return detail() == kNoted; }

  // It stands for one reference in the word.
  constexpr bool counts() const {
    return state() == SlotState::kHeld || state() == SlotState::kTransit;
  }
  // Whether it does cannot be told from the slot alone.
  constexpr bool in_flight() const {
    return state() == SlotState::kAcquiring || state() == SlotState::kReleasing;
  }

  friend constexpr bool operator==(Slot, Slot) = default;

 private:
  constexpr Slot(SlotState state, GranuleId granule, uint32_t detail)
      : bits_(uint64_t{static_cast<uint8_t>(state)} << 61 | uint64_t{detail} << kDetailShift |
              (granule.value() & kGranuleMask)) {}
  constexpr uint32_t detail() const { return (bits_ >> kDetailShift) & 0xff; }

  static constexpr int kDetailShift = 53;
  static constexpr uint32_t kNoted = 0x80;
  static constexpr uint64_t kGranuleMask = (uint64_t{1} << kDetailShift) - 1;
  uint64_t bits_ = 0;
};

static_assert(sizeof(Slot) == 8 && std::is_standard_layout_v<Slot>);

using SharedSlot = std::atomic<uint64_t>;
static_assert(SharedSlot::is_always_lock_free && sizeof(SharedSlot) == 8);

// Where a noted TRANSIT is under way: as long as the 8 bytes at offset `entry` of the pool (a
// multiple of 8) are `value`. Written before the slot says TRANSIT, by the slot's owner alone.
struct SlotNote {
  std::atomic<uint64_t> entry;
  std::atomic<uint64_t> value;
};
static_assert(sizeof(SlotNote) == 16 && std::is_standard_layout_v<SlotNote>);

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_SLOT_H_

// The two segments of a session, each a sealed memfd.
//
//   SessionSegment   offset 0        header: version, counters
//                    offset 4096     slots, one for each reference of the process: 8 MiB
//                    then            notes, one for each slot: 16 MiB
//
// Slots and notes are memory only once they are written. SessionSegment is written by the client
// and read by the daemon, which believes none of it: a lie here costs the liar its session. The
// daemon has one too, "session 0", for what it holds itself. ControlSegment is written by the
// daemon; the client gets a descriptor that is open for reading only.

#ifndef SPANPOOL_PROTO_LAYOUT_SESSION_SEGMENT_H_
#define SPANPOOL_PROTO_LAYOUT_SESSION_SEGMENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "proto/layout/slot.h"

namespace spanpool::layout {

// What the client counts, for the operator's eyes only.
struct SessionCounters {
  std::atomic<uint64_t> allocations_by_refill;  // allocations that waited for the daemon
  std::atomic<uint64_t> opens;
  std::atomic<uint64_t> shares;
  std::atomic<uint64_t> releases;
};

struct SessionSegment {
  uint32_t layout_version;
  uint32_t slot_capacity;
  // Slots at and above this index were never written. Only grows.
  std::atomic<uint64_t> slots_used;
  SessionCounters counters;
  std::byte reserved[4096 - 48];
  // slot_capacity slots follow, from offset 4096.
};
static_assert(std::is_standard_layout_v<SessionSegment> && sizeof(SessionSegment) == 4096);

inline constexpr uint32_t kSlotCapacity = 1 << 20;
inline constexpr size_t kNotesOffset =
    sizeof(SessionSegment) + size_t{kSlotCapacity} * sizeof(SharedSlot);
inline constexpr size_t kSessionSegmentBytes =
    kNotesOffset + size_t{kSlotCapacity} * sizeof(SlotNote);
static_assert(kSessionSegmentBytes == 4096 + (24 << 20));

inline SharedSlot* SlotsOf(SessionSegment* segment) {
  return reinterpret_cast<SharedSlot*>(segment + 1);
}
inline SlotNote* NotesOf(SessionSegment* segment) {
  return reinterpret_cast<SlotNote*>(reinterpret_cast<std::byte*>(segment) + kNotesOffset);
}

struct ControlSegment {
  uint32_t layout_version;
  uint32_t reserved;
  std::atomic<uint64_t> daemon_epoch;  // changes when the daemon's worker does
  std::byte padding[4096 - 16];
};
static_assert(std::is_standard_layout_v<ControlSegment> && sizeof(ControlSegment) == 4096);

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_SESSION_SEGMENT_H_

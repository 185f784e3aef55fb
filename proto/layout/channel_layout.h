// A channel: a bounded queue of handles, in a block of the pool.
//
//   offset 0    ChannelHeader: what it is, closed or not, words to sleep on, positions of both ends
//   then        `capacity` entries of 16 bytes, a power of two
//
// Positions count from 0 and never wrap: position p is entry p % capacity in turn p / capacity. An
// entry is one value of 16 bytes, changed by compare-and-swap as a whole, and only so:
//
//   EMPTY(turn)  →  FULL(turn, handle)  →  EMPTY(turn + 1)  →  …
//        └──────→  SEALED(turn)                       closed: nothing comes after it
//
//   first   63..62 state │ 61..32 turn │ 31..0 tag
//   second  63..56 generation, bits 39..32 │ 55..40 length │ 39..38 start │ 37..0 granule
//
// The tag is the generation's lower half xor that of the granule. So the first eight bytes alone
// tell a filled entry from what it was before, what it is after, and what another sender would have
// made of it: they are what the note beside a sender's slot speaks of (slot.h). The handle's
// incarnation is that of the pool that the channel lies in.
//
// A turn wraps after 2^30. It does harm to nobody but who slept through all of them, and then the
// value that it waits to see must be there again: the sender's handle takes a place a whole number
// of 2^30 turns later than it was meant for, which is as good; nobody opens what was not sent.
//
// All members of the pool may write here: whoever reads it treats it as input.

#ifndef SPANPOOL_PROTO_LAYOUT_CHANNEL_LAYOUT_H_
#define SPANPOOL_PROTO_LAYOUT_CHANNEL_LAYOUT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "proto/layout/handle_bits.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace spanpool::layout {

inline constexpr uint32_t kChannelMagic = 0x48435053;  // "SPCH"
inline constexpr uint32_t kChannelVersion = 1;
inline constexpr uint32_t kMaxChannelCapacity = 1 << 20;
inline constexpr uint32_t kTurnMask = (1u << 30) - 1;

enum class EntryState : uint8_t {
  kEmpty = 0,
  kFull = 1,
  kSealed = 2,
};

class ChannelEntry {
 public:
  constexpr ChannelEntry() = default;  // EMPTY(0)
  constexpr ChannelEntry(uint64_t first, uint64_t second) : first_(first), second_(second) {}

  // Turns are taken modulo 2^30.
  static constexpr ChannelEntry Empty(uint32_t turn) {
    return ChannelEntry(Head(EntryState::kEmpty, turn), 0);
  }
  static constexpr ChannelEntry Sealed(uint32_t turn) {
    return ChannelEntry(Head(EntryState::kSealed, turn), 0);
  }
  static constexpr ChannelEntry Full(uint32_t turn, const HandleBits& handle) {
    const auto tag = static_cast<uint32_t>(handle.generation ^ handle.granule.value());
    return ChannelEntry(Head(EntryState::kFull, turn) | tag,
                        (handle.low() & kNotIncarnation) | handle.generation >> 32 << 56);
  }

  constexpr uint64_t first() const { return first_; }
  constexpr uint64_t second() const { return second_; }
  // The value 3 is nobody's.
  constexpr EntryState state() const { return static_cast<EntryState>(first_ >> 62); }
  constexpr uint32_t turn() const { return static_cast<uint32_t>(first_ >> 32) & kTurnMask; }
  // Of a FULL.
  constexpr HandleBits handle(uint32_t incarnation) const {
    HandleBits handle = HandleBits::Unpack(second_ & kNotIncarnation, 0);
    handle.incarnation = incarnation;
    handle.generation =
        (second_ >> 56 << 32) | static_cast<uint32_t>(first_ ^ handle.granule.value());
    return handle;
  }

  friend constexpr bool operator==(const ChannelEntry&, const ChannelEntry&) = default;

 private:
  static constexpr uint64_t kNotIncarnation = (uint64_t{1} << 56) - 1;
  static constexpr uint64_t Head(EntryState state, uint32_t turn) {
    return uint64_t{static_cast<uint8_t>(state)} << 62 | uint64_t{turn & kTurnMask} << 32;
  }

  uint64_t first_ = 0;
  uint64_t second_ = 0;
};
static_assert(sizeof(ChannelEntry) == 16 && std::is_standard_layout_v<ChannelEntry>);

// An entry where it lies.
struct alignas(16) SharedEntry {
  std::atomic<uint64_t> first;
  std::atomic<uint64_t> second;

  // Some value that the entry had in the meantime. If it is torn, which it is only if it changes
  // often, CompareExchange tells.
  ChannelEntry Load() const {
    uint64_t seen = first.load(std::memory_order_acquire);
    for (int tries = 0;; ++tries) {
      const uint64_t rest = second.load(std::memory_order_acquire);
      const uint64_t again = first.load(std::memory_order_acquire);
      if (again == seen || tries == 16) return {seen, rest};
      seen = again;
    }
  }

  // Atomic, with the memory order seq_cst. On failure `expected` is what is there.
  bool CompareExchange(ChannelEntry& expected, ChannelEntry desired) {
#if defined(__x86_64__)
    // Not std::atomic nor __atomic_compare_exchange: GCC makes them calls to libatomic, which takes
    // a lock of the process where it does not know the instruction. The processor orders all
    // memory accesses around it.
    uint64_t low = expected.first();
    uint64_t high = expected.second();
    bool done;
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&first);
#endif
    asm volatile("lock cmpxchg16b %[at]"
                 : [at] "+m"(*this), "+a"(low), "+d"(high), "=@ccz"(done)
                 : "b"(desired.first()), "c"(desired.second())
                 : "memory");
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&first);
#endif
    if (!done) expected = ChannelEntry(low, high);
    return done;
#else
    const auto whole = [](const ChannelEntry& entry) {
      return static_cast<unsigned __int128>(entry.second()) << 64 | entry.first();
    };
    const unsigned __int128 found = __sync_val_compare_and_swap(
        reinterpret_cast<unsigned __int128*>(this), whole(expected), whole(desired));
    if (found == whole(expected)) return true;
    expected = ChannelEntry(static_cast<uint64_t>(found), static_cast<uint64_t>(found >> 64));
    return false;
#endif
  }
};
static_assert(sizeof(SharedEntry) == 16 && std::is_standard_layout_v<SharedEntry>);

struct ChannelHeader {
  // Written before the channel is known to others, and then never again.
  uint32_t magic;
  uint32_t version;
  uint32_t capacity;
  // Not 0: nothing is sent any more. Written once.
  std::atomic<uint32_t> closed;
  // To sleep on (client/shared_event.h): until something was sent; until there is room.
  std::atomic<uint32_t> items;
  std::atomic<uint32_t> room;
  std::byte reserved[40];
  // Where to look for the first EMPTY, and the first FULL: the position, or one before it.
  alignas(64) std::atomic<uint64_t> tail;
  alignas(64) std::atomic<uint64_t> head;
};
static_assert(std::is_standard_layout_v<ChannelHeader> && sizeof(ChannelHeader) == 192);
static_assert(offsetof(ChannelHeader, tail) == 64 && offsetof(ChannelHeader, head) == 128);

constexpr size_t ChannelBytes(uint32_t capacity) {
  return sizeof(ChannelHeader) + size_t{capacity} * sizeof(SharedEntry);
}

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_CHANNEL_LAYOUT_H_

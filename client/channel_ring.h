// The queue in a channel's memory: who sends, who receives, in which order. It knows nothing of
// blocks and references: it hands 16 bytes over (rule 12 of tests/model/README.md, without the
// slots).
//
// Both ends work in two steps, between which the caller prepares what must be so before the second.
//
//   send     FindEmpty a place; note it beside the slot; Fill it, or find another
//   receive  FindFull a place; open the handle; Take it, or find another
//
// Each second step is one compare-and-swap of the whole entry, from what the first step saw.
//
// Why it is a queue (linearisable: each operation seems to happen at one instant within it)
//  1. tail goes from p to p + 1 only after entry p was seen filled, and is never ahead. So position
//     p is filled only after p - 1 was: places are filled in order, each at most once.
//  2. head likewise: places are emptied in order, each at most once.
//  3. A send happens when it fills, a receive when it empties.
//  4. "Full" is seen in entry p, found at tail = p, that still holds p - capacity: by 1 and 2 all
//     positions from p - capacity to p - 1 are filled and not emptied, at that instant.
//  5. "Empty" is seen in entry p, found at head = p, that was not filled: nor was any after it, and
//     all before it are emptied.
//  6. Close is a mark in the header. A receiver that finds the queue empty and closed seals the
//     entry at head, and only then says so: from there on nothing can be filled.
//
// Whoever finds tail or head one behind sets it right and goes on. So a process that is killed or
// stopped anywhere holds up nobody. Each retry means that somebody else has got on.
//
// Memory is input: whatever stands in it, each call returns after a bounded number of steps.
//
// Thread-safe, and between processes. A view, cheap to copy.

#ifndef SPANPOOL_CLIENT_CHANNEL_RING_H_
#define SPANPOOL_CLIENT_CHANNEL_RING_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "client/shared_event.h"
#include "proto/layout/channel_layout.h"

namespace spanpool::internal {

class ChannelRing {
 public:
  // Makes a channel of `memory`: ChannelBytes(capacity) zeros, aligned to 64. Requires that
  // `capacity` is a power of two of at most kMaxChannelCapacity.
  static void Format(void* memory, uint32_t capacity);

  // The channel at `memory`, aligned to 64 and mapped for writing.
  //   FAILED_PRECONDITION  there is none, or one of another version
  static absl::StatusOr<ChannelRing> At(void* memory, size_t bytes);

  enum class Found {
    kPlace,
    kNothing,   // FindEmpty: the queue is full; FindFull: it is empty
    kClosed,    // FindFull: and empty for good
    kRestless,  // others were faster, each of very many times: try again
    kBroken,    // some process wrote over the channel
  };
  struct Place {
    layout::SharedEntry* at = nullptr;
    uint64_t position = 0;
    layout::ChannelEntry entry;  // EMPTY, or FULL
  };

  Found FindEmpty(Place* place);
  // What the entry is to become.
  static layout::ChannelEntry Filled(const Place& place, const layout::HandleBits& handle) {
    return layout::ChannelEntry::Full(place.entry.turn(), handle);
  }
  // Requires that FindEmpty found it. False: another process was faster, or closed.
  bool Fill(const Place& place, const layout::HandleBits& handle);

  Found FindFull(Place* place);
  // Requires that FindFull found it. False: another process has it.
  bool Take(const Place& place);

  // From the next Fill whose FindEmpty begins after this, nothing is sent.
  void Close();
  bool closed() const { return header_->closed.load(std::memory_order_acquire) != 0; }

  // Something was sent, or the channel closed; something was received, or the channel closed.
  SharedEvent items() const { return SharedEvent(&header_->items); }
  SharedEvent room() const { return SharedEvent(&header_->room); }

  uint32_t capacity() const { return mask_ + 1; }
  // How many handles are in it, at some moment lately.
  uint32_t size() const;
  // How many ever went in, and came out; either may be one behind.
  uint64_t sent() const { return header_->tail.load(std::memory_order_relaxed); }
  uint64_t received() const { return header_->head.load(std::memory_order_relaxed); }

 private:
  // An honest process fails once for each success of another, between its load and its
  // compare-and-swap.
  static constexpr int kMaxTries = 10'000;

  ChannelRing(layout::ChannelHeader* header, uint32_t capacity);

  layout::SharedEntry& EntryOf(uint64_t position) const {
    return entries_[static_cast<uint32_t>(position) & mask_];
  }
  uint32_t TurnOf(uint64_t position) const {
    return static_cast<uint32_t>(position >> shift_) & layout::kTurnMask;
  }

  layout::ChannelHeader* header_;
  layout::SharedEntry* entries_;
  // Copied once, and checked.
  uint32_t mask_;
  int shift_;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_CHANNEL_RING_H_

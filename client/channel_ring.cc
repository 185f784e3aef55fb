#include "client/channel_ring.h"

#include <algorithm>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "allocator/check.h"
#include "proto/layout/step.h"

namespace spanpool::internal {

using layout::ChannelEntry;
using layout::ChannelHeader;
using layout::EntryState;
using layout::SharedEntry;

namespace {

// One on from `position`, unless somebody did it.
void Advance(std::atomic<uint64_t>& end, uint64_t position, [[maybe_unused]] const char* step) {
  SPANPOOL_STEP(step);
  // release: the entry was changed before.
  end.compare_exchange_strong(position, position + 1, std::memory_order_release,
                              std::memory_order_relaxed);
}

}  // namespace

ChannelRing::ChannelRing(ChannelHeader* header, uint32_t capacity)
    : header_(header),
      entries_(reinterpret_cast<SharedEntry*>(header + 1)),
      mask_(capacity - 1),
      shift_(std::countr_zero(capacity)) {}

void ChannelRing::Format(void* memory, uint32_t capacity) {
  SPANPOOL_CHECK(std::has_single_bit(capacity) && capacity <= layout::kMaxChannelCapacity);
  auto* const header = static_cast<ChannelHeader*>(memory);
  header->magic = layout::kChannelMagic;
  header->version = layout::kChannelVersion;
  header->capacity = capacity;
}

absl::StatusOr<ChannelRing> ChannelRing::At(void* memory, size_t bytes) {
  if (bytes < sizeof(ChannelHeader) || reinterpret_cast<uintptr_t>(memory) % 64 != 0) {
    return absl::FailedPreconditionError("the block is no channel");
  }
  auto* const header = static_cast<ChannelHeader*>(memory);
  if (header->magic != layout::kChannelMagic) {
    return absl::FailedPreconditionError("the block is no channel");
  }
  if (header->version != layout::kChannelVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("the channel is of version ", header->version, ", this library's of ",
                     layout::kChannelVersion, ": use libraries of one release"));
  }
  // volatile: read once, then checked.
  const uint32_t capacity = *static_cast<volatile uint32_t*>(&header->capacity);
  if (!std::has_single_bit(capacity) || capacity > layout::kMaxChannelCapacity ||
      layout::ChannelBytes(capacity) > bytes) {
    return absl::FailedPreconditionError(absl::StrCat("a channel of ", capacity,
                                                      " entries cannot lie in a block of ", bytes,
                                                      " bytes: some process wrote over it"));
  }
  return ChannelRing(header, capacity);
}

ChannelRing::Found ChannelRing::FindEmpty(Place* place) {
  SPANPOOL_STEP("channel.look");
  if (closed()) return Found::kClosed;
  for (int tries = 0; tries < kMaxTries; ++tries) {
    SPANPOOL_STEP("channel.look");
    const uint64_t position = header_->tail.load(std::memory_order_acquire);
    SharedEntry& at = EntryOf(position);
    SPANPOOL_STEP("channel.look");
    const ChannelEntry entry = at.Load();
    const uint32_t ahead = (entry.turn() - TurnOf(position)) & layout::kTurnMask;
    const EntryState state = entry.state();
    if (ahead == 0 && state == EntryState::kEmpty) {
      *place = {&at, position, entry};
      return Found::kPlace;
    }
    if (ahead == layout::kTurnMask && state == EntryState::kFull) return Found::kNothing;
    if (ahead == 0 && state == EntryState::kSealed) return Found::kClosed;
    if (header_->tail.load(std::memory_order_acquire) != position) continue;
    // Filled, and perhaps emptied again; but who did it has not come to this yet.
    if ((ahead == 0 && state == EntryState::kFull) ||
        (ahead == 1 && (state == EntryState::kEmpty || state == EntryState::kSealed))) {
      Advance(header_->tail, position, "channel.tail");
      continue;
    }
    return Found::kBroken;
  }
  return Found::kRestless;
}

bool ChannelRing::Fill(const Place& place, const layout::HandleBits& handle) {
  ChannelEntry expected = place.entry;
  SPANPOOL_STEP("channel.12b");
  if (!place.at->CompareExchange(expected, Filled(place, handle))) return false;
  Advance(header_->tail, place.position, "channel.tail");
  items().Notify();
  return true;
}

ChannelRing::Found ChannelRing::FindFull(Place* place) {
  for (int tries = 0; tries < kMaxTries; ++tries) {
    SPANPOOL_STEP("channel.look");
    const uint64_t position = header_->head.load(std::memory_order_acquire);
    SharedEntry& at = EntryOf(position);
    SPANPOOL_STEP("channel.look");
    ChannelEntry entry = at.Load();
    const uint32_t ahead = (entry.turn() - TurnOf(position)) & layout::kTurnMask;
    const EntryState state = entry.state();
    if (ahead == 0 && state == EntryState::kFull) {
      *place = {&at, position, entry};
      return Found::kPlace;
    }
    if (ahead == 0 && state == EntryState::kSealed) return Found::kClosed;
    if (ahead == 0 && state == EntryState::kEmpty) {
      SPANPOOL_STEP("channel.look");
      if (!closed()) return Found::kNothing;
      SPANPOOL_STEP("channel.seal");
      if (at.CompareExchange(entry, ChannelEntry::Sealed(TurnOf(position)))) return Found::kClosed;
      continue;
    }
    if (header_->head.load(std::memory_order_acquire) != position) continue;
    // Emptied, and perhaps filled again; but who did it has not come to this yet.
    if (ahead == 1 && state <= EntryState::kSealed) {
      Advance(header_->head, position, "channel.head");
      continue;
    }
    return Found::kBroken;
  }
  return Found::kRestless;
}

bool ChannelRing::Take(const Place& place) {
  ChannelEntry expected = place.entry;
  SPANPOOL_STEP("channel.12f");
  if (!place.at->CompareExchange(expected, ChannelEntry::Empty(place.entry.turn() + 1))) {
    return false;
  }
  Advance(header_->head, place.position, "channel.head");
  room().Notify();
  return true;
}

void ChannelRing::Close() {
  SPANPOOL_STEP("channel.close");
  header_->closed.store(1, std::memory_order_seq_cst);
  items().NotifyAll();
  room().NotifyAll();
}

uint32_t ChannelRing::size() const {
  const uint64_t head = header_->head.load(std::memory_order_acquire);
  const uint64_t tail = header_->tail.load(std::memory_order_acquire);
  return static_cast<uint32_t>(std::min<uint64_t>(tail > head ? tail - head : 0, capacity()));
}

}  // namespace spanpool::internal

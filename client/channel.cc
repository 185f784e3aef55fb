#include "spanpool/channel.h"

#include <bit>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/channel_ring.h"
#include "client/references.h"
#include "client/session_core.h"
#include "client/shared_event.h"
#include "proto/layout/channel_layout.h"
#include "proto/layout/handle_bits.h"

namespace spanpool {

using internal::ChannelRing;
using internal::SessionCore;
using internal::SharedEvent;
using layout::HandleBits;

namespace {

// How often a call looks before it sleeps: some tens of microseconds, about what falling asleep and
// being woken cost.
constexpr int kLooks = 500;

// Handles that one call finds taken by others, or naming nothing, before it lets its caller decide.
constexpr int kMaxHandles = 1000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// Where there is one processor, whoever is waited for cannot run meanwhile.
bool SpinningHelps() {
  static const bool helps = std::thread::hardware_concurrency() > 1;
  return helps;
}

// How much time there is until a deadline, whatever becomes of the clock on the wall.
class Patience {
 public:
  explicit Patience(absl::Time deadline)
      : begin_(std::chrono::steady_clock::now()), all_(deadline - absl::Now()) {}
  absl::Duration left() const {
    return all_ - absl::FromChrono(std::chrono::steady_clock::now() - begin_);
  }

 private:
  const std::chrono::steady_clock::time_point begin_;
  const absl::Duration all_;
};

absl::Status WrittenOver() {
  return absl::DataLossError(
      "some process of the pool wrote over the channel: drop it and create another");
}

}  // namespace

struct Channel::Impl {
  enum class Attempt {
    kDone,
    kNothing,  // there was no room, or nothing to receive; `error` is as it was
    kFailed,   // for the reason in `error`
  };

  SessionCore* const core;  // which `block` keeps alive
  const Buffer block;
  const Handle handle;
  const HandleBits bits;  // of `handle`
  ChannelRing ring;
  std::atomic<uint64_t> dropped{0};
  std::atomic<uint64_t> sleeps{0};

  Impl(Buffer of, const Handle& named, const ChannelRing& in)
      : core(SessionCore::CoreOf(of)),
        block(std::move(of)),
        handle(named),
        bits(HandleBits::Unpack(named.bits[0], named.bits[1])),
        ring(in) {}

  static absl::StatusOr<std::unique_ptr<Channel>> Make(Buffer block);

  Attempt TrySend(Buffer* buffer, absl::Status* error);
  Attempt TryReceive(Buffer* buffer, absl::Status* error);
  // Attempts until it is done, or fails, or the deadline has passed: kNothing.
  template <typename Try>
  Attempt Wait(SharedEvent event, absl::Time deadline, Try attempt);
};

absl::StatusOr<std::unique_ptr<Channel>> Channel::Impl::Make(Buffer block) {
  SessionCore* const core = SessionCore::CoreOf(block);
  if (core == nullptr) return absl::FailedPreconditionError("the buffer is empty");
  if (!core->writable()) {
    return absl::PermissionDeniedError(
        "the session is read-only, and both ends of a channel write to it; attach with kReadWrite");
  }
  absl::StatusOr<ChannelRing> ring = ChannelRing::At(block.data(), block.size());
  if (!ring.ok()) return ring.status();
  absl::StatusOr<Handle> handle = block.Share();
  if (!handle.ok()) return handle.status();
  return std::unique_ptr<Channel>(
      new Channel(std::make_unique<Impl>(std::move(block), *handle, *ring)));
}

Channel::Impl::Attempt Channel::Impl::TrySend(Buffer* buffer, absl::Status* error) {
  ChannelRing::Place place;
  ChannelRing::Found found = ring.FindEmpty(&place);
  if (found == ChannelRing::Found::kPlace) {
    absl::StatusOr<SessionCore::Outgoing> outgoing = core->BeginTransit(buffer);
    if (!outgoing.ok()) {
      *error = outgoing.status();
      return Attempt::kFailed;
    }
    outgoing->transit.channel = {.granule = bits.granule, .generation = bits.generation};
    const HandleBits sent = HandleBits::Unpack(outgoing->handle.bits[0], outgoing->handle.bits[1]);
    do {
      core->Retarget(*outgoing, {.entry = core->OffsetOf(place.at),
                                 .value = ChannelRing::Filled(place, sent).first()});
      if (ring.Fill(place, sent)) {
        core->EndTransit(*outgoing);
        return Attempt::kDone;
      }
      found = ring.FindEmpty(&place);
    } while (found == ChannelRing::Found::kPlace);
    *buffer = core->CancelTransit(*outgoing);
  }
  switch (found) {
    case ChannelRing::Found::kClosed:
      *error = absl::FailedPreconditionError("the channel is closed");
      return Attempt::kFailed;
    case ChannelRing::Found::kBroken:
      *error = WrittenOver();
      return Attempt::kFailed;
    default:
      return Attempt::kNothing;
  }
}

Channel::Impl::Attempt Channel::Impl::TryReceive(Buffer* buffer, absl::Status* error) {
  for (int handles = 0; handles < kMaxHandles; ++handles) {
    ChannelRing::Place place;
    switch (ring.FindFull(&place)) {
      case ChannelRing::Found::kPlace:
        break;
      case ChannelRing::Found::kClosed:
        *error = absl::OutOfRangeError("the channel is closed, and nothing is left in it");
        return Attempt::kFailed;
      case ChannelRing::Found::kBroken:
        *error = WrittenOver();
        return Attempt::kFailed;
      default:
        return Attempt::kNothing;
    }
    const HandleBits found = place.entry.handle(bits.incarnation);
    absl::StatusOr<Buffer> opened = core->Open(Handle{{found.low(), found.high()}});
    if (opened.ok()) {
      if (ring.Take(place)) {
        *buffer = *std::move(opened);
        return Attempt::kDone;
      }
      continue;  // somebody else has it
    }
    if (absl::IsUnavailable(opened.status()) || absl::IsResourceExhausted(opened.status())) {
      // It names something; that it cannot be opened is this process's trouble.
      if (place.at->Load() != place.entry) continue;
      *error = opened.status();
      return Attempt::kFailed;
    }
    // It names nothing: somebody else has it, or its sender is long dead, or somebody lied.
    if (ring.Take(place)) dropped.fetch_add(1, std::memory_order_relaxed);
  }
  return Attempt::kNothing;
}

template <typename Try>
Channel::Impl::Attempt Channel::Impl::Wait(SharedEvent event, absl::Time deadline, Try attempt) {
  Attempt attempted = attempt();
  if (attempted != Attempt::kNothing || deadline == absl::InfinitePast()) return attempted;
  const Patience patience(deadline);
  if (patience.left() <= absl::ZeroDuration()) return attempted;
  if (SpinningHelps()) {
    for (int look = 0; look < kLooks; ++look) {
      Pause();
      if (attempted = attempt(); attempted != Attempt::kNothing) return attempted;
    }
  }
  for (;;) {
    const uint32_t announced = event.Announce();
    if (attempted = attempt(); attempted != Attempt::kNothing) return attempted;
    const absl::Duration left = patience.left();
    if (left <= absl::ZeroDuration()) return attempted;
    sleeps.fetch_add(1, std::memory_order_relaxed);
    event.Sleep(announced, left);
  }
}

Channel::Channel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Channel::~Channel() = default;

absl::StatusOr<std::unique_ptr<Channel>> Channel::Create(Session& session, uint32_t capacity) {
  if (capacity == 0 || capacity > layout::kMaxChannelCapacity) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a channel holds 1 to ", layout::kMaxChannelCapacity, " buffers, not ", capacity));
  }
  const uint32_t rounded = std::bit_ceil(capacity);
  absl::StatusOr<Buffer> block =
      session.Allocate(layout::ChannelBytes(rounded), {.alignment = 64, .zeroed = true});
  if (!block.ok()) return block.status();
  ChannelRing::Format(block->data(), rounded);
  return Impl::Make(*std::move(block));
}

absl::StatusOr<std::unique_ptr<Channel>> Channel::Open(Session& session, const Handle& handle) {
  absl::StatusOr<Buffer> block = session.Open(handle);
  if (!block.ok()) return block.status();
  return Impl::Make(*std::move(block));
}

absl::StatusOr<std::unique_ptr<Channel>> Channel::Open(Buffer block) {
  return Impl::Make(std::move(block));
}

Handle Channel::handle() const { return impl_->handle; }
const Buffer& Channel::block() const { return impl_->block; }

absl::Status Channel::Send(Buffer&& buffer, absl::Time deadline) {
  if (absl::Status status = impl_->core->CheckAttached(); !status.ok()) return status;
  SessionCore* const owner = SessionCore::CoreOf(buffer);
  if (owner != impl_->core) {
    return absl::FailedPreconditionError(
        owner == nullptr ? "the buffer is empty"
                         : "the buffer and the channel are of different sessions");
  }
  absl::Status error;
  switch (
      impl_->Wait(impl_->ring.room(), deadline, [&] { return impl_->TrySend(&buffer, &error); })) {
    case Impl::Attempt::kDone:
      return absl::OkStatus();
    case Impl::Attempt::kFailed:
      return error;
    case Impl::Attempt::kNothing:
      break;
  }
  if (deadline == absl::InfinitePast()) return absl::UnavailableError("the channel is full");
  return absl::DeadlineExceededError("the channel was full until the deadline");
}

absl::Status Channel::TrySend(Buffer&& buffer) {
  return Send(std::move(buffer), absl::InfinitePast());
}

absl::StatusOr<Buffer> Channel::Receive(absl::Time deadline) {
  if (absl::Status status = impl_->core->CheckAttached(); !status.ok()) return status;
  Buffer buffer;
  absl::Status error;
  switch (impl_->Wait(impl_->ring.items(), deadline,
                      [&] { return impl_->TryReceive(&buffer, &error); })) {
    case Impl::Attempt::kDone:
      return buffer;
    case Impl::Attempt::kFailed:
      return error;
    case Impl::Attempt::kNothing:
      break;
  }
  if (deadline == absl::InfinitePast()) return absl::UnavailableError("the channel is empty");
  return absl::DeadlineExceededError("the channel was empty until the deadline");
}

absl::StatusOr<Buffer> Channel::TryReceive() { return Receive(absl::InfinitePast()); }

absl::Status Channel::Close() {
  if (absl::Status status = impl_->core->CheckAttached(); !status.ok()) return status;
  impl_->ring.Close();
  return absl::OkStatus();
}

ChannelStats Channel::stats() const {
  ChannelStats stats;
  stats.capacity = impl_->ring.capacity();
  stats.dropped = impl_->dropped.load(std::memory_order_relaxed);
  stats.sleeps = impl_->sleeps.load(std::memory_order_relaxed);
  if (impl_->core->abandoned()) return stats;
  stats.size = impl_->ring.size();
  stats.sent = impl_->ring.sent();
  stats.received = impl_->ring.received();
  stats.closed = impl_->ring.closed();
  return stats;
}

}  // namespace spanpool

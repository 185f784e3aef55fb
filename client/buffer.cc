#include "spanpool/buffer.h"

#include <algorithm>

#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "allocator/lock_rank.h"
#include "client/references.h"
#include "client/session_core.h"

namespace spanpool {

using internal::Held;

// Buffer::holding_ is
//   0                  the block is private and the Buffer its only owner
//   odd                Held::bits(): the Buffer owns a reference of its own
//   even and not zero  a Joint*: the Buffer is one of its owners

namespace {

// Between two looks at the word of a block whose readers are waited for.
constexpr absl::Duration kShortestLook = absl::Microseconds(20);
constexpr absl::Duration kLongestLook = absl::Milliseconds(2);

// What several Buffers own together.
struct Joint {
  Joint(uintptr_t holding, size_t length) : holding(holding), length(length) {}

  std::atomic<uint32_t> owners{1};
  RankedMutex mu{LockRank::kBuffer};
  uintptr_t holding ABSL_GUARDED_BY(mu);  // as a Buffer's, but no Joint
  size_t length ABSL_GUARDED_BY(mu);      // what was shared, if it was

  // One owner less. For the last: what it held, and the Joint is gone.
  bool Leave(uintptr_t* held) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    // acq_rel: all that other owners did comes before the end.
    if (owners.fetch_sub(1, std::memory_order_acq_rel) != 1) return false;
    *held = holding;
    delete this;
    return true;
  }
};

bool IsHeld(uintptr_t holding) { return (holding & 1) != 0; }
Joint* JointOf(uintptr_t holding) {
  return IsHeld(holding) ? nullptr : reinterpret_cast<Joint*>(holding);
}

absl::Status Empty() { return absl::FailedPreconditionError("the buffer is empty"); }

}  // namespace

namespace internal {

void* TakeBlock(SessionCore* core, size_t bytes) { return core->TakeBlock(bytes); }

uintptr_t ShareBlock(SessionCore* core, void* data, size_t size, Handle* handle) {
  return core->TryShare(data, size, handle);
}

namespace {

ABSL_ATTRIBUTE_NOINLINE void DropJoint(SessionCore* core, void* data, uintptr_t holding) {
  if (JointOf(holding)->Leave(&holding)) {
    core->Release(holding, data);
  } else {
    core->LeaveTo();
  }
}

}  // namespace

void DropBlock(SessionCore* core, void* data, uintptr_t holding) {
  if (ABSL_PREDICT_FALSE(JointOf(holding) != nullptr)) return DropJoint(core, data, holding);
  core->Release(holding, data);
}

}  // namespace internal

absl::Status Buffer::Trim(size_t bytes) {
  if (bytes == 0 || bytes > size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("a buffer of ", size_, " bytes cannot be trimmed to ", bytes));
  }
  uintptr_t holding = holding_;
  if (Joint* const joint = JointOf(holding); joint != nullptr) {
    RankedMutexLock lock(&joint->mu);
    holding = joint->holding;
  }
  if (bytes < size_ && IsHeld(holding)) {
    return absl::FailedPreconditionError("the block is shared: trim it before");
  }
  size_ = bytes;
  return absl::OkStatus();
}

absl::StatusOr<Handle> Buffer::ShareSlowly() {
  if (core_ == nullptr) return Empty();
  const uintptr_t holding = holding_;
  if (Joint* const joint = JointOf(holding); joint != nullptr) {
    RankedMutexLock lock(&joint->mu);
    if (joint->holding == 0) {
      Handle handle;
      absl::Status shared = core_->Share(data_, size_, &joint->holding, &handle);
      if (!shared.ok()) {
        joint->holding = 0;
        return shared;
      }
      joint->length = size_;
      return handle;
    }
    return core_->HandleOf(data_, joint->length);
  }
  if (IsHeld(holding)) return core_->HandleOf(data_, size_);
  uintptr_t held;
  Handle handle;
  absl::Status shared = core_->Share(data_, size_, &held, &handle);
  if (!shared.ok()) return shared;
  holding_ = held;
  return handle;
}

absl::StatusOr<Handle> Buffer::Send() && {
  if (core_ == nullptr) return Empty();
  absl::StatusOr<Handle> handle;
  uintptr_t holding = holding_;
  if (Joint* const joint = JointOf(holding); joint != nullptr) {
    // The others keep what they have; what travels is a reference of this buffer's own.
    handle = Share();
    if (!handle.ok()) return handle;
    absl::StatusOr<Held> own = core_->OpenAgain(data_);
    if (!own.ok()) return own.status();
    if (absl::Status sent = core_->Send(*own, data_); !sent.ok()) {
      core_->DropExtra(*own, data_);
      return sent;
    }
    if (joint->Leave(&holding)) {
      core_->Release(holding, data_);
    } else {
      core_->LeaveTo();
    }
  } else {
    handle = core_->HandleOf(data_, size_);  // first: once sent, the block may be gone at any time
    if (!handle.ok()) return handle;
    absl::Status sent =
        IsHeld(holding) ? core_->Send(Held(holding), data_) : core_->SendPrivate(data_, size_);
    if (!sent.ok()) return sent;
    core_->LeaveTo();
  }
  core_ = nullptr;
  data_ = nullptr;
  size_ = 0;
  holding_ = 0;
  return handle;
}

bool Buffer::IsShared() const {
  uintptr_t holding = HoldingRef().load(std::memory_order_acquire);
  if (Joint* const joint = JointOf(holding); joint != nullptr) {
    RankedMutexLock lock(&joint->mu);
    holding = joint->holding;
  }
  return IsHeld(holding);
}

uint32_t Buffer::readers() const {
  return core_ != nullptr && IsShared() ? core_->OthersOf(data_) : 0;
}

absl::Status Buffer::AwaitNoReaders(absl::Time deadline) const {
  if (core_ == nullptr) return Empty();
  const absl::Time start = absl::Now();
  for (;;) {
    if (absl::Status attached = core_->CheckAttached(); !attached.ok()) return attached;
    const uint32_t others = readers();
    if (others == 0) return absl::OkStatus();
    const absl::Time now = absl::Now();
    if (now >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("there are ", others, " other references to the block still"));
    }
    // So that it is told soon after it happened, in relation to how long it took.
    absl::SleepFor(
        std::min(deadline - now, std::clamp((now - start) / 8, kShortestLook, kLongestLook)));
  }
}

Buffer Buffer::Ref() const {
  if (core_ == nullptr) return Buffer();
  uintptr_t holding = HoldingRef().load(std::memory_order_acquire);
  Joint* joint = JointOf(holding);
  if (joint == nullptr) {
    auto* const mine = new Joint(holding, size_);
    const auto bits = reinterpret_cast<uintptr_t>(mine);
    // acq_rel: const methods may run at once; one of them makes the Joint, all see it whole.
    if (HoldingRef().compare_exchange_strong(holding, bits, std::memory_order_acq_rel,
                                             std::memory_order_acquire)) {
      joint = mine;
    } else {
      delete mine;
      joint = JointOf(holding);
    }
  }
  // relaxed: this buffer is an owner meanwhile.
  joint->owners.fetch_add(1, std::memory_order_relaxed);
  core_->AddOwner();
  return Buffer(internal::BufferKey(), core_, reinterpret_cast<uintptr_t>(joint), data_, size_);
}

}  // namespace spanpool

#include "spanpool/buffer.h"

#include "absl/strings/str_cat.h"
#include "client/references.h"
#include "client/session_core.h"

namespace spanpool {

using internal::Reference;
using internal::References;

void Buffer::Release() {
  internal::SessionCore* const core = std::exchange(core_, nullptr);
  Reference* const reference = reference_.exchange(nullptr, std::memory_order_relaxed);
  size_ = 0;
  core->Release(reference, std::exchange(data_, nullptr));
}

Reference* Buffer::EnsureReference() const {
  Reference* reference = reference_.load(std::memory_order_acquire);
  if (reference != nullptr) return reference;
  Reference* const mine = References::NewPrivate(core_->OffsetOf(data_));
  // acq_rel: const methods may run at once; one of them makes the reference, all see it whole.
  if (reference_.compare_exchange_strong(reference, mine, std::memory_order_acq_rel)) return mine;
  References::Discard(mine);
  return reference;
}

absl::Status Buffer::Trim(size_t bytes) {
  if (bytes == 0 || bytes > size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("a buffer of ", size_, " bytes cannot be trimmed to ", bytes));
  }
  Reference* const reference = reference_.load(std::memory_order_acquire);
  if (bytes < size_ && reference != nullptr && core_->IsShared(reference)) {
    return absl::FailedPreconditionError("the block is shared: trim it before");
  }
  size_ = bytes;
  return absl::OkStatus();
}

absl::StatusOr<Handle> Buffer::Share() {
  if (core_ == nullptr) return absl::FailedPreconditionError("the buffer is empty");
  return core_->Share(EnsureReference(), size_);
}

absl::StatusOr<Handle> Buffer::Send() && {
  absl::StatusOr<Handle> handle = Share();
  if (!handle.ok()) return handle;
  core_->Send(reference_.exchange(nullptr, std::memory_order_relaxed));
  core_ = nullptr;
  data_ = nullptr;
  size_ = 0;
  return handle;
}

Buffer Buffer::Ref() const {
  if (core_ == nullptr) return Buffer();
  Reference* const reference = EnsureReference();
  References::AddOwner(reference);
  core_->Ref();
  return Buffer(core_, reference, data_, size_);
}

}  // namespace spanpool

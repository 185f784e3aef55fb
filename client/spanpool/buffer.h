// A Buffer owns one reference to a block of the pool.

#ifndef SPANPOOL_BUFFER_H_
#define SPANPOOL_BUFFER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "spanpool/handle.h"

namespace spanpool {

class Buffer;
class Session;

namespace internal {
class SessionCore;

// Who has one may make Buffers.
class BufferKey {
  friend class SessionCore;
  friend class spanpool::Buffer;
  friend class spanpool::Session;
  constexpr BufferKey() {}  // NOLINT(modernize-use-equals-default): or anybody could write {}
};

// The common cases of what Buffers are made, shared and dropped by, as far as they need the
// session's internals. By value: then a Buffer that a function makes, shares and ends need not be
// in memory.
//
// A block for a Buffer; null: it takes more.
void* TakeBlock(SessionCore* core, size_t bytes);
// What the block is held as when it is shared (client/buffer.cc); 0: it takes more.
uintptr_t ShareBlock(SessionCore* core, void* data, size_t size, Handle* handle);
// The end of a Buffer.
void DropBlock(SessionCore* core, void* data, uintptr_t holding);
}  // namespace internal

// Move-only; the block lives at least as long as a Buffer for it does, in this process or another.
// Buffers outlive the Session they came from: the last of them ends it. A Buffer that was moved
// from is empty: size() is 0, and only destruction and assignment are allowed.
//
// Thread-safety: as of any value. Const methods may be called at once from several threads; two
// Buffers for the same block are independent. Synchronising access to the bytes is the user's.
//
// In a forked child no Buffer of the parent's may be used; destroying them does nothing.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { Take(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Reset();
      Take(other);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { Reset(); }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  // Exactly what was allocated, or what Trim left of it.
  size_t size() const { return size_; }
  absl::Span<std::byte> span() { return absl::MakeSpan(data_, size_); }
  absl::Span<const std::byte> span() const { return absl::MakeConstSpan(data_, size_); }

  // Makes this buffer `bytes` long: what is shared from now on has that length. The memory behind
  // it is kept until the block is freed. Requires 0 < bytes <= size().
  //   INVALID_ARGUMENT     `bytes` is out of that range
  //   FAILED_PRECONDITION  the block is shared already; its length was given out
  absl::Status Trim(size_t bytes);

  // Lets other processes of the pool open the block by the returned handle, for as long as some
  // process holds it. Sharing again gives the same handle. Everything written to the block before
  // is seen by whoever opens it.
  //   FAILED_PRECONDITION  the block is smaller than 64 bytes (allocate at least 64, or with
  //                        alignment 64), or another process wrote over the block table
  //   RESOURCE_EXHAUSTED   this process has too many references
  absl::StatusOr<Handle> Share();

  // Shares, and lets go: the reference travels with the handle to whoever opens it next, and until
  // then the block lives. If nobody does, Session::TakeBack gets it back; if this process ends or
  // dies, the daemon keeps the reference for its grace period (`transit_grace_ms`).
  //
  // A handle stands for one reference: who is to open the block besides its receiver has to get a
  // handle while somebody keeps a Buffer of it.
  // On an error this buffer is unchanged.
  //   FAILED_PRECONDITION  as Share; or the block was sent before, and nobody has opened it since
  //   RESOURCE_EXHAUSTED   this process has too many references
  //   UNAVAILABLE          the block's references are being recounted after a death; try again
  absl::StatusOr<Handle> Send() &&;

  // How many references to the block there are besides that of this buffer and its Refs, at this
  // moment: one for each Buffer that was opened, in whatever process, for each handle that was sent
  // and not opened yet, and for each name. 0 while the block was not shared. Those of a dead
  // process count until the daemon has taken them back.
  //
  // 0 does not last where somebody still has the handle and this buffer lives.
  uint32_t readers() const;

  // Waits until readers() is 0: everybody else has let go, or died. What they did to the block
  // before is seen. It costs those who let go nothing: the word of the block is looked at again and
  // again, every 20 us at first; who has waited long learns of it up to 2 ms late.
  //   DEADLINE_EXCEEDED    there are readers still
  //   FAILED_PRECONDITION  the buffer is empty, or this is a forked child
  absl::Status AwaitNoReaders(absl::Time deadline) const;

  // Another owner in this process. Cheap: no shared memory is touched.
  Buffer Ref() const;

  // The library's.
  Buffer(internal::BufferKey /*key*/, internal::SessionCore* core, uintptr_t holding, void* data,
         size_t size)
      : core_(core), size_(size), data_(static_cast<std::byte*>(data)), holding_(holding) {}

 private:
  friend class Session;
  friend class internal::SessionCore;

  void Take(Buffer& other) {
    core_ = std::exchange(other.core_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    holding_ = std::exchange(other.holding_, 0);
  }
  // Leaves the members as they are.
  void Reset() {
    if (core_ != nullptr) internal::DropBlock(core_, data_, holding_);
  }
  absl::StatusOr<Handle> ShareSlowly();
  bool IsShared() const;
  std::atomic_ref<uintptr_t> HoldingRef() const { return std::atomic_ref<uintptr_t>(holding_); }

  internal::SessionCore* core_ = nullptr;
  size_t size_ = 0;
  std::byte* data_ = nullptr;
  // How the block is held (client/buffer.cc): 0 while it is private and this buffer its only owner.
  // Const methods, which may run at once, access it by HoldingRef() only.
  mutable uintptr_t holding_ = 0;
};

inline absl::StatusOr<Handle> Buffer::Share() {
  if (__builtin_expect(core_ != nullptr && holding_ == 0, 1)) {
    Handle handle;
    const uintptr_t holding = internal::ShareBlock(core_, data_, size_, &handle);
    if (__builtin_expect(holding != 0, 1)) {
      holding_ = holding;
      return handle;
    }
  }
  return ShareSlowly();
}

}  // namespace spanpool

#endif  // SPANPOOL_BUFFER_H_

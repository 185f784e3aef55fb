// A Buffer owns one reference to a block of the pool.

#ifndef SPANPOOL_BUFFER_H_
#define SPANPOOL_BUFFER_H_

#include <atomic>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "spanpool/handle.h"

namespace spanpool {

namespace internal {
class Reference;
class SessionCore;
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

  // Shares, and lets go: the reference stays with the session, in place of the handle's receiver,
  // and is dropped once some process has taken a reference more than there were (the receiver
  // opened the handle), or this process opened the handle, or the session ends.
  //
  // So the receiver can count on the handle as long as this process lives. What is not promised: a
  // receiver that opens and drops the block before the session next looks is not noticed, and the
  // block then stays in use until the session ends. Where receivers are that quick, Share(), keep
  // the Buffer, and drop it when the receiver answers.
  // On an error this buffer is unchanged.
  absl::StatusOr<Handle> Send() &&;

  // Another owner in this process. Cheap: no shared memory is touched.
  Buffer Ref() const;

 private:
  friend class Session;
  friend class internal::SessionCore;
  Buffer(internal::SessionCore* core, internal::Reference* reference, void* data, size_t size)
      : core_(core), data_(static_cast<std::byte*>(data)), size_(size), reference_(reference) {}

  void Take(Buffer& other) {
    core_ = std::exchange(other.core_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    reference_.store(other.reference_.exchange(nullptr, std::memory_order_relaxed),
                     std::memory_order_relaxed);
  }
  void Reset() {
    if (core_ != nullptr) Release();
  }
  void Release();
  // The reference that this buffer is an owner of, made on first need.
  internal::Reference* EnsureReference() const;

  internal::SessionCore* core_ = nullptr;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  // Null while the block is private and this buffer its only owner.
  mutable std::atomic<internal::Reference*> reference_{nullptr};
};

}  // namespace spanpool

#endif  // SPANPOOL_BUFFER_H_

// A Session attaches this process to a pool and allocates from it.

#ifndef SPANPOOL_SESSION_H_
#define SPANPOOL_SESSION_H_

#include <cstddef>
#include <memory>
#include <memory_resource>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/utility/utility.h"
#include "spanpool/buffer.h"
#include "spanpool/handle.h"
#include "spanpool/names.h"
#include "spanpool/options.h"
#include "spanpool/thread_cache.h"

namespace spanpool {

// Thread-safe. Destroying it frees all blocks of Malloc() and resource(); Buffers stay valid, and
// the process stays attached until the last of them is gone.
//
// While the daemon is away (it is being restarted, or is stopped) the session goes on: what it has
// on loan is allocated from and freed to, handles are opened, shared and sent. What needs the
// daemon waits for it, 5 s if nothing else is said, and fails with UNAVAILABLE; when the daemon is
// back the session goes on with it by itself. If the daemon has ended for good, or has ended the
// session, these calls fail with UNAVAILABLE at once, and say to attach again: the new session is
// of another pool, which refuses the old one's handles; the old one's Buffers stay readable until
// they are dropped.
//
// A forked child is not attached: there whatever returns a Status fails with FAILED_PRECONDITION,
// Malloc() returns nullptr and Free() does nothing, until the child attaches a session of its own.
// The parent is not affected.
class Session {
 public:
  // Attaches to a pool of the daemon at options.target.
  //   UNAVAILABLE          no daemon serves there, or it does not answer
  //   NOT_FOUND            the daemon has no such pool
  //   PERMISSION_DENIED    the pool's access list does not have this user, or not for this access
  //   FAILED_PRECONDITION  daemon and library are of versions that do not fit
  //   RESOURCE_EXHAUSTED   the daemon has all the sessions it allows, or this process has no room
  //                        in its address space
  //   INVALID_ARGUMENT     target or pool is no valid name
  //   UNIMPLEMENTED        the target is host:port: remote pools cannot be attached to yet
  static absl::StatusOr<std::unique_ptr<Session>> Attach(const SessionOptions& options);

  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Allocates a block of `bytes` bytes, its contents arbitrary unless options.zeroed.
  //   INVALID_ARGUMENT     0 bytes, more than the pool can ever hold, or not an alignment
  //   RESOURCE_EXHAUSTED   the pool is full (after options.timeout, if it is not zero)
  //   PERMISSION_DENIED    the session is read-only
  //   UNAVAILABLE          there is no free block here, and the daemon is away and was not back in
  //                        5 s, or options.timeout if that is longer; or the pool is lost
  //   FAILED_PRECONDITION  in a forked child
  absl::StatusOr<Buffer> Allocate(size_t bytes, const AllocateOptions& options = {});

  // Opens a shared block, where it is: nothing is copied.
  //   NOT_FOUND            the block was freed
  //   FAILED_PRECONDITION  the handle is another pool's, or of this pool before it was lost; or
  //                        this is a forked child
  //   INVALID_ARGUMENT     no pool gave this handle out
  //   RESOURCE_EXHAUSTED   too many references: 15,383 to one block, about a million in one process
  //                        (every Buffer that was shared or opened is one; Buffer::Ref adds none)
  //   UNAVAILABLE          the block's references are being recounted; try again. Or its arena is
  //                        new to this process and the daemon does not answer
  //   DATA_LOSS            some process wrote over the pool's tables
  absl::StatusOr<Buffer> Open(const Handle& handle);

  // Publishes the buffer's block under a name, and shares it if it was not. The buffer is the
  // caller's as before: the name holds a reference of its own. Publishing the same block under the
  // same name again succeeds. Waits for the daemon, up to 5 s.
  //   ALREADY_EXISTS       the name stands, for another block or another session's; see
  //                        PublishOptions::replace
  //   INVALID_ARGUMENT     this is no name (names.h says what is)
  //   PERMISSION_DENIED    the session is read-only
  //   RESOURCE_EXHAUSTED   the pool has as many names as it may (`limits.names`), or the block as
  //                        many references as there can be
  //   FAILED_PRECONDITION  the buffer is empty or of another pool; or as Buffer::Share
  //   UNAVAILABLE          the daemon does not answer: the name may stand or not; try again. Or the
  //                        block is being recounted after a death; try again
  //   UNAUTHENTICATED      the daemon has ended the session; attach again
  absl::Status Publish(std::string_view name, const Buffer& buffer,
                       const PublishOptions& options = {});

  // Removes a name, whoever published it. Who has opened the block keeps it.
  //   NOT_FOUND  nothing is published under that name
  //   INVALID_ARGUMENT, PERMISSION_DENIED, UNAVAILABLE, UNAUTHENTICATED  as Publish
  absl::Status Unpublish(std::string_view name);

  // Opens the block that is published under a name at some moment of the call.
  //   NOT_FOUND  nothing is
  //   INVALID_ARGUMENT, UNAVAILABLE, UNAUTHENTICATED  as Publish
  //   and as Open above
  absl::StatusOr<Buffer> Open(std::string_view name);
  // The same, and waits for the name until `deadline`.
  //   DEADLINE_EXCEEDED   nothing was published under it
  //   RESOURCE_EXHAUSTED  also: the session has as many watches as it may, this being one
  absl::StatusOr<Buffer> Open(std::string_view name, absl::Time deadline);

  // The names that begin with `prefix`, in the order of their bytes. Each stood at some moment of
  // the call.
  //   INVALID_ARGUMENT, UNAVAILABLE, UNAUTHENTICATED  as Publish
  absl::StatusOr<std::vector<NamedBlock>> ListNames(std::string_view prefix = "");

  // Watches the names that begin with `prefix`. What else is wrong shows in NameWatch::Next.
  //   INVALID_ARGUMENT  no name can begin so
  absl::StatusOr<std::unique_ptr<NameWatch>> WatchNames(std::string_view prefix = "");

  // Opens what this session sent with the handle (Buffer::Send), if nobody has opened it yet: when
  // its receiver is gone, or the user gives up.
  //
  // A block that was received and sent again has the same handle: what is taken back is what is
  // under way now, and only if this session sent that.
  //   NOT_FOUND  it was opened, or this session never sent it
  //   and as Open
  absl::StatusOr<Buffer> TakeBack(const Handle& handle);

  // As malloc: uninitialised, aligned to 16 bytes (8 for up to 8 bytes), nullptr when the pool is
  // full, or lost, or if there is no free block here and the daemon was away for 5 s. The block is
  // private to this process.
  void* Malloc(size_t bytes) noexcept;
  // From any thread; nullptr is fine. Anything that is not a block of this session's Malloc() or
  // resource() is reported to the misuse handler and left alone.
  void Free(void* block) noexcept;
  // How many bytes of `block` may be used; 0 for nullptr or what is no block of this session.
  size_t UsableSize(const void* block) const noexcept;

  // Allocates as Malloc() does, with any alignment up to 2 MiB. Throws std::bad_alloc, as a
  // memory_resource must, when the pool is full. Lives as long as the session.
  std::pmr::memory_resource* resource() noexcept;

  // Cheap: a few loads per thread and class, and a look at the daemon's sockets.
  SessionStats stats() const;

  // By default each call site that misuses memory is logged to stderr once. A null handler
  // restores that.
  void SetMisuseHandler(MisuseHandler handler);

 private:
  friend class internal::SessionCore;
  explicit Session(internal::SessionCore* core);

  absl::StatusOr<Buffer> AllocateSlow(size_t bytes, const AllocateOptions& options);
  void* MallocSlow(size_t bytes) noexcept;
  void FreeSlow(void* block) noexcept;
  // Debug builds know which blocks are in the user's hands: NoteFreed reports a double free and
  // returns false.
  void NoteTaken(void* block) noexcept;
  bool NoteFreed(void* block) noexcept;

  internal::SessionCore* const core_;
  const std::unique_ptr<std::pmr::memory_resource> resource_;
};

inline absl::StatusOr<Buffer> Session::Allocate(size_t bytes, const AllocateOptions& options) {
  // Whether these are the default ones the compiler knows, most often.
  if (options.alignment == AllocateOptions().alignment && !options.zeroed &&
      options.kind == BlockKind::kNoscan) {
    void* const block = internal::TakeBlock(core_, bytes);
    if (__builtin_expect(block != nullptr, 1)) {
      return absl::StatusOr<Buffer>(absl::in_place, internal::BufferKey(), core_, uintptr_t{0},
                                    block, bytes);
    }
  }
  return AllocateSlow(bytes, options);
}

inline void* Session::Malloc(size_t bytes) noexcept {
  // Small sizes are told apart by one comparison.
  if (__builtin_expect(bytes > internal::kFineBytes, 0) && bytes > internal::kInlineBytes) {
    return MallocSlow(bytes);
  }
  internal::ThreadCache* const cache = internal::hot_cache;
  void* block = internal::Pop(cache, &internal::ThreadCache::session, this,
                              cache->stack_of[internal::IndexOfSize(bytes)]);
  if (__builtin_expect(block == nullptr, 0)) return MallocSlow(bytes);
#ifdef SPANPOOL_DEBUG
  NoteTaken(block);
#endif
  return block;
}

inline void Session::Free(void* block) noexcept {
#ifdef SPANPOOL_DEBUG
  if (!NoteFreed(block)) return;
#endif
  if (__builtin_expect(
          !internal::Push(internal::hot_cache, &internal::ThreadCache::session, this, block), 0)) {
    FreeSlow(block);
  }
}

}  // namespace spanpool

#endif  // SPANPOOL_SESSION_H_

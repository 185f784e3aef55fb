// A Channel hands buffers from process to process: a bounded queue, any number of senders and
// receivers, no copy, no call to the daemon and, while neither side has to wait, none to the
// kernel.
//
//   auto channel = spanpool::Channel::Create(*session, 64);
//   auto handle = (*channel)->handle();             // to the other process, by any means
//   auto sent = (*channel)->Send(*std::move(buffer));
//
//   auto channel = spanpool::Channel::Open(*session, handle);
//   auto buffer = (*channel)->Receive(absl::Now() + absl::Seconds(1));
//
// Who sends lets go: the reference travels with the handle. Buffers come out in the order in which
// they went in, over all senders; each is received once.
//
// What a death does. A process may be killed or stopped at any instruction of these calls. The
// others go on: nobody waits for it, and nothing is lost or comes twice but this:
//   * Killed in Send: its buffer is in the channel, or is gone with the process.
//   * Killed in Receive, or after it: the buffer that it had taken out is gone with it. One that it
//     had not taken out yet is there for others.
//   * What a process sent before it ended stays in the channel for the daemon's grace period
//     (`transit_grace_ms`). What nobody has received by then is dropped.
//   * Stopped in Receive for long: others take what it was about to.
// "Gone" is the reference: if nobody else holds the block, it is free again.
// Who sleeps and was to be woken by a process that died first looks by itself within 50 ms.
//
// Who else has it open block().readers() tells: each Channel, in whatever process, and each name
// that the channel is published under, is one; those of a dead process go when the daemon has taken
// them back. So who waits for a peer that may die waits a while at a time, and looks. To learn at
// once who died, let each peer publish a name (names.h).
//
// The channel lives in a block of the pool, as long as anybody has it open. When the last one lets
// go, what is still in it is dropped: by each sender when it next allocates, sends or tidies up.
//
// All members of the pool that may write can reach the block. One that means ill can lose, invent
// and reorder what is in the channel, but nobody crashes or hangs by it: handles are checked when
// they are opened, those that name nothing are skipped, and a channel that was written over says
// DATA_LOSS.

#ifndef SPANPOOL_CHANNEL_H_
#define SPANPOOL_CHANNEL_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "spanpool/buffer.h"
#include "spanpool/handle.h"
#include "spanpool/session.h"

namespace spanpool {

struct ChannelStats {
  uint32_t capacity = 0;
  uint32_t size = 0;      // buffers in it now
  uint64_t sent = 0;      // ever, by all processes
  uint64_t received = 0;  // likewise
  uint64_t dropped = 0;   // handles that this object took out and that named nothing any more
  uint64_t sleeps = 0;    // how often a thread of this object waited in the kernel
  bool closed = false;
};

// Thread-safe. Keeps what it needs of the session alive, as Buffers do. In a forked child every
// call but the destructor fails with FAILED_PRECONDITION.
class Channel {
 public:
  // A new channel for `capacity` buffers, rounded up to a power of two: 16 bytes each.
  //   INVALID_ARGUMENT     capacity is 0 or more than 2^20
  //   and as Session::Allocate and Buffer::Share
  static absl::StatusOr<std::unique_ptr<Channel>> Create(Session& session, uint32_t capacity);

  // The channel that another process created.
  //   PERMISSION_DENIED    the session is read-only; to receive is to write
  //   FAILED_PRECONDITION  the block is no channel, or one of another version of this library
  //   and as Session::Open
  static absl::StatusOr<std::unique_ptr<Channel>> Open(Session& session, const Handle& handle);
  // The same, of a buffer that was opened, by a name for example.
  static absl::StatusOr<std::unique_ptr<Channel>> Open(Buffer block);

  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // For others to open it by, as long as somebody has it open.
  Handle handle() const;
  // The block it lives in: to be published under a name.
  const Buffer& block() const;

  // Sends the buffer, which is empty afterwards; waits for room until `deadline`. On an error the
  // buffer keeps its block (it may have been shared). Other Buffers of the block are not affected.
  //   DEADLINE_EXCEEDED    the channel was full all the time
  //   FAILED_PRECONDITION  the channel is closed; or the buffer is empty, of another session, or
  //                        smaller than 64 bytes
  //   DATA_LOSS            some process wrote over the channel
  //   RESOURCE_EXHAUSTED   this process has too many references
  //   UNAVAILABLE          the block's references are being recounted after a death; try again
  absl::Status Send(Buffer&& buffer, absl::Time deadline = absl::InfiniteFuture());
  // The same without waiting: UNAVAILABLE if the channel is full.
  absl::Status TrySend(Buffer&& buffer);

  // The first buffer of the channel; waits for one until `deadline`.
  //   DEADLINE_EXCEEDED    the channel was empty all the time
  //   OUT_OF_RANGE         the channel was closed, and everything in it was received
  //   DATA_LOSS            some process wrote over the channel
  //   RESOURCE_EXHAUSTED, UNAVAILABLE  the first buffer could not be opened, and is still there:
  //                        see Session::Open
  absl::StatusOr<Buffer> Receive(absl::Time deadline = absl::InfiniteFuture());
  // The same without waiting: UNAVAILABLE if the channel is empty.
  absl::StatusOr<Buffer> TryReceive();

  // For everybody: no Send that begins after this succeeds; what is in the channel can still be
  // received, and then Receive says OUT_OF_RANGE. Wakes all who wait. Closing again does nothing.
  absl::Status Close();

  ChannelStats stats() const;

 private:
  struct Impl;
  explicit Channel(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace spanpool

#endif  // SPANPOOL_CHANNEL_H_

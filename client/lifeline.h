// A session's attach socket (proto/layout/attach.h), whose end is the end of the session.
//
// Over it go the handshake, the descriptors of arenas, one request at a time, and the farewell; and
// what the daemon says unasked, at any time: recalls, and that another worker has taken over. A
// worker that ends leaves the socket open for its successor. When the socket ends nobody is left
// who knows what is on loan: the pool is lost to this session.
//
// Invariant: at most one request is without a reply, also when nobody waits for it any more: the
// next one is sent when its reply has come, or a notice says that it may be lost. Replies are told
// apart by type and arena; what nobody waits for is dropped.
//
// Thread-safe. Its lock (kLink) is held while the daemon answers.

#ifndef SPANPOOL_CLIENT_LIFELINE_H_
#define SPANPOOL_CLIENT_LIFELINE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "client/span_source.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"

namespace spanpool::internal {

class Lifeline {
 public:
  // Connects to the socket at `path`.
  //   UNAVAILABLE         nobody serves there
  //   PERMISSION_DENIED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED  what is wrong with the path or here
  static absl::StatusOr<layout::UniqueFd> Connect(const std::string& path);

  Lifeline(std::string path, layout::UniqueFd socket);
  Lifeline(const Lifeline&) = delete;
  Lifeline& operator=(const Lifeline&) = delete;

  // The handshake; first. Returns the descriptors of session segment and control.
  //   UNAVAILABLE          the daemon hung up, or did not answer in time
  //   FAILED_PRECONDITION  what answers speaks another protocol
  //   any other            the daemon's
  absl::StatusOr<std::vector<layout::UniqueFd>> Attach(const layout::AttachRequest& request,
                                                       absl::Time deadline,
                                                       layout::AttachReply* reply);
  // As SpanSource. A worker that takes over meanwhile is asked again.
  absl::StatusOr<ArenaFds> OpenArena(ArenaIndex arena, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Detach(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

  // What the daemon has said since the last call. Never waits for it, but for a thread that does.
  struct Notices {
    std::optional<RecallRequest> recall;  // the last
    bool resumed = false;                 // another worker has taken over
  };
  Notices TakeNotices() ABSL_LOCKS_EXCLUDED(mu_);
  void AnswerRecall(uint64_t number);
  // `wake` is called when another thread than TakeNotices' has come upon a notice; `resumed` at
  // once, whoever it is, under this object's lock. Set before any other call.
  void SetCallbacks(std::function<void()> wake, std::function<void()> resumed)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Whether the socket has ended. Never waits.
  bool ended();
  // Becomes readable, or is hung up, when there may be a notice.
  int fd() const { return fd_; }
  // In a forked child, whose copy would keep the lifeline open after the parent's end; this object
  // is not used or destroyed there. Async-signal-safe.
  void AbandonInChild();

 private:
  // What a request waits for.
  struct Asked {
    layout::AttachType reply{};
    uint32_t arena = 0;
    bool operator==(const Asked&) const = default;
  };
  struct Incoming {
    bool resumed = false;  // a worker has taken over; there is nothing else
    std::array<std::byte, layout::kMaxAttachMessageBytes> bytes;
    size_t size = 0;
    std::vector<layout::UniqueFd> fds;
  };

  // The next packet that is no recall, until `deadline`.
  //   UNAVAILABLE        the socket has ended
  //   DEADLINE_EXCEEDED  there is none
  absl::Status NextLocked(absl::Time deadline, Incoming* incoming)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sends the request unless it was sent already, and waits for its reply.
  absl::Status AskLocked(const Asked& asked, std::span<const std::byte> request,
                         absl::Time deadline, Incoming* reply) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // AskLocked, and the reply in its type. Its code is turned into a status; there come `fds`
  // descriptors if that is OK.
  template <typename Request, typename Reply>
  absl::StatusOr<std::vector<layout::UniqueFd>> CallLocked(const Asked& asked,
                                                           const Request& request, size_t fds,
                                                           absl::Time deadline, Reply* reply)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WakeIfNoted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Ended(int error) const;
  absl::Status WrongProtocol() const;

  // Constant.
  const std::string path_;
  const int fd_;
  const layout::UniqueFd socket_;

  std::atomic<bool> ended_{false};
  std::atomic<bool> noted_{false};  // notices_ has something

  RankedMutex mu_{LockRank::kLink};
  Notices notices_ ABSL_GUARDED_BY(mu_);
  std::optional<Asked> asked_ ABSL_GUARDED_BY(mu_);  // and not answered
  std::function<void()> wake_ ABSL_GUARDED_BY(mu_);
  std::function<void()> resumed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_LIFELINE_H_

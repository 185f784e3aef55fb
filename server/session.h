// One client process attached to one pool.
//
//   attached ──lifeline ends, or evicted──▶ detached ──process dies──▶ dead ──reaped──▶ ended
//       │  ╰───────────────process dies──────────────────────────────▲
//       ├──clean detach: nothing on loan, only handles in transit left──────────────▶ dead
//       ╰──clean detach: nothing on loan, all slots free──────────────────────────────▶ ended
//
// "Dead" is a session whose client will not touch its memory any more, as its pidfd or the client
// itself said. Only an attached session is granted anything. What a detached one holds stays as it
// is: its process lives and may still write to it. Only death, which the pidfd tells, lets it be
// reused.
//
// Invariants
//  1. A span is in loans() from before the client learns of the grant until it is returned, or
//     until the reaper takes it, which it does only when every slot is FREE (PROTOCOL: "order after
//     a death").
//  2. loan_bytes is the sum over loans(); it plus pending_bytes never exceeds the limit.
//  3. State only moves along the arrows.
//  4. At most one Exchange stream carries out messages: the next may begin when the one before is
//     over.
//
// Thread-safe. Lock rank: kSession.

#ifndef SPANPOOL_SERVER_SESSION_H_
#define SPANPOOL_SERVER_SESSION_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "allocator/lock_rank.h"
#include "allocator/span.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "server/access.h"
#include "server/session_memory.h"

namespace spanpool {

class Pool;

using SessionToken = std::array<uint8_t, layout::kTokenBytes>;

enum class SessionState : uint8_t { kAttached, kDetached, kDead, kEnded };

// The session's open Exchange stream, whatever carries it.
class SessionStream {
 public:
  virtual ~SessionStream() = default;
  // Ends the stream with `status`, at the next moment it can. Never waits.
  virtual void End(const absl::Status& status) = 0;
  // No stream of the session before this one carries out anything any more. Once, if at all.
  virtual void MayBegin() {}
};

class Session {
 public:
  static constexpr size_t kMaxWatches = 32;

  struct Loan {
    uint64_t sequence = 0;
    Span* span = nullptr;
  };

  Session(Pool* pool, uint32_t id, const SessionToken& token, PeerIdentity peer,
          layout::AccessMode access, uint64_t limit_bytes, layout::UniqueFd pidfd,
          std::unique_ptr<SessionMemory> memory);

  // Constant.
  Pool& pool() const { return *pool_; }
  uint32_t id() const { return id_; }
  const SessionToken& token() const { return token_; }
  const PeerIdentity& peer() const { return peer_; }
  layout::AccessMode access() const { return access_; }
  int pidfd() const { return pidfd_.get(); }
  SessionMemory& memory() const { return *memory_; }
  // "session 7 (pid 123, uid 1000)".
  std::string Describe() const;

  SessionState state() const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t loan_bytes() const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t limit_bytes() const { return limit_bytes_; }
  // Of all spans that the client returned, ever.
  uint64_t returned_bytes() const { return returned_bytes_.load(std::memory_order_relaxed); }

  // Each moves along one arrow; false if the state was another, or, for EndClean and Retire, if
  // something is on loan or about to be. Detach and Kill end the stream.
  bool Detach(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mu_);  // attached → detached
  bool Kill() ABSL_LOCKS_EXCLUDED(mu_);                           // attached, detached → dead
  bool EndClean() ABSL_LOCKS_EXCLUDED(mu_);                       // attached → ended
  bool Retire() ABSL_LOCKS_EXCLUDED(mu_);                         // attached → dead
  bool EndReaped() ABSL_LOCKS_EXCLUDED(mu_);                      // dead, without loans → ended

  // Sets aside `bytes` of the limit for a grant under way, or says that they would exceed it.
  bool Reserve(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  void Unreserve(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  // Records the grants, for which `reserved_bytes` were set aside in all. False if the session is
  // not attached (any more): nothing is recorded, and the reservation is undone.
  bool Record(const std::vector<Loan>& loans, uint64_t reserved_bytes) ABSL_LOCKS_EXCLUDED(mu_);
  // Takes the loan of that sequence number out of the record; null if there is none, or the session
  // is not attached.
  Span* TakeLoan(uint64_t sequence) ABSL_LOCKS_EXCLUDED(mu_);
  // The reaper's: takes out up to `most` loans of a dead session, oldest first. O(most).
  std::vector<Span*> TakeLoans(size_t most) ABSL_LOCKS_EXCLUDED(mu_);
  size_t loan_count() const ABSL_LOCKS_EXCLUDED(mu_);

  // Those of `sequences`, which ascend, that are not on record. O(sequences + what is on record
  // between the first and the last of them).
  std::vector<uint64_t> NotOnLoan(absl::Span<const uint64_t> sequences) const
      ABSL_LOCKS_EXCLUDED(mu_);
  // Takes up to `most` loans out of the record whose numbers are above `after`, at most `last`, and
  // not in `kept`, which ascends. None if the session is not attached. O(kept + what is on record
  // there).
  std::vector<Span*> TakeLoansBut(absl::Span<const uint64_t> kept, uint64_t after, uint64_t last,
                                  size_t most) ABSL_LOCKS_EXCLUDED(mu_);

  // Makes `stream` the session's; the one before, if any, ends with ABORTED. It may begin once none
  // before it carries out anything: its MayBegin is called, here or later. False, and nothing is
  // done, unless the session is attached.
  bool SetStream(const std::shared_ptr<SessionStream>& stream) ABSL_LOCKS_EXCLUDED(mu_);
  // Says that `stream` carries out nothing any more. Each stream says so once it has ended.
  void StreamIsOver(const SessionStream* stream) ABSL_LOCKS_EXCLUDED(mu_);

  // Adds a stream beside it, which ends when the session does. RESOURCE_EXHAUSTED if there are
  // kMaxWatches already, UNAUTHENTICATED if the session is not attached.
  absl::Status AddWatch(const std::shared_ptr<SessionStream>& stream) ABSL_LOCKS_EXCLUDED(mu_);

  // The reaper's thread only: how far it has come.
  struct Reaping {
    std::chrono::steady_clock::time_point died;  // when the kernel said so
    SessionMemory::SlotRange slots;              // are being read: so much is left of them
    uint32_t references = 0;                     // taken back
    uint64_t spans = 0;                          // likewise
    // Slots in flight, on blocks that others refer to: they need a recount.
    std::vector<uint32_t> ambiguous;
    int recounts = 0;  // that were made for them, and not put off
    // Something made no sense, and the log has it.
    bool lied = false;
  };
  Reaping reaping;

 private:
  bool Leave(SessionState next) ABSL_LOCKS_EXCLUDED(mu_);
  // Returns the streams that are to end.
  using Streams = std::vector<std::shared_ptr<SessionStream>>;
  Streams MoveTo(SessionState next) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void EndAll(const Streams& streams, const absl::Status& why);
  using Loans = absl::btree_map<uint64_t, Span*>;
  // Takes one out of the record that the client gave back, and moves `loan` to the next.
  Span* TakeLocked(Loans::iterator* loan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Pool* const pool_;
  const uint32_t id_;
  const SessionToken token_;
  const PeerIdentity peer_;
  const layout::AccessMode access_;
  const uint64_t limit_bytes_;
  const layout::UniqueFd pidfd_;
  const std::unique_ptr<SessionMemory> memory_;

  // Changed under mu_; read by anyone, for the operator.
  std::atomic<uint64_t> returned_bytes_{0};

  mutable RankedMutex mu_{LockRank::kSession};
  SessionState state_ ABSL_GUARDED_BY(mu_) = SessionState::kAttached;
  // By sequence number: those that were granted together are often neighbours in memory, too.
  Loans loans_ ABSL_GUARDED_BY(mu_);
  uint64_t loan_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;            // reserved, not recorded yet
  std::weak_ptr<SessionStream> stream_ ABSL_GUARDED_BY(mu_);   // the newest
  std::weak_ptr<SessionStream> carrier_ ABSL_GUARDED_BY(mu_);  // the one that may have begun
  std::vector<std::weak_ptr<SessionStream>> watches_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_SESSION_H_

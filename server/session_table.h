// Every session of the daemon, by token, and how many there may be.
//
// A session is in the table from its attach until it has ended, dead ones that are being reaped
// included: they count, for their memory is still theirs.
//
// The last eighth of the sessions is kept for users who have few: a user other than root and the
// daemon's own cannot shut the others out.
//
// Thread-safe. Lock rank: kSessionTable; never held while a session is looked into.

#ifndef SPANPOOL_SERVER_SESSION_TABLE_H_
#define SPANPOOL_SERVER_SESSION_TABLE_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "allocator/lock_rank.h"
#include "server/session.h"

namespace spanpool {

class SessionTable {
 public:
  // Of the users, `daemon_uid` and root are not limited.
  explicit SessionTable(uint32_t max_sessions, uid_t daemon_uid = 0)
      : max_sessions_(max_sessions), daemon_uid_(daemon_uid) {}

  // A number for a new session, never given before.
  uint32_t NextId() { return next_id_.fetch_add(1, std::memory_order_relaxed); }

  // From a restart on no number below `next` is given: they were, by an earlier worker.
  void RaiseNextId(uint32_t next) {
    uint32_t now = next_id_.load(std::memory_order_relaxed);
    while (now < next && !next_id_.compare_exchange_weak(now, next, std::memory_order_relaxed)) {
    }
  }
  uint32_t max_sessions() const { return max_sessions_; }

  //   RESOURCE_EXHAUSTED  the limit on sessions, or that of one user, is reached
  absl::Status Add(const std::shared_ptr<Session>& session) ABSL_LOCKS_EXCLUDED(mu_);
  // One that an earlier worker admitted.
  void Restore(const std::shared_ptr<Session>& session) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const Session& session) ABSL_LOCKS_EXCLUDED(mu_);

  // The session of that token, or null. Any bytes are allowed.
  std::shared_ptr<Session> Find(absl::string_view token) const ABSL_LOCKS_EXCLUDED(mu_);

  // All sessions, of `pool` only if it is not null.
  std::vector<std::shared_ptr<Session>> Snapshot(const Pool* pool = nullptr) const
      ABSL_LOCKS_EXCLUDED(mu_);

  // What Add would say to one more session of `uid`.
  absl::Status RoomFor(uid_t uid) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void AddLocked(const std::shared_ptr<Session>& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status RoomForLocked(uid_t uid) const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  const uint32_t max_sessions_;
  const uid_t daemon_uid_;
  std::atomic<uint32_t> next_id_{1};
  mutable RankedMutex mu_{LockRank::kSessionTable};
  absl::flat_hash_map<SessionToken, std::shared_ptr<Session>> sessions_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uid_t, uint32_t> by_uid_ ABSL_GUARDED_BY(mu_);  // those that have any
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_SESSION_TABLE_H_

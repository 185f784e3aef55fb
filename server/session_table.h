// Every session of the daemon, by token, and how many there may be.
//
// A session is in the table from its attach until it has ended, dead ones that are being reaped
// included: they count, for their memory is still theirs.
//
// Thread-safe. Lock rank: kSessionTable; never held while a session is looked into.

#ifndef SPANPOOL_SERVER_SESSION_TABLE_H_
#define SPANPOOL_SERVER_SESSION_TABLE_H_

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
  explicit SessionTable(uint32_t max_sessions) : max_sessions_(max_sessions) {}

  // A number for a new session, never given before.
  uint32_t NextId() { return next_id_.fetch_add(1, std::memory_order_relaxed); }

  //   RESOURCE_EXHAUSTED  the limit on sessions is reached
  absl::Status Add(std::shared_ptr<Session> session) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const Session& session) ABSL_LOCKS_EXCLUDED(mu_);

  // The session of that token, or null. Any bytes are allowed.
  std::shared_ptr<Session> Find(absl::string_view token) const ABSL_LOCKS_EXCLUDED(mu_);

  // All sessions, of `pool` only if it is not null.
  std::vector<std::shared_ptr<Session>> Snapshot(const Pool* pool = nullptr) const
      ABSL_LOCKS_EXCLUDED(mu_);

  bool full() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const uint32_t max_sessions_;
  std::atomic<uint32_t> next_id_{1};
  mutable RankedMutex mu_{LockRank::kSessionTable};
  absl::flat_hash_map<SessionToken, std::shared_ptr<Session>> sessions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_SESSION_TABLE_H_

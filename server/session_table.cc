#include "server/session_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "allocator/check.h"

namespace spanpool {

absl::Status SessionTable::Add(const std::shared_ptr<Session>& session) {
  RankedMutexLock lock(&mu_);
  if (absl::Status status = RoomForLocked(session->peer().uid); !status.ok()) return status;
  AddLocked(session);
  return absl::OkStatus();
}

void SessionTable::Restore(const std::shared_ptr<Session>& session) {
  RankedMutexLock lock(&mu_);
  AddLocked(session);
}

void SessionTable::AddLocked(const std::shared_ptr<Session>& session) {
  ++by_uid_[session->peer().uid];
  const SessionToken token = session->token();
  SPANPOOL_CHECK(sessions_.emplace(token, session).second) << "token given twice";
}

void SessionTable::Remove(const Session& session) {
  std::shared_ptr<Session> removed;  // destroyed outside the lock: it unmaps memory
  RankedMutexLock lock(&mu_);
  const auto it = sessions_.find(session.token());
  if (it == sessions_.end()) return;
  removed = std::move(it->second);
  sessions_.erase(it);
  const auto count = by_uid_.find(session.peer().uid);
  if (--count->second == 0) by_uid_.erase(count);
}

std::shared_ptr<Session> SessionTable::Find(absl::string_view token) const {
  SessionToken key;
  if (token.size() != key.size()) return nullptr;
  std::copy(token.begin(), token.end(), key.begin());
  RankedMutexLock lock(&mu_);
  const auto it = sessions_.find(key);
  return it == sessions_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Session>> SessionTable::Snapshot(const Pool* pool) const {
  std::vector<std::shared_ptr<Session>> sessions;
  RankedMutexLock lock(&mu_);
  sessions.reserve(sessions_.size());
  for (const auto& [token, session] : sessions_) {
    if (pool == nullptr || &session->pool() == pool) sessions.push_back(session);
  }
  return sessions;
}

absl::Status SessionTable::RoomFor(uid_t uid) const {
  RankedMutexLock lock(&mu_);
  return RoomForLocked(uid);
}

absl::Status SessionTable::RoomForLocked(uid_t uid) const {
  if (sessions_.size() >= max_sessions_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the daemon has its ", max_sessions_,
                     " sessions; end some, or raise limits.sessions in its configuration"));
  }
  const uint32_t kept = max_sessions_ / 8;
  if (uid == 0 || uid == daemon_uid_ || sessions_.size() < max_sessions_ - kept) {
    return absl::OkStatus();
  }
  const auto count = by_uid_.find(uid);
  if (count == by_uid_.end() || count->second < kept) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("uid ", uid, " has ", count->second, " of the daemon's ", max_sessions_,
                   " sessions, and the last ", kept,
                   " are kept for other users; end some, or raise limits.sessions"));
}

}  // namespace spanpool

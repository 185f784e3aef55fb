#include "server/session_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "allocator/check.h"

namespace spanpool {

absl::Status SessionTable::Add(std::shared_ptr<Session> session) {
  RankedMutexLock lock(&mu_);
  if (sessions_.size() >= max_sessions_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the daemon has its ", max_sessions_,
                     " sessions; end some, or raise limits.sessions in its configuration"));
  }
  const SessionToken token = session->token();
  SPANPOOL_CHECK(sessions_.emplace(token, std::move(session)).second) << "token given twice";
  return absl::OkStatus();
}

void SessionTable::Remove(const Session& session) {
  std::shared_ptr<Session> removed;  // destroyed outside the lock: it unmaps memory
  RankedMutexLock lock(&mu_);
  const auto it = sessions_.find(session.token());
  if (it == sessions_.end()) return;
  removed = std::move(it->second);
  sessions_.erase(it);
}

std::shared_ptr<Session> SessionTable::Find(absl::string_view token) const {
  SessionToken key;
  if (token.size() != key.size()) return nullptr;
  std::copy(token.begin(), token.end(), key.begin());
  RankedReaderLock lock(&mu_);
  const auto it = sessions_.find(key);
  return it == sessions_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Session>> SessionTable::Snapshot(const Pool* pool) const {
  std::vector<std::shared_ptr<Session>> sessions;
  RankedReaderLock lock(&mu_);
  sessions.reserve(sessions_.size());
  for (const auto& [token, session] : sessions_) {
    if (pool == nullptr || &session->pool() == pool) sessions.push_back(session);
  }
  return sessions;
}

bool SessionTable::full() const {
  RankedReaderLock lock(&mu_);
  return sessions_.size() >= max_sessions_;
}

}  // namespace spanpool

// Who may do what with a pool: the levels of access and the rules that grant them.

#ifndef SPANPOOL_SERVER_ACCESS_H_
#define SPANPOOL_SERVER_ACCESS_H_

#include <sys/types.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace spanpool {

// Each level includes those before it.
enum class AccessLevel : uint8_t { kNone, kRead, kWrite, kAdmin };

// Exactly one of uid and gid is set.
struct AccessRule {
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  AccessLevel access = AccessLevel::kNone;
};

// What the kernel says of a process at the other end of a unix socket.
struct PeerIdentity {
  pid_t pid = 0;
  uid_t uid = 0;
  std::vector<gid_t> gids;  // primary and supplementary
};

// The highest level that any rule grants to `peer`; the daemon's own uid has kAdmin without a rule.
inline AccessLevel AccessOf(const PeerIdentity& peer, uid_t daemon_uid,
                            const std::vector<AccessRule>& rules) {
  if (peer.uid == daemon_uid) return AccessLevel::kAdmin;
  AccessLevel best = AccessLevel::kNone;
  for (const AccessRule& rule : rules) {
    const bool matches =
        (rule.uid && *rule.uid == peer.uid) ||
        (rule.gid && std::find(peer.gids.begin(), peer.gids.end(), *rule.gid) != peer.gids.end());
    if (matches) best = std::max(best, rule.access);
  }
  return best;
}

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_ACCESS_H_

// Who is at the other end of a unix socket, and how to learn of that process's death.
//
// Stateless; thread-safe.

#ifndef SPANPOOL_SERVER_PEER_H_
#define SPANPOOL_SERVER_PEER_H_

#include "absl/status/statusor.h"
#include "proto/layout/packet.h"
#include "server/access.h"

namespace spanpool {

// The credentials of the process that connected `socket`, as the kernel recorded them then.
//   INTERNAL  not a connected unix socket
absl::StatusOr<PeerIdentity> PeerIdentityOf(int socket);

// A pidfd of that process: readable once it is dead, that is, once no thread of it can run again
// and its mappings are gone. Exact from Linux 6.5 on. Before, it is opened by pid and then
// verified: the process must be alive and run under the peer's uid, and the socket be open at its
// end.
//   FAILED_PRECONDITION  the peer cannot be told from another process (an old kernel, and another
//                        pid namespace), or is dead already
//   RESOURCE_EXHAUSTED   no descriptor left
absl::StatusOr<layout::UniqueFd> PidfdOf(int socket, const PeerIdentity& peer);

// Whether the process of `pidfd` is dead.
bool IsDead(int pidfd);

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_PEER_H_

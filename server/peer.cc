#include "server/peer.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

// Newer than the C library's headers.
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace spanpool {
namespace {

absl::Status ErrorOf(int error, const std::string& what) {
  const std::string text = absl::StrCat(what, ": ", strerror(error));
  if (error == EMFILE || error == ENFILE || error == ENOMEM) {
    return absl::ResourceExhaustedError(text);
  }
  return absl::FailedPreconditionError(text);
}

}  // namespace

absl::StatusOr<PeerIdentity> PeerIdentityOf(int socket) {
  ucred credentials;
  socklen_t length = sizeof(credentials);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return absl::InternalError(absl::StrCat("SO_PEERCRED: ", strerror(errno)));
  }
  PeerIdentity peer{.pid = credentials.pid, .uid = credentials.uid, .gids = {}};
  std::vector<gid_t> groups(32);
  for (;;) {
    length = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    if (getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &length) == 0) {
      groups.resize(length / sizeof(gid_t));
      break;
    }
    if (errno != ERANGE) {  // before Linux 4.13: the primary group has to do
      groups.clear();
      break;
    }
    groups.resize(length / sizeof(gid_t));
  }
  peer.gids = std::move(groups);
  peer.gids.push_back(credentials.gid);
  return peer;
}

absl::StatusOr<layout::UniqueFd> PidfdOf(int socket, const PeerIdentity& peer) {
  int pidfd = -1;
  socklen_t length = sizeof(pidfd);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0) {
    return layout::UniqueFd(pidfd);
  }
  if (errno != ENOPROTOOPT) {
    return ErrorOf(errno, absl::StrCat("pidfd of process ", peer.pid));
  }
  if (peer.pid <= 0) {
    return absl::FailedPreconditionError(
        "the client is in another pid namespace, which needs Linux 6.5 or newer: share the pid "
        "namespace of the daemon");
  }
  layout::UniqueFd opened(static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0)));
  if (!opened.valid()) return ErrorOf(errno, absl::StrCat("pidfd_open of ", peer.pid));
  // The pid may be another process's by now. A process that took it over after the peer died would
  // have to run under the peer's uid and leave the peer's end of the socket open: then it is a
  // child of the peer that holds the lifeline, and waiting for it is right as well.
  struct stat info;
  pollfd hangup{.fd = socket, .events = 0, .revents = 0};
  if (stat(absl::StrCat("/proc/", peer.pid).c_str(), &info) != 0 || info.st_uid != peer.uid ||
      poll(&hangup, 1, 0) != 0 || IsDead(opened.get())) {
    return absl::FailedPreconditionError(
        absl::StrCat("process ", peer.pid, " ended while it attached"));
  }
  return opened;
}

bool IsDead(int pidfd) {
  pollfd wait{.fd = pidfd, .events = POLLIN, .revents = 0};
  return poll(&wait, 1, 0) == 1;
}

}  // namespace spanpool

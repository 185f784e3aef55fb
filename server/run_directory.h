// The run directory: where a daemon's sockets live, and the lock that keeps a second daemon out.
//
//   DIR/lock         held with flock for the daemon's life; says its pid. Never removed
//   DIR/attach.sock  handshake, descriptors, lifeline
//   DIR/grpc.sock    gRPC
//
// A socket is bound under a name of its own and then renamed into place, so that a name always
// leads to a listening socket, be it for a daemon that takes over from a dead one. At the stop the
// names go before the listeners: a client finds nothing rather than a socket nobody accepts on.
//
// Lock and sockets outlive the process in an FdStore, as run/lock and run/NAME. While nobody
// serves, no other daemon can take the folder, and clients that connect wait in the sockets'
// queues.
//
// Not thread-safe.

#ifndef SPANPOOL_SERVER_RUN_DIRECTORY_H_
#define SPANPOOL_SERVER_RUN_DIRECTORY_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/layout/packet.h"
#include "server/fd_store.h"

namespace spanpool {

class RunDirectory {
 public:
  // Creates `path` (and its parents, mode 0755) if missing, and locks it, or goes on with the lock
  // in `kept`, if that is of this folder. `store` outlives the object; it and `kept` may be null.
  //   ALREADY_EXISTS       another daemon serves it; the message has its pid
  //   PERMISSION_DENIED, FAILED_PRECONDITION and others: what is wrong with the path
  static absl::StatusOr<RunDirectory> Open(const std::string& path, FdStore* store = nullptr,
                                           KeptFds* kept = nullptr);

  RunDirectory(RunDirectory&&) = default;
  RunDirectory& operator=(RunDirectory&&) = delete;
  ~RunDirectory();

  // A non-blocking listening socket of `type` (SOCK_STREAM, SOCK_SEQPACKET) at DIR/`name`, to which
  // any user may connect: who may do what is decided by the peer's credentials. One in `kept` that
  // still has its name is gone on with.
  //   INVALID_ARGUMENT  the path is too long for a unix socket
  absl::StatusOr<layout::UniqueFd> Listen(const std::string& name, int type,
                                          KeptFds* kept = nullptr);

  // Removes the names that Listen made, unless they are somebody else's by now.
  void RemoveSockets();

  // Leaves the names of a predecessor to a successor: for a daemon that could not follow.
  void LeaveInherited() {
    if (inherited_) sockets_.clear();
  }

  const std::string& path() const { return path_; }

 private:
  struct Socket {
    std::string path;
    dev_t device;
    ino_t inode;
  };

  RunDirectory(std::string path, FdStore* store, layout::UniqueFd lock)
      : path_(std::move(path)), store_(store), lock_(std::move(lock)) {}

  static absl::Status Keep(FdStore* store, const std::string& name, int fd);
  // A listening socket of `type` that `name` leads to still; invalid if there is none in `kept`.
  layout::UniqueFd TakeListener(const std::string& name, int type, KeptFds* kept) const;

  std::string path_;
  FdStore* store_;  // may be null
  layout::UniqueFd lock_;
  bool inherited_ = false;  // the lock: so what stands in the folder is our predecessor's
  std::vector<Socket> sockets_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_RUN_DIRECTORY_H_

// A connection to the daemon that is made anew when the last one has ended, and that a forked child
// can let go of.
//
// Not thread-safe, but for AbandonInChild.

#ifndef SPANPOOL_CLIENT_KEPT_CONNECTION_H_
#define SPANPOOL_CLIENT_KEPT_CONNECTION_H_

#include <atomic>
#include <memory>
#include <string>

#include "client/rpc_connection.h"

namespace spanpool::internal {

// Whether a call can be begun on it. Takes its lock.
bool IsUsable(const RpcConnection& connection);

class KeptConnection {
 public:
  // `socket_path` is the daemon's socket for gRPC.
  explicit KeptConnection(std::string socket_path);
  KeptConnection(const KeptConnection&) = delete;
  KeptConnection& operator=(const KeptConnection&) = delete;

  // The connection to use; it may have ended. Takes the lock of the one it has.
  const std::shared_ptr<RpcConnection>& Get();

  // Whether there is one that calls can be made on. Takes its lock.
  bool usable() const;

  // In a forked child, where this object is not used any more: closes what it has open, whatever
  // another thread of the parent was doing. Async-signal-safe.
  void AbandonInChild();

 private:
  const std::string socket_path_;
  std::shared_ptr<RpcConnection> connection_;
  std::atomic<int> fd_{-1};  // the connection's
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_KEPT_CONNECTION_H_

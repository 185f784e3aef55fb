#include "client/kept_connection.h"

#include <unistd.h>

#include <utility>

#include "allocator/lock_rank.h"

namespace spanpool::internal {

bool IsUsable(const RpcConnection& connection) {
  RankedMutexLock lock(connection.mutex());
  return connection.usable();
}

KeptConnection::KeptConnection(std::string socket_path) : socket_path_(std::move(socket_path)) {}

const std::shared_ptr<RpcConnection>& KeptConnection::Get() {
  if (!usable()) {
    // A fork at any moment finds the number of an open descriptor here, or none.
    fd_.store(-1, std::memory_order_release);
    connection_ = std::make_shared<RpcConnection>(socket_path_);
    fd_.store(connection_->fd(), std::memory_order_release);
  }
  return connection_;
}

bool KeptConnection::usable() const { return connection_ != nullptr && IsUsable(*connection_); }

void KeptConnection::AbandonInChild() {
  if (const int fd = fd_.load(std::memory_order_acquire); fd >= 0) close(fd);
}

}  // namespace spanpool::internal

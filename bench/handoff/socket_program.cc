// What programs do without shared memory: the bytes are copied into a unix socket and out of it.
// The sender always fills the same buffer, the receiver reads into one of its own.

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/handoff/two_sides.h"

namespace spanpool::bench {
namespace {

class SocketSide : public Side {
 public:
  explicit SocketSide(int socket) : socket_(socket) {}
  absl::Status Prepare(size_t bytes) override {
    buffer_.assign(bytes, std::byte{0});
    return absl::OkStatus();
  }

 protected:
  const int socket_;
  std::vector<std::byte> buffer_;
};

class Sender final : public SocketSide {
 public:
  using SocketSide::SocketSide;
  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      WriteEnds(buffer_.data(), buffer_.size(), number);
      for (size_t done = 0; done < buffer_.size();) {
        const ssize_t n = send(socket_, buffer_.data() + done, buffer_.size() - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) GiveUp(absl::StrCat("send: ", std::strerror(errno)));
        done += static_cast<size_t>(n);
      }
    }
  }
};

class Receiver final : public SocketSide {
 public:
  using SocketSide::SocketSide;
  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      for (size_t done = 0; done < buffer_.size();) {
        const ssize_t n = recv(socket_, buffer_.data() + done, buffer_.size() - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) GiveUp("the sender is gone");
        done += static_cast<size_t>(n);
      }
      CheckEnds(buffer_.data(), buffer_.size(), number);
    }
  }
};

template <typename S>
MakeSide Make(int socket) {
  return [socket](void*) -> absl::StatusOr<std::unique_ptr<Side>> {
    return std::make_unique<S>(socket);
  };
}

}  // namespace
}  // namespace spanpool::bench

int main() {
  using namespace spanpool::bench;  // NOLINT: this file is one program
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return RunAbsent(absl::StrCat("socketpair: ", std::strerror(errno)));
  }
  return RunTwoSides(0, Make<Sender>(sockets[0]), Make<Receiver>(sockets[1]));
}

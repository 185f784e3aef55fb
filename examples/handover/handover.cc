// Hands buffers to another process: 16-byte handles travel over a unix socket, the bytes stay where
// they are.
//
//   handover send SOCKET [BUFFERS]   waits at SOCKET for a receiver, hands over 1000 buffers or
//   BUFFERS handover receive SOCKET          opens each without a copy, checks every byte of it
//
// Which daemon and pool: SPANPOOL_TARGET and SPANPOOL_POOL. Sender and receiver may be of different
// users and in different containers, as long as both see the daemon's run directory and SOCKET.

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "spanpool/spanpool.h"

namespace {

constexpr size_t kSmallest = 64;  // smaller blocks cannot be shared
constexpr size_t kLargest = 1 << 20;

absl::Status Error(const char* doing, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat(doing, " ", path));
}

// Byte `i` of buffer `number`.
std::byte Pattern(size_t number, size_t i) { return static_cast<std::byte>(number * 31 + i); }

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": longer than a socket's path may be"));
  }
  path.copy(address.sun_path, path.size());
  return address;
}

// The socket to the one receiver that connects to `path`.
absl::StatusOr<int> Accept(const std::string& path) {
  absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (listener < 0) return Error("socket for", path);
  unlink(path.c_str());  // left by an earlier run
  if (bind(listener, reinterpret_cast<sockaddr*>(&*address), sizeof(*address)) != 0) {
    return Error("bind to", path);
  }
  chmod(path.c_str(), 0666);  // the receiver may be another user
  if (listen(listener, 1) != 0) return Error("listen at", path);
  const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (connection < 0) return Error("accept at", path);
  close(listener);
  unlink(path.c_str());
  return connection;
}

// The socket to the sender at `path`, which may not be there yet.
absl::StatusOr<int> Connect(const std::string& path) {
  absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  const int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (connection < 0) return Error("socket for", path);
  for (int tries = 0;
       connect(connection, reinterpret_cast<sockaddr*>(&*address), sizeof(*address)) != 0;) {
    if ((errno != ENOENT && errno != ECONNREFUSED) || ++tries == 300) {
      return Error("connect to", path);
    }
    usleep(100'000);
  }
  return connection;
}

absl::Status Send(spanpool::Session& session, int connection, size_t buffers) {
  size_t bytes = 0;
  for (size_t number = 0; number < buffers; ++number) {
    const size_t size = kSmallest << (number % 15);  // 64 bytes … 1 MiB
    absl::StatusOr<spanpool::Buffer> buffer = session.Allocate(std::min(size, kLargest));
    if (!buffer.ok()) return buffer.status();
    for (size_t i = 0; i < buffer->size(); ++i) buffer->data()[i] = Pattern(number, i);
    const absl::StatusOr<spanpool::Handle> handle = buffer->Share();
    if (!handle.ok()) return handle.status();
    if (send(connection, &*handle, sizeof(*handle), MSG_NOSIGNAL) != sizeof(*handle)) {
      return Error("send to", "the receiver");
    }
    // Our reference keeps the block alive until the receiver has its own.
    char held;
    if (recv(connection, &held, sizeof(held), 0) != sizeof(held)) {
      return absl::UnavailableError("the receiver went away");
    }
    bytes += buffer->size();
  }
  // The receiver ends when it has checked the last buffer.
  shutdown(connection, SHUT_WR);
  char end;
  while (recv(connection, &end, sizeof(end), 0) > 0) {
  }
  std::printf("sent %zu buffers, %zu bytes, as user %u\n", buffers, bytes, getuid());
  return absl::OkStatus();
}

absl::Status Receive(spanpool::Session& session, int connection) {
  size_t buffers = 0;
  size_t bytes = 0;
  spanpool::Handle handle;
  while (recv(connection, &handle, sizeof(handle), 0) == sizeof(handle)) {
    const absl::StatusOr<spanpool::Buffer> buffer = session.Open(handle);
    if (!buffer.ok()) return buffer.status();
    if (send(connection, "", 1, MSG_NOSIGNAL) != 1) return Error("send to", "the sender");
    for (size_t i = 0; i < buffer->size(); ++i) {
      if (buffer->data()[i] != Pattern(buffers, i)) {
        return absl::DataLossError(absl::StrCat("buffer ", buffers, " differs at byte ", i));
      }
    }
    ++buffers;
    bytes += buffer->size();
  }
  std::printf("received %zu buffers, %zu bytes, every byte as sent, as user %u\n", buffers, bytes,
              getuid());
  return buffers == 0 ? absl::UnavailableError("the sender sent nothing") : absl::OkStatus();
}

absl::Status Run(bool sender, const std::string& path, size_t buffers) {
  spanpool::SessionOptions options;
  if (!sender) options.access = spanpool::Access::kReadOnly;
  absl::StatusOr<std::unique_ptr<spanpool::Session>> session = spanpool::Session::Attach(options);
  if (!session.ok()) return session.status();
  const absl::StatusOr<int> connection = sender ? Accept(path) : Connect(path);
  if (!connection.ok()) return connection.status();
  // The connection closes with the process: the sender waits for that.
  return sender ? Send(**session, *connection, buffers) : Receive(**session, *connection);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view mode = argc >= 3 ? argv[1] : "";
  size_t buffers = 1000;
  const bool sender = mode == "send" && argc <= 4;
  if ((!sender && !(mode == "receive" && argc == 3)) ||
      (argc == 4 && !absl::SimpleAtoi(argv[3], &buffers))) {
    std::fprintf(stderr, "usage: handover send SOCKET [BUFFERS] | handover receive SOCKET\n");
    return 2;
  }
  const absl::Status status = Run(sender, argv[2], buffers);
  if (!status.ok()) std::fprintf(stderr, "handover: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

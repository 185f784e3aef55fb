// One packet on a SOCK_SEQPACKET socket, with the descriptors that ride along.
//
// Used by both ends of the attach socket. Thread-safe in that a call touches no state but the
// socket's; two readers of one socket would steal each other's packets.

#ifndef SPANPOOL_PROTO_LAYOUT_PACKET_H_
#define SPANPOOL_PROTO_LAYOUT_PACKET_H_

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace spanpool::layout {

// An owned file descriptor; closed on destruction.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd();

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset() { *this = UniqueFd(); }

 private:
  int fd_ = -1;
};

inline constexpr size_t kMaxPacketFds = 4;

// Sends `bytes` as one packet, with `fds` (at most kMaxPacketFds). Never raises SIGPIPE. Waits for
// room unless the socket is non-blocking.
//   UNAVAILABLE         the other end is gone
//   RESOURCE_EXHAUSTED  non-blocking and no room: the other end does not read; or too many
//                       descriptors are in flight
absl::Status SendPacket(int socket, std::span<const std::byte> bytes,
                        std::span<const int> fds = {});

struct Packet {
  size_t bytes = 0;           // written to the buffer; 0 = end of file
  bool truncated = false;     // the packet was longer than the buffer, or held too many fds
  std::vector<UniqueFd> fds;  // close-on-exec; closed unless taken
};

enum class Wait : bool { kNo, kYes };

// Receives one packet into `buffer`. Waits for one if `wait` says so, unless the socket is
// non-blocking, and for no longer than the receive time-out that is set on it.
//   UNAVAILABLE        the other end is gone (reset)
//   DEADLINE_EXCEEDED  there is none, or none came in time
absl::StatusOr<Packet> ReceivePacket(int socket, std::span<std::byte> buffer,
                                     Wait wait = Wait::kYes);

template <typename T>
std::span<const std::byte> BytesOf(const T& message) {
  return std::as_bytes(std::span<const T, 1>(&message, 1));
}

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_PACKET_H_

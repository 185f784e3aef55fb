#include "examples/files/consumer.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <map>
#include <utility>

#include "examples/files/messages.h"
#include "examples/files/sha256.h"
#include "spanpool/spanpool.h"

namespace spanpool::demo {
namespace {

int Fail(const std::string& what) {
  std::fprintf(stderr, "consumer: %s\n", what.c_str());
  return 1;
}

}  // namespace

int RunConsumer(const std::string& target, const std::vector<int>& sockets) {
  auto session = Session::Attach({.target = target});
  if (!session.ok()) return Fail(session.status().ToString());

  std::map<uint32_t, Sha256> hashes;
  uint64_t buffers = 0;
  uint64_t bytes = 0;
  std::vector<pollfd> open_sockets;
  for (int socket : sockets) open_sockets.push_back({socket, POLLIN, 0});
  while (!open_sockets.empty()) {
    if (poll(open_sockets.data(), open_sockets.size(), -1) < 0 && errno != EINTR) {
      return Fail("poll failed");
    }
    for (size_t i = open_sockets.size(); i-- > 0;) {
      if (open_sockets[i].revents == 0) continue;
      Piece piece;
      const ssize_t n = recv(open_sockets[i].fd, &piece, sizeof(piece), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n != sizeof(piece)) {  // the producer is done
        open_sockets.erase(open_sockets.begin() + static_cast<ptrdiff_t>(i));
        continue;
      }
      if (piece.bytes == 0) {
        std::printf("hash %u %s\n", piece.file, hashes[piece.file].Finish().c_str());
        std::fflush(stdout);
        hashes.erase(piece.file);
        continue;
      }
      {
        auto buffer = (*session)->Open(piece.handle);
        if (!buffer.ok()) return Fail(buffer.status().ToString());
        if (buffer->size() != piece.bytes) {
          return Fail("a buffer of " + std::to_string(buffer->size()) + " bytes where " +
                      std::to_string(piece.bytes) + " were sent");
        }
        hashes[piece.file].Add(std::as_const(*buffer).data(), buffer->size());
      }  // the reference is dropped here, before the producer drops its own
      ++buffers;
      bytes += piece.bytes;
      const Receipt receipt{1};
      if (send(open_sockets[i].fd, &receipt, sizeof(receipt), MSG_NOSIGNAL) < 0) {
        return Fail("a producer went away");
      }
    }
  }
  std::printf("consumed %llu %llu\n", static_cast<unsigned long long>(buffers),
              static_cast<unsigned long long>(bytes));
  return 0;
}

}  // namespace spanpool::demo

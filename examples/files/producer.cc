#include "examples/files/producer.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <random>

#include "absl/time/time.h"
#include "examples/files/messages.h"
#include "spanpool/spanpool.h"

namespace spanpool::demo {
namespace {

constexpr double kSmallestPiece = 64;
constexpr double kLargestPiece = 4 << 20;
constexpr size_t kSmall = 32768;
constexpr size_t kMaxInFlight = 64;  // pieces a consumer has not yet read

int Fail(const std::string& what) {
  std::fprintf(stderr, "producer: %s\n", what.c_str());
  return 1;
}

// One consumer, as its producer sees it: the socket, and the buffers it may still be reading.
class Outlet {
 public:
  explicit Outlet(int socket) : socket_(socket) {}

  bool Send(const Piece& piece) { return send(socket_, &piece, sizeof(piece), 0) == sizeof(piece); }

  // Keeps the buffer until the consumer has read it; waits for receipts beyond kMaxInFlight.
  bool Keep(Buffer buffer) {
    in_flight_.push_back(std::move(buffer));
    while (TakeReceipts(MSG_DONTWAIT)) {
    }
    return in_flight_.size() < kMaxInFlight || TakeReceipts(0);
  }

  bool Finish() {
    while (!in_flight_.empty()) {
      if (!TakeReceipts(0)) return false;
    }
    return true;
  }

 private:
  bool TakeReceipts(int flags) {
    Receipt receipt;
    ssize_t n;
    do {
      n = recv(socket_, &receipt, sizeof(receipt), flags);
    } while (n < 0 && errno == EINTR);
    if (n != sizeof(receipt)) return false;
    for (uint32_t i = 0; i < receipt.pieces && !in_flight_.empty(); ++i) in_flight_.pop_front();
    return true;
  }

  int socket_;
  std::deque<Buffer> in_flight_;
};

struct Tally {
  uint64_t small = 0, small_waited = 0, large = 0, large_waited = 0;
  std::vector<double> nanoseconds;

  void Add(size_t bytes, bool waited, double ns) {
    (bytes <= kSmall ? small : large) += 1;
    (bytes <= kSmall ? small_waited : large_waited) += waited;
    nanoseconds.push_back(ns);
  }
  double Percentile(double p) {
    if (nanoseconds.empty()) return 0;
    const size_t k = static_cast<size_t>(p * static_cast<double>(nanoseconds.size() - 1));
    std::nth_element(nanoseconds.begin(), nanoseconds.begin() + static_cast<ptrdiff_t>(k),
                     nanoseconds.end());
    return nanoseconds[k];
  }
};

}  // namespace

int RunProducer(int index, const std::string& target, const std::vector<std::string>& files,
                const std::vector<int>& sockets) {
  auto session = Session::Attach({.target = target});
  if (!session.ok()) return Fail(session.status().ToString());

  std::vector<Outlet> outlets(sockets.begin(), sockets.end());
  std::mt19937_64 random(static_cast<uint64_t>(index));
  std::uniform_real_distribution<double> log_size(std::log(kSmallestPiece),
                                                  std::log(kLargestPiece));
  Tally tally;
  for (size_t i = static_cast<size_t>(index); i < files.size(); i += kProducers) {
    const int fd = open(files[i].c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return Fail(files[i] + ": " + std::strerror(errno));
    Outlet& outlet = outlets[i / kProducers % kConsumers];
    uint64_t in_file = 0;
    while (true) {
      const size_t wanted = static_cast<size_t>(std::exp(log_size(random)));
      const uint64_t refills_before = (*session)->stats().refills;
      const auto start = std::chrono::steady_clock::now();
      auto buffer = (*session)->Allocate(wanted, {.timeout = absl::Seconds(30)});
      const std::chrono::duration<double, std::nano> took =
          std::chrono::steady_clock::now() - start;
      if (!buffer.ok()) return Fail(buffer.status().ToString());
      tally.Add(wanted, (*session)->stats().refills != refills_before, took.count());

      size_t got = 0;
      while (got < wanted) {
        const ssize_t n = read(fd, buffer->data() + got, wanted - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Fail(files[i] + ": " + std::strerror(errno));
        if (n == 0) break;
        got += static_cast<size_t>(n);
      }
      if (got == 0) break;
      if (got < wanted) {
        if (absl::Status status = buffer->Trim(got); !status.ok()) return Fail(status.ToString());
      }
      auto handle = buffer->Share();
      if (!handle.ok()) {
        // A last piece of a few bytes in a block too small to share cannot happen: 64 B is shared.
        return Fail(handle.status().ToString());
      }
      Piece piece;
      piece.file = static_cast<uint32_t>(i);
      piece.bytes = static_cast<uint32_t>(got);
      piece.handle = *handle;
      if (!outlet.Send(piece) || !outlet.Keep(*std::move(buffer))) {
        return Fail("the consumer went away");
      }
      in_file += got;
      if (in_file >= (4u << 20)) {
        std::printf("progress %llu\n", static_cast<unsigned long long>(in_file));
        std::fflush(stdout);
        in_file = 0;
      }
    }
    close(fd);
    Piece end;
    end.file = static_cast<uint32_t>(i);
    if (!outlet.Send(end)) return Fail("the consumer went away");
    std::printf("progress %llu\n", static_cast<unsigned long long>(in_file));
    std::fflush(stdout);
  }
  for (Outlet& outlet : outlets) {
    if (!outlet.Finish()) return Fail("a consumer went away");
  }
  std::printf("done %llu %llu %llu %llu %.0f %.0f\n", static_cast<unsigned long long>(tally.small),
              static_cast<unsigned long long>(tally.small_waited),
              static_cast<unsigned long long>(tally.large),
              static_cast<unsigned long long>(tally.large_waited), tally.Percentile(0.5),
              tally.Percentile(0.99));
  return 0;
}

}  // namespace spanpool::demo

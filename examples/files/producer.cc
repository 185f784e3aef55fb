#include "examples/files/producer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "examples/files/messages.h"
#include "spanpool/spanpool.h"

namespace spanpool::demo {
namespace {

constexpr double kSmallestPiece = kSmallestMessage;
constexpr double kLargestPiece = 4 << 20;
constexpr size_t kSmall = 32768;

int Fail(const std::string& what) {
  std::fprintf(stderr, "producer: %s\n", what.c_str());
  return 1;
}

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

// A message of nothing but its label.
absl::Status SendLabel(Session& session, Channel& channel, const Label& label) {
  auto message = session.Allocate(kSmallestMessage, {.timeout = absl::Seconds(30)});
  if (!message.ok()) return message.status();
  WriteLabel(*message, message->size() - sizeof(Label), label);
  return channel.Send(*std::move(message));
}

// The channel whose handle comes through the pipe.
absl::StatusOr<std::unique_ptr<Channel>> OpenChannel(Session& session, int pipe) {
  Handle handle;
  if (read(pipe, &handle, sizeof(handle)) != sizeof(handle)) {
    return absl::UnavailableError("a consumer went away");
  }
  return Channel::Open(session, handle);
}

}  // namespace

int RunProducer(int index, const std::string& target, const std::vector<std::string>& files,
                const std::vector<int>& consumers) {
  auto session = Session::Attach({.target = target});
  if (!session.ok()) return Fail(session.status().ToString());
  std::vector<std::unique_ptr<Channel>> channels;
  for (const int consumer : consumers) {
    auto channel = OpenChannel(**session, consumer);
    if (!channel.ok()) return Fail(channel.status().ToString());
    channels.push_back(*std::move(channel));
  }

  std::mt19937_64 random(static_cast<uint64_t>(index));
  std::uniform_real_distribution<double> log_size(std::log(kSmallestPiece),
                                                  std::log(kLargestPiece));
  Tally tally;
  for (size_t i = static_cast<size_t>(index); i < files.size(); i += kProducers) {
    const int fd = open(files[i].c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return Fail(files[i] + ": " + std::strerror(errno));
    Channel& channel = *channels[i / kProducers % channels.size()];
    const auto file = static_cast<uint32_t>(i);
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

      const size_t room = wanted - sizeof(Label);
      size_t got = 0;
      while (got < room) {
        const ssize_t n = read(fd, buffer->data() + got, room - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Fail(files[i] + ": " + std::strerror(errno));
        if (n == 0) break;
        got += static_cast<size_t>(n);
      }
      if (got == 0) break;
      WriteLabel(*buffer, got, {.kind = Label::kPiece, .file = file});
      if (absl::Status status = buffer->Trim(got + sizeof(Label)); !status.ok()) {
        return Fail(status.ToString());
      }
      if (absl::Status status = channel.Send(*std::move(buffer)); !status.ok()) {
        return Fail(status.ToString());
      }
      in_file += got;
      if (in_file >= (4u << 20)) {
        std::printf("progress %llu\n", static_cast<unsigned long long>(in_file));
        std::fflush(stdout);
        in_file = 0;
      }
    }
    close(fd);
    if (absl::Status status =
            SendLabel(**session, channel, {.kind = Label::kEndOfFile, .file = file});
        !status.ok()) {
      return Fail(status.ToString());
    }
    std::printf("progress %llu\n", static_cast<unsigned long long>(in_file));
    std::fflush(stdout);
  }
  // What is not received yet, and this process's end, do not hold each other up.
  for (const auto& channel : channels) {
    if (absl::Status status = SendLabel(**session, *channel, {.kind = Label::kBye}); !status.ok()) {
      return Fail(status.ToString());
    }
  }
  std::printf("done %llu %llu %llu %llu %.0f %.0f\n", static_cast<unsigned long long>(tally.small),
              static_cast<unsigned long long>(tally.small_waited),
              static_cast<unsigned long long>(tally.large),
              static_cast<unsigned long long>(tally.large_waited), tally.Percentile(0.5),
              tally.Percentile(0.99));
  return 0;
}

}  // namespace spanpool::demo

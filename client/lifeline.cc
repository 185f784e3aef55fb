#include "client/lifeline.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace spanpool::internal {
namespace {

using layout::AttachType;
using layout::UniqueFd;

absl::Status NoDaemon(const std::string& path, int error) {
  return absl::UnavailableError(absl::StrCat("no daemon serves ", path, ": ", strerror(error),
                                             "; start spanpoold, or name its run directory"));
}

// A reply's own words. Whatever was sent, they end somewhere.
template <size_t N>
std::string Text(const char (&field)[N]) {
  return std::string(field, strnlen(field, N));
}

// The message of type T that `bytes` are, if they have its size.
template <typename T>
std::optional<T> Parse(std::span<const std::byte> bytes) {
  if (bytes.size() != sizeof(T)) return std::nullopt;
  T message;
  std::memcpy(&message, bytes.data(), sizeof(T));
  return message;
}

layout::AttachHeader HeaderOf(std::span<const std::byte> bytes) {
  layout::AttachHeader header{.magic = 0};
  if (bytes.size() >= sizeof(header)) std::memcpy(&header, bytes.data(), sizeof(header));
  return header;
}

// Waits until there is something to read; false: not in time.
bool AwaitReadable(int fd, absl::Time deadline) {
  for (;;) {
    const timespec left = absl::ToTimespec(std::max(deadline - absl::Now(), absl::ZeroDuration()));
    pollfd readable{fd, POLLIN, 0};
    const int count =
        ppoll(&readable, 1, deadline == absl::InfiniteFuture() ? nullptr : &left, nullptr);
    if (count >= 0) return count > 0;
  }
}

}  // namespace

absl::StatusOr<UniqueFd> Lifeline::Connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is longer than the ",
                                                   sizeof(address.sun_path) - 1,
                                                   " bytes that a socket's path may have"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket_fd.valid()) {
    return absl::ResourceExhaustedError(absl::StrCat("socket: ", strerror(errno)));
  }
  if (connect(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EACCES) {
      return absl::PermissionDeniedError(absl::StrCat("may not connect to ", path));
    }
    return NoDaemon(path, errno);
  }
  return socket_fd;
}

Lifeline::Lifeline(std::string path, UniqueFd socket)
    : path_(std::move(path)), fd_(socket.get()), socket_(std::move(socket)) {}

void Lifeline::SetCallbacks(std::function<void()> wake, std::function<void()> resumed) {
  RankedMutexLock lock(&mu_);
  wake_ = std::move(wake);
  resumed_ = std::move(resumed);
}

absl::Status Lifeline::Ended(int error) const { return NoDaemon(path_, error); }

absl::Status Lifeline::WrongProtocol() const {
  return absl::FailedPreconditionError(
      absl::StrCat("what answers at ", path_, " does not speak this library's protocol, version ",
                   layout::kLayoutVersion, ": install daemon and library of one version"));
}

absl::Status Lifeline::NextLocked(absl::Time deadline, Incoming* incoming) {
  for (;;) {
    absl::StatusOr<layout::Packet> packet =
        layout::ReceivePacket(fd_, incoming->bytes, layout::Wait::kNo);
    if (absl::IsDeadlineExceeded(packet.status())) {
      if (deadline == absl::InfinitePast() || !AwaitReadable(fd_, deadline)) {
        return packet.status();
      }
      continue;
    }
    if (!packet.ok() || packet->bytes == 0) {
      ended_.store(true, std::memory_order_relaxed);
      return Ended(ECONNRESET);
    }
    incoming->size = packet->truncated ? 0 : packet->bytes;
    incoming->fds = std::move(packet->fds);
    incoming->resumed = false;
    const auto bytes = std::span(incoming->bytes).first(incoming->size);
    const layout::AttachHeader header = HeaderOf(bytes);
    if (header.magic != layout::kAttachMagic) return absl::OkStatus();
    if (header.type == AttachType::kRecallNotice) {
      const auto notice = Parse<layout::RecallNotice>(bytes);
      if (!notice.has_value()) return absl::OkStatus();
      notices_.recall = RecallRequest{notice->recall, notice->bytes};
      noted_.store(true, std::memory_order_release);
      continue;
    }
    if (header.type == AttachType::kResumedNotice &&
        Parse<layout::ResumedNotice>(bytes).has_value()) {
      // The worker that asked for it is gone.
      notices_.recall.reset();
      notices_.resumed = true;
      noted_.store(true, std::memory_order_release);
      asked_.reset();
      if (resumed_ != nullptr) resumed_();
      incoming->resumed = true;
    }
    return absl::OkStatus();
  }
}

absl::Status Lifeline::AskLocked(const Asked& asked, std::span<const std::byte> request,
                                 absl::Time deadline, Incoming* reply) {
  const auto answers = [&](const Asked& to) {
    const auto bytes = std::span(reply->bytes).first(reply->size);
    const layout::AttachHeader header = HeaderOf(bytes);
    if (header.magic != layout::kAttachMagic || header.type != to.reply) return false;
    if (to.reply != AttachType::kArenaReply) return true;
    const auto arena = Parse<layout::ArenaReply>(bytes);
    return !arena.has_value() || arena->arena == to.arena;
  };
  const auto stray = [&] {
    const layout::AttachHeader header = HeaderOf(std::span(reply->bytes).first(reply->size));
    return header.magic == layout::kAttachMagic && header.type == AttachType::kArenaReply &&
           reply->size == sizeof(layout::ArenaReply);
  };
  // What has come already is no reply to what was not asked yet.
  for (;;) {
    absl::Status status = NextLocked(absl::InfinitePast(), reply);
    if (absl::IsDeadlineExceeded(status)) break;
    if (!status.ok()) return status;
    if (asked_.has_value() && answers(*asked_)) asked_.reset();
  }
  for (;;) {
    if (!asked_.has_value()) {
      if (!layout::SendPacket(fd_, request).ok()) return Ended(EPIPE);
      asked_ = asked;
    }
    absl::Status status = NextLocked(deadline, reply);
    if (absl::IsDeadlineExceeded(status)) {
      return absl::UnavailableError(
          absl::StrCat("the daemon at ", path_, " does not answer: none came in time"));
    }
    if (!status.ok()) return status;
    if (reply->resumed) continue;  // asked again
    if (asked_.has_value() && answers(*asked_)) {
      const bool mine = *std::exchange(asked_, std::nullopt) == asked;
      if (mine) return absl::OkStatus();
    } else if (!stray()) {
      asked_.reset();
      return absl::OkStatus();  // which is none: the caller sees it
    }
  }
}

template <typename Request, typename Reply>
absl::StatusOr<std::vector<UniqueFd>> Lifeline::CallLocked(const Asked& asked,
                                                           const Request& request, size_t fds,
                                                           absl::Time deadline, Reply* reply) {
  Incoming incoming;
  absl::Status status = AskLocked(asked, layout::BytesOf(request), deadline, &incoming);
  WakeIfNoted();
  if (!status.ok()) return status;
  const auto parsed = Parse<Reply>(std::span(incoming.bytes).first(incoming.size));
  if (!parsed.has_value() || parsed->header.magic != layout::kAttachMagic ||
      parsed->header.type != asked.reply) {
    return WrongProtocol();
  }
  *reply = *parsed;
  if (reply->code != 0) {
    return absl::Status(static_cast<absl::StatusCode>(reply->code), Text(reply->message));
  }
  if (reply->header.version != layout::kLayoutVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("the daemon at ", path_, " has protocol version ", reply->header.version,
                     ", this library ", layout::kLayoutVersion, ": install both of one version"));
  }
  if (incoming.fds.size() != fds) {
    return absl::InternalError(absl::StrCat("the daemon sent ", incoming.fds.size(),
                                            " descriptors where ", fds, " were due; ulimit -n?"));
  }
  return std::move(incoming.fds);
}

absl::StatusOr<std::vector<UniqueFd>> Lifeline::Attach(const layout::AttachRequest& request,
                                                       absl::Time deadline,
                                                       layout::AttachReply* reply) {
  RankedMutexLock lock(&mu_);
  return CallLocked({AttachType::kAttachReply}, request, 2, deadline, reply);
}

absl::StatusOr<ArenaFds> Lifeline::OpenArena(ArenaIndex arena, absl::Time deadline) {
  layout::ArenaRequest request;
  request.arena = arena.value();
  layout::ArenaReply reply;
  RankedMutexLock lock(&mu_);
  absl::StatusOr<std::vector<UniqueFd>> fds =
      CallLocked({AttachType::kArenaReply, arena.value()}, request, 2, deadline, &reply);
  if (!fds.ok()) return fds.status();
  return ArenaFds{std::move((*fds)[0]), std::move((*fds)[1])};
}

absl::Status Lifeline::Detach(absl::Time deadline) {
  layout::DetachReply reply;
  RankedMutexLock lock(&mu_);
  return CallLocked({AttachType::kDetachReply}, layout::DetachRequest(), 0, deadline, &reply)
      .status();
}

void Lifeline::WakeIfNoted() {
  if (noted_.load(std::memory_order_relaxed) && wake_ != nullptr) wake_();
}

Lifeline::Notices Lifeline::TakeNotices() {
  // Not the lock's business if there is nothing: who holds it may wait long for a reply.
  pollfd readable{fd_, POLLIN, 0};
  // acquire: pairs with the release in NextLocked.
  if (!noted_.load(std::memory_order_acquire) && poll(&readable, 1, 0) <= 0) return {};
  RankedMutexLock lock(&mu_);
  Incoming incoming;
  // What is no notice nobody waits for.
  while (NextLocked(absl::InfinitePast(), &incoming).ok()) {
    if (asked_.has_value() &&
        HeaderOf(std::span(incoming.bytes).first(incoming.size)).type == asked_->reply) {
      asked_.reset();
    }
  }
  noted_.store(false, std::memory_order_relaxed);
  return std::exchange(notices_, {});
}

void Lifeline::AnswerRecall(uint64_t number) {
  layout::RecallAnswer answer;
  answer.recall = number;
  // Without the lock: the socket is never closed, and a packet is sent whole. If it cannot be sent
  // there is no daemon any more that waits for it.
  layout::SendPacket(fd_, layout::BytesOf(answer)).IgnoreError();
}

bool Lifeline::ended() {
  if (ended_.load(std::memory_order_relaxed)) return true;
  pollfd hung_up{fd_, 0, 0};
  if (poll(&hung_up, 1, 0) <= 0 || (hung_up.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0) {
    return false;
  }
  ended_.store(true, std::memory_order_relaxed);
  return true;
}

void Lifeline::AbandonInChild() { close(fd_); }

}  // namespace spanpool::internal

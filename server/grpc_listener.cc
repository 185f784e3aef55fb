#include "server/grpc_listener.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "grpcpp/server_posix.h"

namespace spanpool {
namespace {

using layout::UniqueFd;

constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);
constexpr int kAcceptsAtOnce = 64;

constexpr bool IsAdministratorsNumber(int fd) { return fd % 2 != 0; }

// Gives the descriptor a number that says whose it is. Invalid if there is none left.
UniqueFd Renumber(UniqueFd fd, bool administrator) {
  if (IsAdministratorsNumber(fd.get()) == administrator) return fd;
  UniqueFd other(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  while (other.valid() && IsAdministratorsNumber(other.get()) != administrator) {
    other = UniqueFd(fcntl(fd.get(), F_DUPFD_CLOEXEC, other.get() + 1));
  }
  return other;
}

}  // namespace

GrpcListener::GrpcListener(UniqueFd listener, Options options, grpc::Server* server,
                           EventLoop* loop)
    : options_(std::move(options)),
      server_(server),
      loop_(loop),
      listener_(std::move(listener)),
      spare_(open("/dev/null", O_RDONLY | O_CLOEXEC)) {}

GrpcListener::~GrpcListener() {
  for (const auto& [id, connection] : connections_) loop_->Unwatch(connection.watch);
  loop_->Unwatch(listener_watch_);
}

absl::Status GrpcListener::Start() {
  auto watch = loop_->Watch(listener_.get(), EPOLLIN, [this](uint32_t) { Accept(); });
  if (!watch.ok()) return watch.status();
  listener_watch_ = *watch;
  return absl::OkStatus();
}

void GrpcListener::StopListening() {
  loop_->Unwatch(std::exchange(listener_watch_, EventLoop::kNoWatch));
  listener_.reset();
}

void GrpcListener::Accept() {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.valid()) {
      Take(std::move(fd));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN) return;
    // Out of descriptors or memory: turn one client away, and do not come straight back.
    spare_.reset();
    { const UniqueFd turned_away(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
    spare_ = UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    loop_->Change(listener_watch_, 0);
    loop_->PostAfter(kAcceptPause, [this] {
      if (listener_watch_ != EventLoop::kNoWatch) loop_->Change(listener_watch_, EPOLLIN);
    });
    return;
  }
}

void GrpcListener::Take(UniqueFd fd) {
  const absl::StatusOr<PeerIdentity> peer = PeerIdentityOf(fd.get());
  if (!peer.ok()) return;
  const Role role = options_.role(*peer);
  const auto counted = by_uid_.find(peer->uid);
  const size_t count = counted == by_uid_.end() ? 0 : counted->second;
  const size_t kept = options_.max_connections / 8;
  const bool crowded = connections_.size() >= options_.max_connections - kept;
  const bool allowed = role == Role::kAdmin    ? true
                       : role == Role::kMember ? !crowded || count < kept
                                               : !crowded && count < options_.max_of_one_stranger;
  if (!allowed || connections_.size() >= options_.max_connections) {
    uint64_t suppressed = 0;
    if (refusal_log_.Allow(absl::Now(), &suppressed)) {
      Log().warn(
          "gRPC connection of pid {}, uid {} refused: uid has {}, all have {} "
          "({} such lines suppressed)",
          peer->pid, peer->uid, count, connections_.size(), suppressed);
    }
    return;
  }
  fd = Renumber(std::move(fd), role == Role::kAdmin);
  if (!fd.valid()) return;
  UniqueFd watched(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!watched.valid()) return;
  const uint64_t id = next_id_++;
  auto watch = loop_->Watch(watched.get(), EPOLLRDHUP, [this, id](uint32_t) { Ended(id); });
  if (!watch.ok()) return;
  connections_[id] = {std::move(watched), *watch, peer->uid};
  ++by_uid_[peer->uid];
  grpc::AddInsecureChannelFromFd(server_, fd.release());
}

bool GrpcListener::IsAdministrator(absl::string_view peer) {
  int fd;
  return absl::ConsumePrefix(&peer, "fd:") && absl::SimpleAtoi(peer, &fd) && fd >= 0 &&
         IsAdministratorsNumber(fd);
}

void GrpcListener::Ended(uint64_t id) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  loop_->Unwatch(it->second.watch);
  const auto count = by_uid_.find(it->second.uid);
  if (--count->second == 0) by_uid_.erase(count);
  connections_.erase(it);
}

}  // namespace spanpool

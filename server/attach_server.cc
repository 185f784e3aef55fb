#include "server/attach_server.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "allocator/units.h"
#include "proto/layout/session_segment.h"
#include "server/access.h"
#include "server/session.h"

namespace spanpool {
namespace {

using layout::AccessMode;
using layout::AttachHeader;
using layout::AttachType;
using layout::UniqueFd;

constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);
constexpr int kAcceptsAtOnce = 64;

// Sent to the other end and not read there.
int UnreadBytes(int socket) {
  int bytes = 0;
  return ioctl(socket, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

// Cuts `text` to what fits, with the terminating zero.
template <size_t N>
void SetMessage(char (&to)[N], absl::string_view text) {
  const size_t length = std::min(text.size(), N - 1);
  std::memcpy(to, text.data(), length);
  to[length] = 0;
}

// A reply of type T that says no.
template <typename T>
T Refusal(const absl::Status& status) {
  T reply;
  reply.code = static_cast<int32_t>(status.code());
  SetMessage(reply.message, status.message());
  return reply;
}

template <typename T>
bool Send(int fd, const T& message, std::span<const int> fds = {}) {
  return layout::SendPacket(fd, layout::BytesOf(message), fds).ok();
}

// The message of type T that `bytes` are, if they have its size.
template <typename T>
std::optional<T> Parse(std::span<const std::byte> bytes) {
  if (bytes.size() != sizeof(T)) return std::nullopt;
  T message;
  std::memcpy(&message, bytes.data(), sizeof(T));
  return message;
}

absl::Status CheckHeader(const AttachHeader& header) {
  if (header.magic != layout::kAttachMagic) {
    return absl::InvalidArgumentError("these bytes are not spanpool's attach protocol");
  }
  if (header.version != layout::kLayoutVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the client speaks version ", header.version, " of the attach protocol and this daemon ",
        layout::kLayoutVersion, ": use client and daemon of one release"));
  }
  if (header.reserved != 0) return absl::InvalidArgumentError("a reserved field is not zero");
  return absl::OkStatus();
}

const char* Name(AccessLevel level) {
  switch (level) {
    case AccessLevel::kNone:
      return "no";
    case AccessLevel::kRead:
      return "READ";
    case AccessLevel::kWrite:
      return "WRITE";
    case AccessLevel::kAdmin:
      return "ADMIN";
  }
  return "unknown";
}

}  // namespace

AttachServer::AttachServer(UniqueFd listener, std::vector<Pool*> pools, SessionTable* sessions,
                           Reaper* reaper, Recaller* recaller, EventLoop* loop)
    : pools_(std::move(pools)),
      sessions_(sessions),
      reaper_(reaper),
      recaller_(recaller),
      loop_(loop),
      listener_(std::move(listener)),
      spare_(open("/dev/null", O_RDONLY | O_CLOEXEC)),
      maker_([this] { RunMaker(); }) {
  recaller_->SetCarrier([this](const Session& session, uint64_t recall, uint64_t bytes) {
    loop_->Post([this, id = session.id(), recall, bytes] { Recall(id, recall, bytes); });
  });
}

AttachServer::~AttachServer() {
  {
    RankedMutexLock lock(&maker_mu_);
    maker_stops_ = true;
  }
  maker_.join();
  for (const auto& [session, watch] : pidfd_watches_) loop_->Unwatch(watch);
  for (const auto& [id, connection] : connections_) loop_->Unwatch(connection.watch);
  loop_->Unwatch(listener_watch_);
}

absl::Status AttachServer::Start() {
  auto watch = loop_->Watch(listener_.get(), EPOLLIN, [this](uint32_t) { Accept(); });
  if (!watch.ok()) return watch.status();
  listener_watch_ = *watch;
  return absl::OkStatus();
}

void AttachServer::Resume(Pool& pool) {
  for (Pool::Lifeline& lifeline : pool.TakeLifelines()) {
    const std::shared_ptr<Session> session = lifeline.session;
    if (!lifeline.connection.valid()) {
      pool.LifelineEnded(*session);
      continue;
    }
    Connection connection{.id = next_connection_++,
                          .fd = std::move(lifeline.connection),
                          .peer = session->peer(),
                          .session = session,
                          .attach_may_repeat = true};
    const uint64_t id = connection.id;
    if (absl::Status status = AddConnection(std::move(connection)); !status.ok()) {
      Log().error("pool {}: the connection of {} is lost: {}", pool.name(), session->Describe(),
                  std::string(status.message()));
      pool.LifelineEnded(*session);
      continue;
    }
    connection_of_session_[session->id()] = id;
  }
  for (const std::shared_ptr<Session>& session : pool.Sessions()) {
    if (session->state() == SessionState::kDead) {
      reaper_->Reap(session);
    } else {
      WatchProcess(session);
    }
  }
}

absl::Status AttachServer::AddConnection(Connection connection) {
  const uint64_t id = connection.id;
  auto watch = loop_->Watch(connection.fd.get(), EPOLLIN | EPOLLRDHUP,
                            [this, id](uint32_t) { Receive(id); });
  if (!watch.ok()) return watch.status();
  connection.watch = *watch;
  connections_[id] = std::move(connection);
  return absl::OkStatus();
}

void AttachServer::RunMaker() {
  for (;;) {
    std::function<void()> make;
    {
      RankedMutexLock lock(&maker_mu_);
      maker_mu_.Await(absl::Condition(this, &AttachServer::MakerHasNews));
      if (maker_stops_) return;
      make = std::move(to_make_.front());
      to_make_.pop_front();
    }
    make();
  }
}

void AttachServer::CloseConnection(uint32_t session_id) {
  loop_->Post([this, session_id] {
    const auto it = connection_of_session_.find(session_id);
    if (it != connection_of_session_.end()) Close(it->second);
  });
}

void AttachServer::SendResumed() {
  std::vector<uint64_t> gone;
  for (auto& [id, connection] : connections_) {
    if (connection.session == nullptr) continue;
    const int fd = connection.fd.get();
    layout::ResumedNotice notice;
    notice.incarnation = connection.session->pool().incarnation();
    // Without room for it there are others, unread.
    if (absl::IsUnavailable(layout::SendPacket(fd, layout::BytesOf(notice)))) gone.push_back(id);
    connection.max_unread_bytes = kMaxUnreadBytes + UnreadBytes(fd);
    connection.old_recall = true;
  }
  for (const uint64_t id : gone) Close(id);
}

void AttachServer::StopListening() {
  loop_->Unwatch(std::exchange(listener_watch_, EventLoop::kNoWatch));
  listener_.reset();
}

void AttachServer::Accept() {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EAGAIN) return;
      // Out of descriptors or memory. The listener stays readable, so do not come straight back.
      // The spare descriptor lets one client at a time be told.
      const int error = errno;
      spare_.reset();
      UniqueFd refused(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (refused.valid()) {
        Send(refused.get(), Refusal<layout::AttachReply>(absl::ResourceExhaustedError(absl::StrCat(
                                "the daemon cannot take another connection: ", strerror(error)))));
      }
      refused.reset();
      spare_ = UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC));
      loop_->Change(listener_watch_, 0);
      loop_->PostAfter(kAcceptPause, [this] {
        if (listener_watch_ != EventLoop::kNoWatch) loop_->Change(listener_watch_, EPOLLIN);
      });
      return;
    }
    absl::StatusOr<PeerIdentity> peer = PeerIdentityOf(fd.get());
    if (!peer.ok()) continue;
    if (pending_ >= kMaxPending) MakeRoomForPending();
    const absl::Status added =
        AddConnection({.id = next_connection_++, .fd = std::move(fd), .peer = *std::move(peer)});
    if (added.ok()) ++pending_;
  }
}

void AttachServer::MakeRoomForPending() {
  absl::flat_hash_map<uid_t, size_t> count;
  for (const auto& [id, connection] : connections_) {
    if (connection.session == nullptr) ++count[connection.peer.uid];
  }
  const auto most = std::max_element(
      count.begin(), count.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  uint64_t oldest = next_connection_;
  for (const auto& [id, connection] : connections_) {
    if (connection.session == nullptr && connection.peer.uid == most->first) {
      oldest = std::min(oldest, id);
    }
  }
  Close(oldest);
}

void AttachServer::Receive(uint64_t id) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  Connection& connection = it->second;
  std::array<std::byte, layout::kMaxAttachMessageBytes> buffer;
  absl::StatusOr<layout::Packet> packet = layout::ReceivePacket(connection.fd.get(), buffer);
  if (absl::IsDeadlineExceeded(packet.status())) return;
  if (!packet.ok() || packet->bytes == 0) {
    Close(id);
    return;
  }
  bool keep = false;
  if (packet->truncated || !packet->fds.empty()) {
    const absl::Status why = absl::InvalidArgumentError(
        "a message of the attach protocol is shorter and carries no descriptors");
    Send(connection.fd.get(), Refusal<layout::AttachReply>(why));
    keep = Breach(connection, why);
  } else if (UnreadBytes(connection.fd.get()) > connection.max_unread_bytes) {
    keep =
        Breach(connection, absl::InvalidArgumentError(
                               "a client reads the reply to a request before it sends the next"));
  } else if (connection.attaching) {
    keep = Breach(connection, absl::InvalidArgumentError(
                                  "a client reads the reply to its attach before it goes on"));
  } else {
    keep = Handle(connection, std::span(buffer).first(packet->bytes));
  }
  if (!keep) Close(id);
}

bool AttachServer::Handle(Connection& connection, std::span<const std::byte> bytes) {
  const int fd = connection.fd.get();
  AttachHeader header;
  absl::Status status;
  if (bytes.size() < sizeof(header)) {
    status = absl::InvalidArgumentError("a message shorter than its header");
  } else {
    std::memcpy(&header, bytes.data(), sizeof(header));
    status = CheckHeader(header);
  }
  if (status.ok() && header.type != AttachType::kAttachRequest && connection.attach_may_repeat) {
    // It has the reply to its attach.
    connection.attach_may_repeat = false;
    connection.session->memory().CloseControlFd();
  }
  if (status.ok()) {
    const absl::Status wrong_size = absl::InvalidArgumentError(
        absl::StrCat(bytes.size(), " bytes are not the size of a message of type ",
                     static_cast<uint32_t>(header.type)));
    switch (header.type) {
      case AttachType::kAttachRequest: {
        const auto request = Parse<layout::AttachRequest>(bytes);
        if (request) return HandleAttach(connection, *request);
        status = wrong_size;
        break;
      }
      case AttachType::kArenaRequest: {
        const auto request = Parse<layout::ArenaRequest>(bytes);
        if (request) return HandleArena(connection, *request);
        Send(fd, Refusal<layout::ArenaReply>(wrong_size));
        return Breach(connection, wrong_size);
      }
      case AttachType::kDetachRequest:
        if (Parse<layout::DetachRequest>(bytes)) return HandleDetach(connection);
        Send(fd, Refusal<layout::DetachReply>(wrong_size));
        return Breach(connection, wrong_size);
      case AttachType::kRecallAnswer: {
        const auto answer = Parse<layout::RecallAnswer>(bytes);
        if (answer) return HandleRecallAnswer(connection, *answer);
        status = wrong_size;
        break;
      }
      default:
        status = absl::InvalidArgumentError(
            absl::StrCat("no request has type ", static_cast<uint32_t>(header.type)));
    }
  }
  Send(fd, Refusal<layout::AttachReply>(status));
  return Breach(connection, status);
}

bool AttachServer::Breach(Connection& connection, const absl::Status& why) {
  uint64_t suppressed = 0;
  if (connection.session != nullptr) {
    connection.session->pool().Evict(*connection.session, why);
  } else if (refusal_log_.Allow(absl::Now(), &suppressed)) {
    Log().warn("connection of pid {}, uid {} closed: {} ({} such lines suppressed)",
               connection.peer.pid, connection.peer.uid, std::string(why.message()), suppressed);
  }
  return false;
}

bool AttachServer::HandleAttach(Connection& connection, const layout::AttachRequest& request) {
  const int fd = connection.fd.get();
  if (connection.session != nullptr && connection.attach_may_repeat &&
      request.access == connection.session->access() && request.reserved == 0 &&
      connection.session->pool().name() ==
          absl::string_view(request.pool, strnlen(request.pool, sizeof(request.pool)))) {
    // The last worker made the session, and died before the client knew.
    connection.attach_may_repeat = false;
    return SendAttachReply(connection, *connection.session);
  }
  if (connection.session != nullptr || connection.attaching) {
    const absl::Status why = absl::FailedPreconditionError("this connection has a session already");
    Send(fd, Refusal<layout::AttachReply>(why));
    return Breach(connection, why);
  }
  const absl::StatusOr<Pool*> pool = CheckAttach(connection, request);
  if (!pool.ok()) return RefuseAttach(connection, pool.status());
  absl::StatusOr<UniqueFd> pidfd = PidfdOf(fd, connection.peer);
  if (!pidfd.ok()) return RefuseAttach(connection, pidfd.status());
  // The connection may be closed meanwhile.
  UniqueFd lifeline(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!lifeline.valid()) {
    return RefuseAttach(connection, absl::ErrnoToStatus(errno, "the daemon cannot take a session"));
  }
  struct Made {
    UniqueFd pidfd, lifeline;
  };
  auto made = std::make_shared<Made>(Made{*std::move(pidfd), std::move(lifeline)});
  connection.attaching = true;
  RankedMutexLock lock(&maker_mu_);
  to_make_.push_back([this, id = connection.id, pool = *pool, peer = connection.peer,
                      access = request.access, made = std::move(made)] {
    auto session = pool->Attach(peer, access, std::move(made->pidfd), made->lifeline.get());
    made->lifeline.reset();
    loop_->Post([this, id, session = std::move(session)] { FinishAttach(id, session); });
  });
  return true;
}

bool AttachServer::RefuseAttach(Connection& connection, const absl::Status& why) {
  uint64_t suppressed = 0;
  if (refusal_log_.Allow(absl::Now(), &suppressed)) {
    Log().warn("attach of pid {}, uid {} refused: {} ({} such lines suppressed)",
               connection.peer.pid, connection.peer.uid, std::string(why.message()), suppressed);
  }
  Send(connection.fd.get(), Refusal<layout::AttachReply>(why));
  return false;
}

void AttachServer::FinishAttach(uint64_t id,
                                const absl::StatusOr<std::shared_ptr<Session>>& session) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) {
    // Closed meanwhile. The client knows nothing of the session, which holds nothing.
    if (session.ok()) (void)(*session)->pool().Detach(**session);
    return;
  }
  Connection& connection = found->second;
  connection.attaching = false;
  if (!session.ok()) {
    RefuseAttach(connection, session.status());
    Close(id);
    return;
  }
  if (!SendAttachReply(connection, **session)) {
    (void)(*session)->pool().Detach(**session);
    Close(id);
    return;
  }
  connection.session = *session;
  connection_of_session_[(*session)->id()] = id;
  --pending_;
  WatchProcess(*session);
  Log().debug("pool {}: {} attached", (*session)->pool().name(), (*session)->Describe());
}

bool AttachServer::SendAttachReply(const Connection& connection, Session& session) {
  layout::AttachReply reply;
  reply.session_id = session.id();
  std::copy(session.token().begin(), session.token().end(), reply.token);
  reply.incarnation = session.pool().incarnation();
  reply.slot_capacity = layout::kSlotCapacity;
  reply.limit_bytes = session.pool().config().limit_bytes;
  reply.address_bytes = session.pool().address_bytes();
  const int fds[] = {session.memory().session_fd(), session.memory().control_read_only_fd()};
  if (!Send(connection.fd.get(), reply, fds)) return false;
  session.memory().CloseControlFd();
  return true;
}

absl::StatusOr<Pool*> AttachServer::CheckAttach(const Connection& connection,
                                                const layout::AttachRequest& request) const {
  const size_t length = strnlen(request.pool, sizeof(request.pool));
  if (length == sizeof(request.pool)) {
    return absl::InvalidArgumentError("the pool's name has no end");
  }
  if (request.reserved != 0) return absl::InvalidArgumentError("a reserved field is not zero");
  const absl::string_view name(request.pool, length);
  AccessLevel wanted;
  switch (request.access) {
    case AccessMode::kRead:
      wanted = AccessLevel::kRead;
      break;
    case AccessMode::kWrite:
      wanted = AccessLevel::kWrite;
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("access ", static_cast<uint32_t>(request.access), "; expected 1 or 2"));
  }

  Pool* pool = nullptr;
  std::vector<std::string> usable;
  for (Pool* candidate : pools_) {
    if (AccessOf(connection.peer, geteuid(), candidate->config().allow) != AccessLevel::kNone) {
      usable.push_back(candidate->name());
    }
    if (candidate->name() == name) pool = candidate;
  }
  if (pool == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("there is no pool \"", Printable(name), "\"; uid ", connection.peer.uid,
                     " may use: ", usable.empty() ? "none" : absl::StrJoin(usable, ", ")));
  }
  const AccessLevel granted = AccessOf(connection.peer, geteuid(), pool->config().allow);
  if (granted < wanted) {
    return absl::PermissionDeniedError(absl::StrCat(
        "uid ", connection.peer.uid, " has ", Name(granted), " access to pool ", pool->name(),
        " and asks for ", Name(wanted), ": add `allow { uid: ", connection.peer.uid,
        " access: ", Name(wanted), " }` to the pool in the daemon's configuration"));
  }
  // Before anything is made for it.
  if (absl::Status status = sessions_->RoomFor(connection.peer.uid); !status.ok()) return status;
  return pool;
}

void AttachServer::WatchProcess(const std::shared_ptr<Session>& session) {
  // The closure keeps the session, and so its pidfd, for as long as it is watched.
  auto watch = loop_->Watch(session->pidfd(), EPOLLIN, [this, session](uint32_t) {
    const auto node = pidfd_watches_.extract(session->id());
    if (!node.empty()) loop_->Unwatch(node.mapped());
    reaper_->ProcessDied(session);
  });
  if (watch.ok()) {
    pidfd_watches_[session->id()] = *watch;
    return;
  }
  // Without a watch its death would never be seen. Try again until it works.
  Log().error("pool {}: cannot watch {}: {}", session->pool().name(), session->Describe(),
              std::string(watch.status().message()));
  loop_->PostAfter(kAcceptPause, [this, session] {
    if (session->state() != SessionState::kEnded) WatchProcess(session);
  });
}

bool AttachServer::HandleArena(Connection& connection, const layout::ArenaRequest& request) {
  const int fd = connection.fd.get();
  if (connection.session == nullptr) {
    const absl::Status why = absl::FailedPreconditionError("attach first");
    Send(fd, Refusal<layout::ArenaReply>(why));
    return Breach(connection, why);
  }
  Session& session = *connection.session;
  auto files = session.pool().arenas().FilesOf(ArenaIndex(request.arena),
                                               session.access() == AccessMode::kWrite);
  if (!files.ok()) {
    auto reply = Refusal<layout::ArenaReply>(files.status());
    reply.arena = request.arena;
    return Send(fd, reply);
  }
  layout::ArenaReply reply;
  reply.arena = request.arena;
  const int fds[] = {files->data, files->table};
  return Send(fd, reply, fds);
}

bool AttachServer::HandleDetach(Connection& connection) {
  const int fd = connection.fd.get();
  if (connection.session == nullptr) {
    const absl::Status why = absl::FailedPreconditionError("attach first");
    Send(fd, Refusal<layout::DetachReply>(why));
    return Breach(connection, why);
  }
  const std::shared_ptr<Session> session = connection.session;
  if (absl::Status status = session->pool().Detach(*session); !status.ok()) {
    return Send(fd, Refusal<layout::DetachReply>(status));
  }
  const auto node = pidfd_watches_.extract(session->id());
  if (!node.empty()) loop_->Unwatch(node.mapped());
  if (session->state() == SessionState::kDead) reaper_->Reap(session);
  Send(fd, layout::DetachReply());
  Log().debug("pool {}: {} detached", session->pool().name(), session->Describe());
  return false;
}

void AttachServer::Recall(uint32_t session_id, uint64_t recall, uint64_t bytes) {
  const auto found = connection_of_session_.find(session_id);
  if (found == connection_of_session_.end()) {
    recaller_->Gone(session_id);
    return;
  }
  Connection& connection = connections_.at(found->second);
  layout::RecallNotice& next = connection.recall_next;
  // One notice for all that came while the last was not answered.
  next.recall = std::max(next.recall, recall);
  next.bytes = std::max(next.bytes, bytes);
  if (connection.recall_sent == 0 && !SendNotice(connection)) Close(connection.id);
}

bool AttachServer::SendNotice(Connection& connection) {
  const layout::RecallNotice notice = std::exchange(connection.recall_next, {});
  connection.recall_sent = notice.recall;
  return Send(connection.fd.get(), notice);
}

bool AttachServer::HandleRecallAnswer(Connection& connection, const layout::RecallAnswer& answer) {
  if (answer.recall != connection.recall_sent && std::exchange(connection.old_recall, false)) {
    return true;
  }
  // Nothing is under way before the session is attached.
  if (answer.recall == 0 || answer.recall != connection.recall_sent) {
    const absl::Status why = absl::InvalidArgumentError(
        absl::StrCat("recall ", answer.recall, " is answered, which is not under way"));
    Send(connection.fd.get(), Refusal<layout::AttachReply>(why));
    return Breach(connection, why);
  }
  connection.recall_sent = 0;
  recaller_->Answered(*connection.session, answer.recall);
  return connection.recall_next.recall == 0 || SendNotice(connection);
}

void AttachServer::Close(uint64_t id) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  Connection& connection = it->second;
  loop_->Unwatch(connection.watch);
  if (connection.session == nullptr) {
    --pending_;
  } else {
    connection_of_session_.erase(connection.session->id());
    recaller_->Gone(connection.session->id());
    connection.session->pool().LifelineEnded(*connection.session);
  }
  connections_.erase(it);
}

}  // namespace spanpool

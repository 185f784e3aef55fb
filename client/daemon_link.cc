#include "client/daemon_link.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "allocator/lock_rank.h"
#include "client/daemon_names.h"
#include "client/exchange_stream.h"
#include "client/kept_connection.h"
#include "client/name_source.h"
#include "client/rpc_connection.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "proto/layout/run_dir.h"
#include "spanpool/v1/pool.pb.h"

namespace spanpool::internal {
namespace {

using layout::UniqueFd;

// How long the daemon may take to answer. It never waits for anything before it does, so one that
// takes longer is stopped or hung.
constexpr absl::Duration kPatience = absl::Seconds(5);

absl::Status NoDaemon(const std::string& path, int error) {
  return absl::UnavailableError(absl::StrCat("no daemon serves ", path, ": ", strerror(error),
                                             "; start spanpoold, or name its run directory"));
}

absl::StatusOr<UniqueFd> Connect(const std::string& path) {
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

void SetReceiveTimeout(int socket, absl::Duration timeout) {
  timeval value = absl::ToTimeval(std::max(timeout, absl::Milliseconds(1)));
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value));
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof(value));
}

// A reply's own words. Whatever was sent, they end somewhere.
template <size_t N>
std::string Text(const char (&field)[N]) {
  return std::string(field, strnlen(field, N));
}

// The notice that `bytes` are, if they are one.
std::optional<layout::RecallNotice> NoticeIn(std::span<const std::byte> bytes) {
  layout::RecallNotice notice;
  if (bytes.size() != sizeof(notice)) return std::nullopt;
  std::memcpy(&notice, bytes.data(), sizeof(notice));
  if (notice.header.magic != layout::kAttachMagic ||
      notice.header.type != layout::AttachType::kRecallNotice) {
    return std::nullopt;
  }
  return notice;
}

// Sends `request` and receives a `Reply`, whose code is turned into a status, with `fds`
// descriptors if that is OK. Notices that come before it go to `on_notice`.
template <typename Reply, typename Request, typename OnNotice>
absl::StatusOr<std::vector<UniqueFd>> Call(int socket, const std::string& path,
                                           const Request& request, size_t fds, Reply* reply,
                                           const OnNotice& on_notice) {
  const Reply expected = *reply;
  if (absl::Status sent = layout::SendPacket(socket, layout::BytesOf(request)); !sent.ok()) {
    return NoDaemon(path, EPIPE);
  }
  const auto buffer = std::as_writable_bytes(std::span<Reply, 1>(reply, 1));
  absl::StatusOr<layout::Packet> packet;
  for (;;) {
    packet = layout::ReceivePacket(socket, buffer);
    if (!packet.ok()) break;
    const auto notice = NoticeIn(buffer.first(packet->truncated ? 0 : packet->bytes));
    if (!notice.has_value()) break;
    on_notice(*notice);
  }
  if (!packet.ok()) {
    return absl::UnavailableError(
        absl::StrCat("the daemon at ", path, " does not answer: ", packet.status().message()));
  }
  if (packet->bytes == 0) return NoDaemon(path, ECONNRESET);
  if (packet->truncated || packet->bytes != sizeof(Reply) ||
      reply->header.magic != layout::kAttachMagic || reply->header.type != expected.header.type) {
    return absl::FailedPreconditionError(
        absl::StrCat("what answers at ", path, " does not speak this library's protocol, version ",
                     layout::kLayoutVersion, ": install daemon and library of one version"));
  }
  if (reply->code != 0) {
    return absl::Status(static_cast<absl::StatusCode>(reply->code), Text(reply->message));
  }
  if (reply->header.version != layout::kLayoutVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("the daemon at ", path, " has protocol version ", reply->header.version,
                     ", this library ", layout::kLayoutVersion, ": install both of one version"));
  }
  if (packet->fds.size() != fds) {
    return absl::InternalError(absl::StrCat("the daemon sent ", packet->fds.size(),
                                            " descriptors where ", fds, " were due; ulimit -n?"));
  }
  return std::move(packet->fds);
}

class DaemonLink final : public SpanSource {
 public:
  DaemonLink(const std::string& run_directory, UniqueFd socket)
      : attach_path_(run_directory + "/" + layout::kAttachSocketName),
        grpc_path_(run_directory + "/" + layout::kGrpcSocketName),
        socket_fd_(socket.get()),
        socket_(std::move(socket)) {}

  absl::Status Attach(const std::string& pool, Access access, PoolFacts* facts) {
    layout::AttachRequest request;
    if (pool.size() >= sizeof(request.pool) || pool.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("\"", pool, "\" is no name of a pool"));
    }
    std::memcpy(request.pool, pool.data(), pool.size());
    request.access =
        access == Access::kReadOnly ? layout::AccessMode::kRead : layout::AccessMode::kWrite;
    layout::AttachReply reply;
    RankedMutexLock lock(&socket_mu_);
    absl::StatusOr<std::vector<UniqueFd>> fds = CallLocked(request, 2, &reply);
    if (!fds.ok()) return fds.status();
    token_.assign(reinterpret_cast<const char*>(reply.token), sizeof(reply.token));
    facts->limit_bytes = reply.limit_bytes;
    facts->address_bytes = reply.address_bytes;
    facts->incarnation = reply.incarnation;
    facts->slot_capacity = reply.slot_capacity;
    facts->writable = access == Access::kReadWrite;
    facts->session_segment = std::move((*fds)[0]);
    SetReceiveTimeout(socket_.get(), kPatience);
    names_.emplace(grpc_path_, token_, [this] { return Connection(); });
    return absl::OkStatus();
  }

  absl::StatusOr<ExchangeResult> Exchange(absl::Span<const GrantSequence> returns,
                                          absl::Span<const SpanWish> wishes) override {
    v1::ExchangeRequest request;
    const std::shared_ptr<ExchangeStream> stream = Prepare(returns, &request);
    for (const SpanWish& wish : wishes) {
      v1::SpanWant* const want = request.add_wants();
      want->set_span_class(wish.span_class.value());
      want->set_spans(wish.spans);
      want->set_pages(wish.pages.value());
      want->set_alignment_pages(wish.alignment.value());
    }
    std::vector<uint64_t> sent;
    for (const v1::SpanReturn& entry : request.returns()) sent.push_back(entry.grant_sequence());
    absl::StatusOr<v1::ExchangeResponse> response =
        stream->Exchange(std::move(request), absl::Now() + kPatience);
    if (!response.ok()) {
      RankedMutexLock lock(&mu_);
      to_return_.insert(to_return_.end(), sent.begin(), sent.end());
      return absl::UnavailableError(absl::StrCat(
          "the daemon at ", grpc_path_, " does not answer (", response.status().ToString(),
          "); what is on loan stays valid; when it serves again, attach again"));
    }
    ExchangeResult result;
    result.grants.reserve(static_cast<size_t>(response->grants_size()));
    for (const v1::SpanGrant& grant : response->grants()) {
      if (grant.span_class() >= kNumSpanClasses) {
        Remember(grant.sequence());
        continue;
      }
      result.grants.push_back(
          SpanGrant{GrantSequence(grant.sequence()),
                    PageRange{PageId(grant.first_page()), PageCount(grant.pages())},
                    SpanClass::FromValue(static_cast<uint8_t>(grant.span_class())),
                    {grant.in_use().begin(), grant.in_use().end()}});
    }
    for (const v1::Shortfall& shortfall : response->shortfalls()) {
      // The first wish is what somebody waits for.
      if (!result.shortfall.ok() && shortfall.want() != 0) continue;
      result.shortfall =
          absl::Status(static_cast<absl::StatusCode>(shortfall.code()), shortfall.message());
    }
    return result;
  }

  absl::StatusOr<ArenaFds> OpenArena(ArenaIndex arena) override {
    layout::ArenaRequest request;
    request.arena = arena.value();
    layout::ArenaReply reply;
    RankedMutexLock lock(&socket_mu_);
    if (!socket_.valid()) return NoDaemon(attach_path_, ENOTCONN);
    absl::StatusOr<std::vector<UniqueFd>> fds = CallLocked(request, 2, &reply);
    if (!fds.ok()) {
      if (absl::IsUnavailable(fds.status())) Disconnect();
      return fds.status();
    }
    return ArenaFds{std::move((*fds)[0]), std::move((*fds)[1])};
  }

  absl::Status Detach() override {
    if (HasReturns()) Exchange({}, {}).status().IgnoreError();
    RankedMutexLock lock(&socket_mu_);
    if (!socket_.valid()) return NoDaemon(attach_path_, ENOTCONN);
    layout::DetachReply reply;
    return CallLocked(layout::DetachRequest(), 0, &reply).status();
  }

  int notice_fd() const override { return socket_fd_; }

  void SetNoticeCallback(std::function<void()> wake) override {
    RankedMutexLock lock(&socket_mu_);
    wake_ = std::move(wake);
  }

  std::optional<RecallRequest> TakeRecall() override {
    // Not the lock's business if there is nothing: who holds it may wait long for a reply.
    pollfd readable{socket_fd_, POLLIN, 0};
    // acquire: pairs with the release in Note.
    if (!noted_.load(std::memory_order_acquire) && poll(&readable, 1, 0) <= 0) return std::nullopt;
    RankedMutexLock lock(&socket_mu_);
    std::byte bytes[sizeof(layout::RecallNotice)];
    absl::StatusOr<layout::Packet> packet;
    // What is no notice nobody asked for.
    while ((packet = layout::ReceivePacket(socket_.get(), bytes, layout::Wait::kNo)).ok() &&
           packet->bytes != 0) {
      if (packet->truncated) continue;
      if (const auto notice = NoticeIn(std::span(bytes).first(packet->bytes))) Note(*notice);
    }
    noted_.store(false, std::memory_order_relaxed);
    return std::exchange(recall_, std::nullopt);
  }

  void AnswerRecall(const RecallRequest& recall) override {
    layout::RecallAnswer answer;
    answer.recall = recall.number;
    // Without the lock: the socket is never closed, and a packet is sent whole. If it cannot be
    // sent there is no daemon any more that waits for it.
    layout::SendPacket(socket_fd_, layout::BytesOf(answer)).IgnoreError();
  }

  NameSource* names() override { return names_.has_value() ? &*names_ : nullptr; }

  void AbandonInChild() override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    // The child's copy would keep the lifeline open after the parent's end. The object itself is
    // the parent's: in the child it is never destroyed.
    close(socket_fd_);
    connection_.AbandonInChild();
    if (names_.has_value()) names_->AbandonInChild();
  }

 private:
  // After a request that was not answered, a late answer would be taken for the next one's.
  void Disconnect() ABSL_EXCLUSIVE_LOCKS_REQUIRED(socket_mu_) {
    shutdown(socket_.get(), SHUT_RDWR);
  }

  template <typename Reply, typename Request>
  absl::StatusOr<std::vector<UniqueFd>> CallLocked(const Request& request, size_t fds, Reply* reply)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(socket_mu_) {
    bool noticed = false;
    auto result = Call(socket_.get(), attach_path_, request, fds, reply,
                       [&](const layout::RecallNotice& notice) ABSL_NO_THREAD_SAFETY_ANALYSIS {
                         Note(notice);
                         noticed = true;
                       });
    if (noticed && wake_ != nullptr) wake_();
    return result;
  }

  void Note(const layout::RecallNotice& notice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(socket_mu_) {
    recall_ = RecallRequest{notice.recall, notice.bytes};
    noted_.store(true, std::memory_order_release);
  }

  void Remember(uint64_t sequence) ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    to_return_.push_back(sequence);
  }

  // The stream to use, a new one if the last has failed, and the returns that its next message has
  // room for.
  std::shared_ptr<ExchangeStream> Prepare(absl::Span<const GrantSequence> returns,
                                          v1::ExchangeRequest* request) ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    if (stream_ == nullptr || stream_->failed()) {
      stream_ = nullptr;
      stream_ = std::make_shared<ExchangeStream>(connection_.Get(), token_,
                                                 [this](const v1::ExchangeResponse& late) {
                                                   RankedMutexLock lock(&orphans_mu_);
                                                   for (const v1::SpanGrant& grant : late.grants())
                                                     orphans_.push_back(grant.sequence());
                                                 });
    }
    {
      RankedMutexLock orphans_lock(&orphans_mu_);
      to_return_.insert(to_return_.end(), orphans_.begin(), orphans_.end());
      orphans_.clear();
    }
    for (const GrantSequence sequence : returns) {
      request->add_returns()->set_grant_sequence(sequence.value());
    }
    while (!to_return_.empty() && request->returns_size() < kMaxReturns) {
      request->add_returns()->set_grant_sequence(to_return_.back());
      to_return_.pop_back();
    }
    return stream_;
  }

  std::shared_ptr<RpcConnection> Connection() ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    return connection_.Get();
  }

  bool HasReturns() ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    RankedMutexLock orphans_lock(&orphans_mu_);
    return !to_return_.empty() || !orphans_.empty();
  }

  static constexpr int kMaxReturns = 4096;  // per message, the protocol's

  const std::string attach_path_;
  const std::string grpc_path_;
  const int socket_fd_;

  RankedMutex socket_mu_{LockRank::kLink};
  UniqueFd socket_ ABSL_GUARDED_BY(socket_mu_);
  std::optional<RecallRequest> recall_ ABSL_GUARDED_BY(socket_mu_);
  std::atomic<bool> noted_{false};  // recall_ has one
  std::function<void()> wake_ ABSL_GUARDED_BY(socket_mu_);

  // Of answers that came too late. Locked inside a stream's lock; outlives the stream.
  RankedMutex orphans_mu_{LockRank::kLeaf};
  std::vector<uint64_t> orphans_ ABSL_GUARDED_BY(orphans_mu_);

  RankedMutex mu_{LockRank::kLink};
  std::string token_;  // constant once attached
  KeptConnection connection_ ABSL_GUARDED_BY(mu_){grpc_path_};
  std::shared_ptr<ExchangeStream> stream_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> to_return_ ABSL_GUARDED_BY(mu_);

  std::optional<DaemonNames> names_;  // constant once attached
};

}  // namespace

absl::StatusOr<std::unique_ptr<SpanSource>> AttachToDaemon(const std::string& run_directory,
                                                           const std::string& pool, Access access,
                                                           absl::Duration timeout,
                                                           PoolFacts* facts) {
  absl::StatusOr<UniqueFd> socket = Connect(run_directory + "/" + layout::kAttachSocketName);
  if (!socket.ok()) return socket.status();
  SetReceiveTimeout(socket->get(), timeout);
  auto link = std::make_unique<DaemonLink>(run_directory, *std::move(socket));
  if (absl::Status status = link->Attach(pool, access, facts); !status.ok()) return status;
  return link;
}

}  // namespace spanpool::internal

#include "client/daemon_link.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/exchange_stream.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "proto/layout/run_dir.h"
#include "spanpool/v1/pool.grpc.pb.h"

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

// Sends `request` and receives a `Reply`, whose code is turned into a status, with `fds`
// descriptors if that is OK.
template <typename Reply, typename Request>
absl::StatusOr<std::vector<UniqueFd>> Call(int socket, const std::string& path,
                                           const Request& request, size_t fds, Reply* reply) {
  const Reply expected = *reply;
  if (absl::Status sent = layout::SendPacket(socket, layout::BytesOf(request)); !sent.ok()) {
    return NoDaemon(path, EPIPE);
  }
  absl::StatusOr<layout::Packet> packet =
      layout::ReceivePacket(socket, std::as_writable_bytes(std::span<Reply, 1>(reply, 1)));
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
    absl::MutexLock lock(&socket_mu_);
    absl::StatusOr<std::vector<UniqueFd>> fds =
        Call(socket_.get(), attach_path_, request, 2, &reply);
    if (!fds.ok()) return fds.status();
    token_.assign(reinterpret_cast<const char*>(reply.token), sizeof(reply.token));
    facts->limit_bytes = reply.limit_bytes;
    facts->address_bytes = reply.address_bytes;
    facts->incarnation = reply.incarnation;
    facts->slot_capacity = reply.slot_capacity;
    facts->writable = access == Access::kReadWrite;
    facts->session_segment = std::move((*fds)[0]);
    SetReceiveTimeout(socket_.get(), kPatience);
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
      absl::MutexLock lock(&mu_);
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
    absl::MutexLock lock(&socket_mu_);
    if (!socket_.valid()) return NoDaemon(attach_path_, ENOTCONN);
    absl::StatusOr<std::vector<UniqueFd>> fds =
        Call(socket_.get(), attach_path_, request, 2, &reply);
    if (!fds.ok()) {
      if (absl::IsUnavailable(fds.status())) Disconnect();
      return fds.status();
    }
    return ArenaFds{std::move((*fds)[0]), std::move((*fds)[1])};
  }

  absl::Status Detach() override {
    FlushReturns();
    absl::MutexLock lock(&socket_mu_);
    if (!socket_.valid()) return NoDaemon(attach_path_, ENOTCONN);
    layout::DetachReply reply;
    return Call(socket_.get(), attach_path_, layout::DetachRequest(), 0, &reply).status();
  }

  void AbandonInChild() override {
    // The child's copy would keep the lifeline open after the parent's end. The object itself is
    // the parent's: in the child it is never destroyed.
    close(socket_fd_);
  }

 private:
  // After a request that was not answered, a late answer would be taken for the next one's.
  void Disconnect() ABSL_EXCLUSIVE_LOCKS_REQUIRED(socket_mu_) {
    shutdown(socket_.get(), SHUT_RDWR);
  }

  void Remember(uint64_t sequence) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    to_return_.push_back(sequence);
  }

  // The stream to use, a new one if the last has failed, and the returns that its next message has
  // room for.
  std::shared_ptr<ExchangeStream> Prepare(absl::Span<const GrantSequence> returns,
                                          v1::ExchangeRequest* request) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (stream_ == nullptr || stream_->failed()) {
      if (channel_ == nullptr) {
        grpc::ChannelArguments arguments;
        // A connection of this session's own: it ends with the session.
        arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
        arguments.SetMaxReceiveMessageSize(-1);
        arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
        // How long one attempt may take, despite its name.
        arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                         static_cast<int>(absl::ToInt64Milliseconds(kPatience)));
        arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
        arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
        channel_ = grpc::CreateCustomChannel("unix:" + grpc_path_,
                                             grpc::InsecureChannelCredentials(), arguments);
      }
      stream_ = std::make_shared<ExchangeStream>(channel_, token_,
                                                 [this](const v1::ExchangeResponse& late) {
                                                   absl::MutexLock lock(&orphans_mu_);
                                                   for (const v1::SpanGrant& grant : late.grants())
                                                     orphans_.push_back(grant.sequence());
                                                 });
    }
    {
      absl::MutexLock orphans_lock(&orphans_mu_);
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

  void FlushReturns() ABSL_LOCKS_EXCLUDED(mu_) {
    for (;;) {
      {
        absl::MutexLock lock(&mu_);
        absl::MutexLock orphans_lock(&orphans_mu_);
        if (to_return_.empty() && orphans_.empty()) return;
      }
      if (!Exchange({}, {}).ok()) return;
    }
  }

  static constexpr int kMaxReturns = 4096;  // per message, the protocol's

  const std::string attach_path_;
  const std::string grpc_path_;
  const int socket_fd_;

  absl::Mutex socket_mu_;
  UniqueFd socket_ ABSL_GUARDED_BY(socket_mu_);

  // Of answers that came too late. Locked inside a stream's lock; outlives the stream.
  absl::Mutex orphans_mu_;
  std::vector<uint64_t> orphans_ ABSL_GUARDED_BY(orphans_mu_);

  absl::Mutex mu_;
  std::string token_;  // constant once attached
  std::shared_ptr<grpc::Channel> channel_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<ExchangeStream> stream_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> to_return_ ABSL_GUARDED_BY(mu_);
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

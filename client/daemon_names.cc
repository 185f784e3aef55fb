#include "client/daemon_names.h"

#include <iterator>
#include <list>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/unary_call.h"
#include "spanpool/v1/pool.pb.h"

namespace spanpool::internal {
namespace {

// How long the daemon may take. It answers at once, or in 0.1 s if it meets a recount.
constexpr absl::Duration kPatience = absl::Seconds(5);

NamedBlock FromProto(const v1::NamedBlock& in) {
  NamedBlock block;
  block.name = in.name();
  block.handle = Handle{{in.block().low(), in.block().high()}};
  block.version = in.version();
  block.outlives_session = in.outlives_session();
  block.pid = static_cast<pid_t>(in.pid());
  block.uid = in.uid();
  return block;
}

NameChange FromProto(const v1::NameChange& in) {
  NameChange change;
  change.name = in.name();
  if (in.has_published()) {
    change.block = FromProto(in.published());
    return change;
  }
  switch (in.removal()) {
    case v1::NameChange::PUBLISHER_LEFT:
      change.kind = NameChange::Kind::kPublisherLeft;
      break;
    case v1::NameChange::PUBLISHER_LOST:
      change.kind = NameChange::Kind::kPublisherLost;
      break;
    default:
      change.kind = NameChange::Kind::kUnpublished;
  }
  return change;
}

}  // namespace

class DaemonNames::Stream final : public NameStream, private RpcConnection::Listener {
 public:
  // `names` outlives it.
  Stream(DaemonNames* names, const NameFilter& filter) : names_(names) {
    request_.set_name(filter.name);
    request_.set_prefix(filter.prefix);
    // So that what happens from now on is told.
    if (names_->watches_.fetch_add(1, std::memory_order_relaxed) < kMaxWatches) Begin();
  }
  ~Stream() override {
    names_->watches_.fetch_sub(1, std::memory_order_relaxed);
    Leave();
  }

  absl::StatusOr<NameNews> Next(absl::Time deadline) override {
    if (connection_ == nullptr && !tried_) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the session has ", kMaxWatches, " watches; destroy some, or watch more names in one"));
    }
    for (;;) {
      absl::Status why;
      if (connection_ != nullptr) {
        RankedMutexLock lock(connection_->mutex());
        const auto done = [&] { return arrived_ || ended_; };
        connection_->RunOnce();
        if (!connection_->RunUntil(absl::Condition(&done), deadline)) {
          return absl::DeadlineExceededError("no name has changed");
        }
        if (arrived_) return TakeNews();
        // Only of what the daemon refused is that the last word.
        if (!absl::IsUnavailable(end_)) return end_;
        why = end_;
      }
      absl::Status go_on = names_->reconnection_->Await(deadline, why);
      if (!go_on.ok()) {
        if (names_->reconnection_->lost()) return go_on;
        return absl::DeadlineExceededError("no name has changed");
      }
      Leave();
      Begin();
    }
  }

 private:
  void OnMessage(absl::string_view bytes) override {
    v1::WatchResponse response;
    if (!response.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
      connection_->mutex()->AssertHeld();  // as whoever calls a listener says
      connection_->Cancel(call_);
      OnEnd(absl::InternalError("the daemon sent what is no WatchResponse"));
      return;
    }
    arrived_ = true;
    current_ = response.current();
    if (response.reset()) {
      Forget();
      reset_ = true;
    }
    for (const v1::NameChange& change : response.changes()) {
      const auto before = last_change_.find(change.name());
      if (before != last_change_.end()) changes_.erase(before->second);
      last_change_[change.name()] = changes_.insert(changes_.end(), FromProto(change));
    }
  }
  void OnEnd(const absl::Status& status) override {
    ended_ = true;
    end_ = status.ok() ? absl::UnavailableError("the daemon ended the watch") : status;
  }

  // Asks the daemon, if it is time for that.
  void Begin() {
    tried_ = true;
    connection_ = names_->Watching();
    if (connection_ == nullptr) return;
    RankedMutexLock lock(connection_->mutex());
    ended_ = false;
    absl::StatusOr<RpcConnection::CallId> call =
        connection_->Start("/spanpool.v1.Pool/Watch", names_->metadata_, this);
    if (!call.ok()) {
      OnEnd(call.status());
      return;
    }
    call_ = *call;
    connection_->Send(call_, request_);
    connection_->SendEnd(call_);
  }
  void Leave() {
    if (connection_ == nullptr) return;
    {
      RankedMutexLock lock(connection_->mutex());
      connection_->Cancel(call_);
      connection_->RunOnce();  // so that the daemon hears of it
    }
    connection_ = nullptr;
    call_ = -1;
  }

  NameNews TakeNews() {
    names_->reconnection_->NoteAnswer();
    NameNews news{.reset = reset_, .changes = {}, .current = current_};
    news.changes.assign(std::make_move_iterator(changes_.begin()),
                        std::make_move_iterator(changes_.end()));
    arrived_ = false;
    Forget();
    return news;
  }

  void Forget() {
    reset_ = false;
    changes_.clear();
    last_change_.clear();
  }

  DaemonNames* const names_;
  v1::WatchRequest request_;
  bool tried_ = false;
  std::shared_ptr<RpcConnection> connection_;  // null: it was not yet time

  // Guarded by the connection's lock.
  RpcConnection::CallId call_ = -1;
  // What has arrived, and was not told yet. Another watch's thread may read it long before anybody
  // asks: so of each name there is only the last change.
  bool arrived_ = false;
  bool reset_ = false;
  bool current_ = false;
  std::list<NameChange> changes_;
  absl::flat_hash_map<std::string, std::list<NameChange>::iterator> last_change_;
  bool ended_ = false;
  absl::Status end_;
};

DaemonNames::DaemonNames(std::string grpc_path, std::string token,
                         std::function<std::shared_ptr<RpcConnection>()> connection,
                         Reconnection* reconnection)
    : metadata_({{"spanpool-token-bin", std::move(token)}}),
      connection_(std::move(connection)),
      reconnection_(reconnection),
      watching_(std::move(grpc_path)) {}

absl::Status DaemonNames::Call(const char* method, const google::protobuf::MessageLite& request,
                               google::protobuf::MessageLite* response, bool* repeated) {
  const absl::Time deadline = absl::Now() + kPatience;
  absl::Status why;
  for (;;) {
    if (const std::shared_ptr<RpcConnection> connection = connection_(); connection != nullptr) {
      why = CallOnce(*connection, absl::StrCat("/spanpool.v1.Pool/", method), metadata_, request,
                     deadline, response);
      if (absl::IsDeadlineExceeded(why)) return reconnection_->NoAnswer();
      // The daemon's own word comes over a connection that stands.
      if (!absl::IsUnavailable(why) || IsUsable(*connection)) {
        reconnection_->NoteAnswer();
        return why;
      }
      if (repeated != nullptr) *repeated = true;
    }
    if (absl::Status go_on = reconnection_->Await(deadline, why); !go_on.ok()) return go_on;
  }
}

std::shared_ptr<RpcConnection> DaemonNames::Watching() {
  RankedMutexLock lock(&mu_);
  if (!watching_.usable() && !reconnection_->TakeTurn()) return nullptr;
  return watching_.Get();
}

absl::Status DaemonNames::Publish(const std::string& name, const Handle& handle,
                                  const PublishOptions& options) {
  v1::PublishRequest request;
  request.set_name(name);
  request.mutable_block()->set_low(handle.bits[0]);
  request.mutable_block()->set_high(handle.bits[1]);
  request.set_outlive_session(options.outlive_session);
  request.set_replace(options.replace);
  v1::PublishResponse response;
  return Call("Publish", request, &response);
}

absl::StatusOr<NamedBlock> DaemonNames::Lookup(const std::string& name) {
  v1::LookupRequest request;
  request.set_name(name);
  v1::LookupResponse response;
  if (absl::Status status = Call("Lookup", request, &response); !status.ok()) return status;
  return FromProto(response.block());
}

absl::Status DaemonNames::Unpublish(const std::string& name) {
  v1::UnpublishRequest request;
  request.set_name(name);
  v1::UnpublishResponse response;
  bool repeated = false;
  absl::Status status = Call("Unpublish", request, &response, &repeated);
  // The try whose answer was lost has removed it.
  if (repeated && absl::IsNotFound(status)) return absl::OkStatus();
  return status;
}

absl::StatusOr<std::vector<NamedBlock>> DaemonNames::List(const std::string& prefix) {
  std::vector<NamedBlock> names;
  v1::ListNamesRequest request;
  request.set_prefix(prefix);
  for (;;) {
    v1::ListNamesResponse page;
    if (absl::Status status = Call("ListNames", request, &page); !status.ok()) return status;
    for (const v1::NamedBlock& block : page.names()) names.push_back(FromProto(block));
    // A page without a name would be asked for again for ever.
    if (!page.more() || page.names().empty()) return names;
    request.set_after(names.back().name);
  }
}

std::unique_ptr<NameStream> DaemonNames::Watch(const NameFilter& filter) {
  return std::make_unique<Stream>(this, filter);
}

void DaemonNames::AbandonInChild() ABSL_NO_THREAD_SAFETY_ANALYSIS { watching_.AbandonInChild(); }

}  // namespace spanpool::internal

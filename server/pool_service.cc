#include "server/pool_service.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "allocator/check.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/async_stream.h"
#include "server/long_step.h"
#include "server/name_table.h"
#include "server/pool.h"
#include "server/session.h"
#include "server/session_call.h"
#include "spanpool/v1/pool.grpc.pb.h"

namespace spanpool {
namespace {

// Repeated fields are copied up to one more than is allowed: the pool refuses what is too long.
ExchangeBatch FromProto(const v1::ExchangeRequest& request) {
  ExchangeBatch batch;
  for (const v1::SpanReturn& returned : request.returns()) {
    if (batch.returns.size() > Pool::kMaxReturns) break;
    batch.returns.push_back(returned.grant_sequence());
  }
  for (const v1::SpanWant& want : request.wants()) {
    if (batch.wants.size() > Pool::kMaxWants) break;
    batch.wants.push_back({.span_class = want.span_class(),
                           .spans = want.spans(),
                           .pages = want.pages(),
                           .alignment_pages = want.alignment_pages()});
  }
  return batch;
}

// Likewise.
InventoryPart FromProto(const v1::Inventory& inventory) {
  InventoryPart part;
  const int count =
      std::min(inventory.sequence_deltas_size(), static_cast<int>(Pool::kMaxInventory) + 1);
  part.sequence_deltas.assign(inventory.sequence_deltas().begin(),
                              inventory.sequence_deltas().begin() + count);
  part.more = inventory.more();
  return part;
}

void ToProto(const ExchangeResult& result, v1::ExchangeResponse* response) {
  for (const ExchangeGrant& grant : result.grants) {
    v1::SpanGrant* out = response->add_grants();
    out->set_sequence(grant.sequence);
    out->set_first_page(grant.first_page.value());
    out->set_pages(grant.pages.value());
    out->set_span_class(grant.span_class.value());
    out->mutable_in_use()->Add(grant.in_use.begin(), grant.in_use.end());
    out->set_want(grant.want);
  }
  for (const ExchangeShortfall& shortfall : result.shortfalls) {
    v1::Shortfall* out = response->add_shortfalls();
    out->set_want(shortfall.want);
    out->set_spans_missing(shortfall.spans_missing);
    out->set_code(static_cast<int32_t>(shortfall.status.code()));
    out->set_message(std::string(shortfall.status.message()));
  }
}

}  // namespace

// The service: names by threads of gRPC's, streams by the completion queue.
class PoolService::Rpcs final : public v1::Pool::WithAsyncMethod_Exchange<
                                    v1::Pool::WithAsyncMethod_Watch<v1::Pool::Service>> {
 public:
  explicit Rpcs(NameCalls* names) : names_(names) {}

  grpc::Status Publish(grpc::ServerContext* context, const v1::PublishRequest* request,
                       v1::PublishResponse* response) override {
    return names_->Publish(*context, *request, response);
  }
  grpc::Status Lookup(grpc::ServerContext* context, const v1::LookupRequest* request,
                      v1::LookupResponse* response) override {
    return names_->Lookup(*context, *request, response);
  }
  grpc::Status Unpublish(grpc::ServerContext* context, const v1::UnpublishRequest* request,
                         v1::UnpublishResponse*) override {
    return names_->Unpublish(*context, *request);
  }
  grpc::Status ListNames(grpc::ServerContext* context, const v1::ListNamesRequest* request,
                         v1::ListNamesResponse* response) override {
    return names_->ListNames(*context, *request, response);
  }

 private:
  NameCalls* const names_;
};

// One call on the completion queue, from before it comes until its last event. Each operation under
// way holds a reference to it through its tag.
class PoolService::Stream : public SessionStream, public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(PoolService* service) : service_(service) {}

  // Waits for a call.
  virtual void Request() = 0;

  void End(const absl::Status& status) override {
    RankedMutexLock lock(&mu_);
    if (finishing_ || end_) return;
    end_ = status;
    // While an answer is being written or worked on, its end brings the stream to this.
    if (idle_) FinishLocked();
  }

  // A tag of the completion queue came back.
  static void Deliver(void* raw, bool ok) {
    std::unique_ptr<Tag> tag(static_cast<Tag*>(raw));
    // Empty: gRPC gave the tag back of a call that never came.
    if (tag->stream != nullptr) tag->stream->On(tag->event, ok);
  }

 protected:
  enum class Event { kAccepted, kRead, kWritten, kDone, kFinished };
  struct Tag {
    std::shared_ptr<Stream> stream;
    Event event;
  };

  void* NewTag(Event event) { return new Tag{shared_from_this(), event}; }

  virtual void OnAccepted() = 0;
  virtual void OnNotAccepted() {}
  virtual void OnRead(bool /*ok*/) {}
  virtual void OnWritten(bool ok) = 0;
  // The call is over, as far as gRPC can see: the client may be gone.
  virtual void OnDone() {}
  virtual void OnFinished() {}
  // Starts the last operation.
  virtual void StartFinish(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) = 0;

  // Finds the session of a call that was accepted, which `link` ties to this stream. What is wrong
  // is how the stream is to end.
  void Begin(const std::function<absl::Status()>& link) {
    absl::Status status;
    absl::StatusOr<std::shared_ptr<Session>> session = SessionOf(context_, *service_->sessions_);
    if (!service_->Add(shared_from_this())) {
      status = absl::UnavailableError("the daemon is stopping; attach again, with back-off");
    } else if (!session.ok()) {
      status = session.status();
    } else {
      session_ = *std::move(session);
      status = link();
    }
    RankedMutexLock lock(&mu_);
    if (!status.ok() && !end_) end_ = status;
  }

  void FinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finishing_) return;
    finishing_ = true;
    StartFinish(ToGrpc(*end_));
  }

  PoolService* const service_;
  grpc::ServerContext context_;
  std::shared_ptr<Session> session_;  // constant once accepted

  RankedMutex mu_{LockRank::kLeaf};
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);  // how it is to end
  bool idle_ ABSL_GUARDED_BY(mu_) = false;  // nothing is under way that leads to a look at end_
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;

 private:
  void On(Event event, bool ok) {
    switch (event) {
      case Event::kAccepted:
        if (ok) {
          OnAccepted();
        } else {
          OnNotAccepted();
          service_->NotAccepted();
        }
        return;
      case Event::kRead:
        OnRead(ok);
        return;
      case Event::kWritten:
        OnWritten(ok);
        return;
      case Event::kDone:
        OnDone();
        return;
      case Event::kFinished:
        OnFinished();
        service_->Remove(shared_from_this());
        return;
    }
  }
};

class PoolService::ExchangeStream final : public Stream {
 public:
  explicit ExchangeStream(PoolService* service) : Stream(service), io_(&context_) {}

  void Request() override {
    service_->rpcs_->RequestExchange(&context_, &io_, service_->queue_.get(),
                                     service_->queue_.get(), NewTag(Event::kAccepted));
  }

  void End(const absl::Status& status) override {
    Stream::End(status);
    bool over;
    {
      RankedMutexLock lock(&mu_);
      over = accepted_ && !carrying_out_;
    }
    if (over) NoteOver();
  }

  void MayBegin() override {
    RankedMutexLock lock(&mu_);
    may_begin_ = true;
    if (accepted_ && !finishing_) ReadOrFinishLocked();
  }

 private:
  void OnAccepted() override {
    service_->Accept<ExchangeStream>();
    Begin([this] {
      if (session_->SetStream(shared_from_this())) return absl::OkStatus();
      return absl::UnauthenticatedError("the token names no attached session; attach again");
    });
    bool over;
    {
      RankedMutexLock lock(&mu_);
      accepted_ = true;
      over = end_.has_value();
      if (over || may_begin_) {
        ReadOrFinishLocked();
      } else {
        idle_ = true;  // until MayBegin
      }
    }
    if (over) NoteOver();
  }

  void OnRead(bool ok) override {
    {
      RankedMutexLock lock(&mu_);
      idle_ = false;
      if (finishing_) return;
      carrying_out_ = ok;
      if (!ok) {
        // The client has nothing more to say, or is gone.
        if (!end_) end_ = absl::OkStatus();
        FinishLocked();
      }
    }
    if (!ok) return NoteOver();
    response_.Clear();
    response_.set_request_id(request_.request_id());
    const absl::Status status = CarryOut();
    if (absl::IsInvalidArgument(status)) session_->pool().Evict(*session_, status);
    bool over;
    {
      RankedMutexLock lock(&mu_);
      carrying_out_ = false;
      // Its own reason, also when the eviction has ended the stream with it already.
      if (!status.ok()) end_ = status;
      over = end_.has_value();
      if (status.ok()) {
        io_.Write(response_, NewTag(Event::kWritten));
      } else {
        FinishLocked();
      }
    }
    if (over) NoteOver();
  }

  // Carries out the request and fills the response.
  absl::Status CarryOut() {
    Pool& pool = session_->pool();
    if (request_.has_inventory()) {
      InventoryPart part = FromProto(request_.inventory());
      if (begun_) return absl::InvalidArgumentError("an inventory stands at a stream's beginning");
      if (part.more && request_.returns_size() + request_.wants_size() != 0) {
        return absl::InvalidArgumentError("returns or wants before the end of the inventory");
      }
      absl::StatusOr<std::vector<uint64_t>> unknown = pool.Reconcile(*session_, part, &inventory_);
      if (!unknown.ok()) return unknown.status();
      response_.mutable_unknown()->Add(unknown->begin(), unknown->end());
      if (part.more) return absl::OkStatus();
    } else if (inventory_.count != 0 && !begun_) {
      return absl::InvalidArgumentError("another part of the inventory was due");
    }
    begun_ = true;
    absl::StatusOr<ExchangeResult> result = pool.Exchange(*session_, FromProto(request_));
    if (!result.ok()) return result.status();
    ToProto(*result, &response_);
    return absl::OkStatus();
  }

  // The session's next stream may begin.
  void NoteOver() {
    if (session_ != nullptr) session_->StreamIsOver(this);
  }

  void OnWritten(bool ok) override {
    RankedMutexLock lock(&mu_);
    if (!ok && !end_) end_ = absl::OkStatus();  // the call is dead; nobody will see a status
    ReadOrFinishLocked();
  }

  void ReadOrFinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (end_) {
      FinishLocked();
      return;
    }
    idle_ = true;  // a read is under way, but may never end
    io_.Read(&request_, NewTag(Event::kRead));
  }

  void StartFinish(const grpc::Status& status) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    io_.Finish(status, NewTag(Event::kFinished));
  }
  void OnFinished() override { NoteOver(); }

  grpc::ServerAsyncReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest> io_;

  bool accepted_ ABSL_GUARDED_BY(mu_) = false;  // session_ is constant
  bool may_begin_ ABSL_GUARDED_BY(mu_) = false;
  bool carrying_out_ ABSL_GUARDED_BY(mu_) = false;

  // Used by the thread that handles the stream's event; events do not overlap.
  v1::ExchangeRequest request_;
  v1::ExchangeResponse response_;
  InventoryProgress inventory_;
  bool begun_ = false;  // no (more) inventory may come
};

class PoolService::WatchStream final : public Stream {
 public:
  explicit WatchStream(PoolService* service) : Stream(service), io_(&context_) {}

  void Request() override {
    // Given back only if the call comes: so it holds no reference to this until then.
    done_ = new Tag{nullptr, Event::kDone};
    context_.AsyncNotifyWhenDone(done_);
    service_->rpcs_->RequestWatch(&context_, &request_, &io_, service_->queue_.get(),
                                  service_->queue_.get(), NewTag(Event::kAccepted));
  }

 private:
  void OnAccepted() override {
    done_->stream = shared_from_this();
    service_->Accept<WatchStream>();
    Begin([this] {
      if (!request_.name().empty()) {
        if (absl::Status valid = NameCalls::CheckName(request_.name()); !valid.ok()) return valid;
      }
      if (absl::Status added = session_->AddWatch(shared_from_this()); !added.ok()) return added;
      const std::weak_ptr<Stream> self = weak_from_this();
      watch_ = session_->pool().names().NewWatch(
          {.name = request_.name(), .prefix = request_.prefix()}, [self] {
            const std::shared_ptr<Stream> stream = self.lock();
            if (stream != nullptr) static_cast<WatchStream*>(stream.get())->TellNews();
          });
      return absl::OkStatus();
    });
    {
      RankedMutexLock lock(&mu_);
      if (end_) {
        FinishLocked();
        return;
      }
      idle_ = true;
    }
    TellNews();
  }

  void OnNotAccepted() override { delete done_; }

  // Writes what is new, unless something is being written already: then its end does.
  void TellNews() {
    {
      RankedMutexLock lock(&mu_);
      news_ = true;
      if (!idle_ || finishing_) return;
      idle_ = false;
    }
    WriteNews();
  }

  void OnWritten(bool ok) override {
    if (!ok) {
      RankedMutexLock lock(&mu_);
      if (!end_) end_ = absl::CancelledError();  // the call is dead; nobody will see a status
    }
    WriteNews();
  }

  // Requires that nothing is being written; until it is idle again one thread is here.
  void WriteNews() {
    for (;;) {
      {
        RankedMutexLock lock(&mu_);
        if (end_) {
          FinishLocked();
          return;
        }
        if (!news_) {
          idle_ = true;
          return;
        }
        news_ = false;
      }
      const NameTable::News news =
          session_->pool().names().Take(*watch_, NameCalls::kMostPerMessage);
      if (!news.reset && news.changes.empty()) continue;
      response_.Clear();
      NameCalls::ToProto(news, &response_);
      RankedMutexLock lock(&mu_);
      news_ = news_ || !news.current;
      io_.Write(response_, NewTag(Event::kWritten));
      return;
    }
  }

  void OnDone() override {
    if (context_.IsCancelled()) End(absl::CancelledError("the client ended the call"));
  }

  void StartFinish(const grpc::Status& status) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    io_.Finish(status, NewTag(Event::kFinished));
  }

  grpc::ServerAsyncWriter<v1::WatchResponse> io_;
  Tag* done_ = nullptr;
  v1::WatchRequest request_;
  std::shared_ptr<NameTable::Watch> watch_;  // constant once accepted

  bool news_ ABSL_GUARDED_BY(mu_) = false;  // there may be something to Take
  v1::WatchResponse response_;              // of the thread in WriteNews
};

PoolService::PoolService(SessionTable* sessions, std::vector<Pool*> pools)
    : sessions_(sessions),
      name_calls_(sessions, std::move(pools)),
      rpcs_(std::make_unique<Rpcs>(&name_calls_)) {}

PoolService::~PoolService() {
  SPANPOOL_CHECK(threads_.empty()) << "PoolService::Shutdown was not called";
}

void PoolService::Register(grpc::ServerBuilder* builder) {
  builder->RegisterService(rpcs_.get());
  queue_ = builder->AddCompletionQueue();
}

void PoolService::Start(int threads) {
  Accept<ExchangeStream>();
  Accept<WatchStream>();
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

template <typename T>
void PoolService::Accept() {
  {
    RankedMutexLock lock(&mu_);
    ++live_;
  }
  std::make_shared<T>(this)->Request();
}

void PoolService::NotAccepted() {
  RankedMutexLock lock(&mu_);
  --live_;
}

bool PoolService::Add(const std::shared_ptr<Stream>& stream) {
  RankedMutexLock lock(&mu_);
  streams_.insert(stream);
  return !draining_;
}

void PoolService::Remove(const std::shared_ptr<Stream>& stream) {
  RankedMutexLock lock(&mu_);
  streams_.erase(stream);
  --live_;
}

void PoolService::Drain() {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    RankedMutexLock lock(&mu_);
    draining_ = true;
    streams.assign(streams_.begin(), streams_.end());
  }
  for (const std::shared_ptr<Stream>& stream : streams) {
    stream->End(absl::UnavailableError("the daemon is stopping; attach again, with back-off"));
  }
}

void PoolService::AwaitDrained(absl::Time deadline) {
  RankedMutexLock lock(&mu_);
  mu_.AwaitWithDeadline(absl::Condition(
                            +[](PoolService* service) ABSL_EXCLUSIVE_LOCKS_REQUIRED(service->mu_) {
                              return service->streams_.empty();
                            },
                            this),
                        deadline);
}

void PoolService::Shutdown() {
  if (queue_ == nullptr) return;
  {
    RankedMutexLock lock(&mu_);
    mu_.Await(absl::Condition(
        +[](PoolService* service)
             ABSL_EXCLUSIVE_LOCKS_REQUIRED(service->mu_) { return service->live_ == 0; },
        this));
  }
  queue_->Shutdown();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  void* tag;
  bool ok;
  while (queue_->Next(&tag, &ok)) Stream::Deliver(tag, ok);
  queue_ = nullptr;
}

void PoolService::Run() {
  bool leads = false;
  const LongStepHandler hand_over([this, &leads] {
    if (std::exchange(leads, false)) StopLeading(/*ended=*/false);
  });
  while (leads || Lead()) {
    leads = true;
    void* tag;
    bool ok;
    if (!queue_->Next(&tag, &ok)) {
      StopLeading(/*ended=*/true);
      return;
    }
    Stream::Deliver(tag, ok);
  }
}

bool PoolService::Lead() {
  RankedMutexLock lock(&leader_mu_);
  leader_mu_.Await(absl::Condition(
      +[](PoolService* service) ABSL_EXCLUSIVE_LOCKS_REQUIRED(service->leader_mu_) {
        return !service->led_ || service->ended_;
      },
      this));
  if (ended_) return false;
  led_ = true;
  return true;
}

void PoolService::StopLeading(bool ended) {
  RankedMutexLock lock(&leader_mu_);
  led_ = false;
  ended_ = ended_ || ended;
}

}  // namespace spanpool

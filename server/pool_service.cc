#include "server/pool_service.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "allocator/check.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/async_stream.h"
#include "server/long_step.h"
#include "server/pool.h"
#include "server/session.h"

namespace spanpool {
namespace {

constexpr char kTokenKey[] = "spanpool-token-bin";

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

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

// One Exchange call, from before it comes until its last event. Each operation under way holds a
// reference to the stream through its tag.
class PoolService::Stream : public SessionStream, public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(PoolService* service) : service_(service), io_(&context_) {}

  // Waits for a call.
  void Request() {
    service_->service_.RequestExchange(&context_, &io_, service_->queue_.get(),
                                       service_->queue_.get(), NewTag(Event::kAccepted));
  }

  void End(const absl::Status& status) override {
    RankedMutexLock lock(&mu_);
    if (finishing_ || end_) return;
    end_ = status;
    // While an answer is being written or worked on, its end brings the stream to this.
    if (reading_) FinishLocked();
  }

  // A tag of the completion queue came back.
  static void Deliver(void* raw, bool ok) {
    std::unique_ptr<Tag> tag(static_cast<Tag*>(raw));
    tag->stream->On(tag->event, ok);
  }

 private:
  enum class Event { kAccepted, kRead, kWritten, kFinished };
  struct Tag {
    std::shared_ptr<Stream> stream;
    Event event;
  };

  void* NewTag(Event event) { return new Tag{shared_from_this(), event}; }

  void On(Event event, bool ok) {
    switch (event) {
      case Event::kAccepted:
        if (ok) {
          OnAccepted();
        } else {
          service_->NotAccepted();
        }
        return;
      case Event::kRead:
        OnRead(ok);
        return;
      case Event::kWritten:
        OnWritten(ok);
        return;
      case Event::kFinished:
        service_->Remove(shared_from_this());
        return;
    }
  }

  void OnAccepted() {
    service_->Accept();
    absl::Status status;
    const auto it = context_.client_metadata().find(kTokenKey);
    if (it == context_.client_metadata().end()) {
      status = absl::UnauthenticatedError(
          "no spanpool-token-bin in the metadata: attach first, and send the token it gave");
    } else {
      session_ = service_->sessions_->Find(absl::string_view(it->second.data(), it->second.size()));
    }
    if (!service_->Add(shared_from_this())) {
      status = absl::UnavailableError("the daemon is stopping; attach again, with back-off");
    } else if (status.ok() && (session_ == nullptr || !session_->SetStream(shared_from_this()))) {
      status = absl::UnauthenticatedError("the token names no attached session; attach again");
    }
    RankedMutexLock lock(&mu_);
    if (!status.ok() && !end_) end_ = status;
    ReadOrFinishLocked();
  }

  void OnRead(bool ok) {
    {
      RankedMutexLock lock(&mu_);
      reading_ = false;
      if (finishing_) return;
      if (!ok) {
        // The client has nothing more to say, or is gone.
        if (!end_) end_ = absl::OkStatus();
        FinishLocked();
        return;
      }
    }
    absl::StatusOr<ExchangeResult> result =
        session_->pool().Exchange(*session_, FromProto(request_));
    if (!result.ok() && absl::IsInvalidArgument(result.status())) {
      session_->pool().Evict(*session_, result.status());
    }
    RankedMutexLock lock(&mu_);
    if (!result.ok()) {
      // Its own reason, also when the eviction has ended the stream with it already.
      end_ = result.status();
      FinishLocked();
      return;
    }
    response_.Clear();
    response_.set_request_id(request_.request_id());
    ToProto(*result, &response_);
    io_.Write(response_, NewTag(Event::kWritten));
  }

  void OnWritten(bool ok) {
    RankedMutexLock lock(&mu_);
    if (!ok && !end_) end_ = absl::OkStatus();  // the call is dead; nobody will see a status
    ReadOrFinishLocked();
  }

  void ReadOrFinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (end_) {
      FinishLocked();
      return;
    }
    reading_ = true;
    io_.Read(&request_, NewTag(Event::kRead));
  }

  void FinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finishing_) return;
    finishing_ = true;
    io_.Finish(ToGrpc(*end_), NewTag(Event::kFinished));
  }

  PoolService* const service_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest> io_;

  // Used by the thread that handles the stream's event; events do not overlap.
  std::shared_ptr<Session> session_;
  v1::ExchangeRequest request_;
  v1::ExchangeResponse response_;

  RankedMutex mu_{LockRank::kLeaf};
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);  // how it is to end
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;
};

PoolService::PoolService(SessionTable* sessions) : sessions_(sessions) {}

PoolService::~PoolService() {
  SPANPOOL_CHECK(threads_.empty()) << "PoolService::Shutdown was not called";
}

void PoolService::Register(grpc::ServerBuilder* builder) {
  builder->RegisterService(&service_);
  queue_ = builder->AddCompletionQueue();
}

void PoolService::Start(int threads) {
  Accept();
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

void PoolService::Accept() {
  {
    RankedMutexLock lock(&mu_);
    ++live_;
  }
  std::make_shared<Stream>(this)->Request();
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

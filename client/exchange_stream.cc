#include "client/exchange_stream.h"

#include <utility>

namespace spanpool::internal {

ExchangeStream::ExchangeStream(std::shared_ptr<grpc::Channel> channel, const std::string& token,
                               OrphanHandler orphan_handler)
    : stub_(v1::Pool::NewStub(std::move(channel))), orphan_handler_(std::move(orphan_handler)) {
  context_.AddMetadata("spanpool-token-bin", token);
  absl::MutexLock lock(&mu_);
  stream_ = stub_->PrepareAsyncExchange(&context_, &queue_);
  ++under_way_;
  stream_->StartCall(TagOf(kStart));
}

ExchangeStream::~ExchangeStream() {
  context_.TryCancel();
  absl::MutexLock lock(&mu_);
  for (;;) {
    if (!finishing_ && under_way_ == 0) Finish();
    if (finished_ && under_way_ == 0) break;
    void* tag;
    bool ok;
    if (!queue_.Next(&tag, &ok)) break;
    Handle(static_cast<Tag>(reinterpret_cast<intptr_t>(tag)), ok);
  }
  queue_.Shutdown();
  void* tag;
  bool ok;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool ExchangeStream::failed() const {
  absl::MutexLock lock(&mu_);
  return finishing_;
}

void ExchangeStream::Write() {
  if (!started_ || writing_ || finishing_ || to_write_.empty()) return;
  writing_ = true;
  ++under_way_;
  stream_->Write(to_write_.front(), TagOf(kWrite));
}

void ExchangeStream::Read() {
  ++under_way_;
  stream_->Read(&incoming_, TagOf(kRead));
}

void ExchangeStream::Finish() {
  finishing_ = true;
  ++under_way_;
  stream_->Finish(&status_, TagOf(kFinish));
}

void ExchangeStream::Handle(Tag tag, bool ok) {
  --under_way_;
  switch (tag) {
    case kStart:
      if (ok && !finishing_) {
        started_ = true;
        Read();
        Write();
      }
      break;
    case kWrite:
      writing_ = false;
      to_write_.pop_front();
      if (ok) Write();
      break;
    case kRead:
      if (ok) {
        if (const auto it = waiters_.find(incoming_.request_id()); it != waiters_.end()) {
          it->second->response.Swap(&incoming_);
          it->second->done = true;
          waiters_.erase(it);
        } else {
          orphan_handler_(incoming_);
        }
        if (!finishing_) Read();
      }
      break;
    case kFinish:
      finished_ = true;
      break;
  }
  if (!ok && !finishing_) Finish();
}

absl::StatusOr<v1::ExchangeResponse> ExchangeStream::Exchange(v1::ExchangeRequest request,
                                                              absl::Time deadline) {
  Waiter waiter;
  absl::MutexLock lock(&mu_);
  const uint64_t id = next_request_++;
  request.set_request_id(id);
  waiters_.emplace(id, &waiter);
  to_write_.push_back(std::move(request));
  Write();
  while (!waiter.done && !finished_) {
    if (polling_) {
      const auto my_turn = [&] {
        mu_.AssertHeld();
        return waiter.done || finished_ || !polling_;
      };
      if (!mu_.AwaitWithDeadline(absl::Condition(&my_turn), deadline)) break;
      continue;
    }
    polling_ = true;
    void* tag;
    bool ok;
    mu_.Unlock();
    const auto next = queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline));
    mu_.Lock();
    polling_ = false;
    if (next != grpc::CompletionQueue::GOT_EVENT) break;
    Handle(static_cast<Tag>(reinterpret_cast<intptr_t>(tag)), ok);
  }
  if (waiter.done) return std::move(waiter.response);
  waiters_.erase(id);
  if (finished_) {
    return absl::Status(static_cast<absl::StatusCode>(status_.error_code()),
                        status_.error_message());
  }
  return absl::DeadlineExceededError("the daemon did not answer in time");
}

}  // namespace spanpool::internal

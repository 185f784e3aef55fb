#include "client/exchange_stream.h"

#include <utility>

#include "absl/synchronization/mutex.h"
#include "allocator/lock_rank.h"

namespace spanpool::internal {

ExchangeStream::ExchangeStream(std::shared_ptr<RpcConnection> connection, const std::string& token,
                               AnswerHandler answer_handler)
    : connection_(std::move(connection)), answer_handler_(std::move(answer_handler)) {
  RankedMutexLock lock(connection_->mutex());
  absl::StatusOr<RpcConnection::CallId> call =
      connection_->Start("/spanpool.v1.Pool/Exchange", {{"spanpool-token-bin", token}}, this);
  if (call.ok()) {
    call_ = *call;
  } else {
    OnEnd(call.status());
  }
}

ExchangeStream::~ExchangeStream() {
  RankedMutexLock lock(connection_->mutex());
  connection_->Cancel(call_);
}

bool ExchangeStream::failed() const {
  RankedMutexLock lock(connection_->mutex());
  connection_->RunOnce();
  return ended_;
}

void ExchangeStream::OnMessage(absl::string_view bytes) {
  v1::ExchangeResponse response;
  if (!response.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    connection_->mutex()->AssertHeld();  // as whoever calls a listener says
    connection_->Cancel(call_);
    OnEnd(absl::InternalError("the daemon sent what is no ExchangeResponse"));
    return;
  }
  const auto it = waiters_.find(response.request_id());
  answer_handler_(response, it != waiters_.end());
  if (it == waiters_.end()) return;
  it->second->response.Swap(&response);
  it->second->done = true;
  waiters_.erase(it);
}

void ExchangeStream::OnEnd(const absl::Status& status) {
  ended_ = true;
  // A stream that ends in order ends all the same.
  end_ = status.ok() ? absl::UnavailableError("the daemon ended the stream") : status;
}

void ExchangeStream::Send(v1::ExchangeRequest request) {
  RankedMutexLock lock(connection_->mutex());
  request.set_request_id(next_request_++);
  if (!ended_) connection_->Send(call_, request);
}

absl::StatusOr<v1::ExchangeResponse> ExchangeStream::Exchange(v1::ExchangeRequest request,
                                                              absl::Time deadline) {
  Waiter waiter;
  RankedMutexLock lock(connection_->mutex());
  const uint64_t id = next_request_++;
  request.set_request_id(id);
  waiters_.emplace(id, &waiter);
  if (!ended_) connection_->Send(call_, request);
  const auto done = [&] { return waiter.done || ended_; };
  connection_->RunUntil(absl::Condition(&done), deadline);
  if (waiter.done) return std::move(waiter.response);
  waiters_.erase(id);
  if (ended_) return end_;
  return absl::DeadlineExceededError("the daemon did not answer in time");
}

}  // namespace spanpool::internal

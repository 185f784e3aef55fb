#include "client/unary_call.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "allocator/lock_rank.h"
#include "proto/layout/step.h"

namespace spanpool::internal {
namespace {

class Answer final : public RpcConnection::Listener {
 public:
  explicit Answer(google::protobuf::MessageLite* response) : response_(response) {}

  void OnMessage(absl::string_view bytes) override {
    answered_ = response_->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
  }
  void OnEnd(const absl::Status& status) override {
    ended_ = true;
    status_ = status;
    if (status.ok() && !answered_) {
      status_ = absl::InternalError("the daemon's answer is not what was asked for");
    }
  }

  bool ended() const { return ended_; }
  const absl::Status& status() const { return status_; }

 private:
  google::protobuf::MessageLite* const response_;
  bool answered_ = false;
  bool ended_ = false;
  absl::Status status_;
};

}  // namespace

absl::Status CallOnce(RpcConnection& connection, const std::string& method,
                      const RpcConnection::Metadata& metadata,
                      const google::protobuf::MessageLite& request, absl::Time deadline,
                      google::protobuf::MessageLite* response) {
  Answer answer(response);
  RankedMutexLock lock(connection.mutex());
  absl::StatusOr<RpcConnection::CallId> call = connection.Start(method, metadata, &answer);
  if (!call.ok()) return call.status();
  connection.Send(*call, request);
  connection.SendEnd(*call);
  SPANPOOL_STEP("call.sent");
  const auto ended = [&] { return answer.ended(); };
  if (connection.RunUntil(absl::Condition(&ended), deadline)) return answer.status();
  connection.Cancel(*call);
  connection.RunOnce();  // so that the daemon hears of it
  return absl::DeadlineExceededError(absl::StrCat("the daemon did not answer ", method));
}

}  // namespace spanpool::internal

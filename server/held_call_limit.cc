#include "server/held_call_limit.h"

#include "grpcpp/server_context.h"
#include "grpcpp/support/interceptor.h"

namespace spanpool {

using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::InterceptorBatchMethods;
using grpc::experimental::ServerRpcInfo;

class HeldCallLimit::HeldCall final : public grpc::experimental::Interceptor {
 public:
  HeldCall(HeldCallLimit* limit, ServerRpcInfo* info) : limit_(limit), info_(info) {}
  ~HeldCall() override { limit_->End(this); }

  void Intercept(InterceptorBatchMethods* methods) override {
    // Between these two points the call is sure to be there to be cancelled. No lock is taken at
    // any other: a cancellation comes through here too, under it.
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      limit_->Begin(this);
    } else if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      limit_->End(this);
    }
    methods->Proceed();
  }

  void Cancel() { info_->server_context()->TryCancel(); }

 private:
  HeldCallLimit* const limit_;
  ServerRpcInfo* const info_;
};

grpc::experimental::Interceptor* HeldCallLimit::CreateServerInterceptor(ServerRpcInfo* info) {
  return info->method() == method_ ? new HeldCall(this, info) : nullptr;
}

void HeldCallLimit::Begin(HeldCall* call) {
  RankedMutexLock lock(&mu_);
  calls_.push_back(call);
  if (calls_.size() <= most_) return;
  calls_.front()->Cancel();
  calls_.pop_front();
}

void HeldCallLimit::End(HeldCall* call) {
  RankedMutexLock lock(&mu_);
  calls_.remove(call);
}

}  // namespace spanpool

// Ends the oldest calls of a method when there are too many.
//
// A synchronous call that its client can hold open as long as it likes takes one of the server's
// few threads; a client that holds many would leave none for anybody else's short calls. gRPC's
// reflection service, which is not ours to write, has such a method. With a limit on it the newest
// callers are served, and the one that came before them is CANCELLED.
//
// An interceptor of the server's: gRPC makes one object for each call of the method, none for
// others. Thread-safe.

#ifndef SPANPOOL_SERVER_HELD_CALL_LIMIT_H_
#define SPANPOOL_SERVER_HELD_CALL_LIMIT_H_

#include <cstddef>
#include <list>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"
#include "grpcpp/support/server_interceptor.h"

namespace spanpool {

class HeldCallLimit final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  // At most `most` calls of `method`, "/package.Service/Method", at a time. Outlives the calls.
  HeldCallLimit(std::string method, size_t most) : method_(std::move(method)), most_(most) {}

  // Null for other methods.
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override;

 private:
  class HeldCall;

  void Begin(HeldCall* call) ABSL_LOCKS_EXCLUDED(mu_);
  void End(HeldCall* call) ABSL_LOCKS_EXCLUDED(mu_);

  const std::string method_;
  const size_t most_;
  RankedMutex mu_{LockRank::kLeaf};
  std::list<HeldCall*> calls_ ABSL_GUARDED_BY(mu_);  // oldest first
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_HELD_CALL_LIMIT_H_

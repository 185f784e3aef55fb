// gRPC's Admin service: what an operator asks. It answers administrators (grpc_listener.h knows
// them) and tells everybody else why it does not: PERMISSION_DENIED.
//
// Thread-safe, as gRPC asks.

#ifndef SPANPOOL_SERVER_ADMIN_SERVICE_H_
#define SPANPOOL_SERVER_ADMIN_SERVICE_H_

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "grpcpp/server_context.h"
#include "server/fd_store.h"
#include "server/pool.h"
#include "server/recaller.h"
#include "spanpool/v1/admin.grpc.pb.h"

namespace spanpool {

inline constexpr char kVersion[] = "0.1.0";

class AdminService final : public v1::Admin::Service {
 public:
  // All outlive this object. `store` may be null.
  AdminService(std::vector<Pool*> pools, Recaller* recaller, const FdStore* store,
               absl::Time started)
      : pools_(std::move(pools)), recaller_(recaller), store_(store), started_(started) {}

  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::GetStatusResponse* response) override;
  // Waits for clients, within the caller's bounds.
  grpc::Status Trim(grpc::ServerContext* context, const v1::TrimRequest* request,
                    v1::TrimResponse* response) override;

  // Waits until no call is being worked on, at most until `deadline`.
  void AwaitIdle(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // A call that is being worked on.
  class Call;

  // The pools that `name` means: that one, or all if it is empty. None = there is no such pool.
  std::vector<Pool*> PoolsOf(const std::string& name) const;

  const std::vector<Pool*> pools_;
  Recaller* const recaller_;
  const FdStore* const store_;
  const absl::Time started_;

  RankedMutex mu_{LockRank::kLeaf};
  int calls_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_ADMIN_SERVICE_H_

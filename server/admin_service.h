// gRPC's Admin service: what an operator asks.
//
// Two of these are served: one to administrators, which answers, and one to everybody else, which
// says why it does not (grpc_listener.h decides who is who).
//
// Thread-safe, as gRPC asks.

#ifndef SPANPOOL_SERVER_ADMIN_SERVICE_H_
#define SPANPOOL_SERVER_ADMIN_SERVICE_H_

#include <vector>

#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "server/pool.h"
#include "spanpool/v1/admin.grpc.pb.h"

namespace spanpool {

inline constexpr char kVersion[] = "0.1.0";

class AdminService final : public v1::Admin::Service {
 public:
  // `pools` outlive this object.
  AdminService(std::vector<const Pool*> pools, absl::Time started)
      : pools_(std::move(pools)), started_(started) {}

  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::GetStatusResponse* response) override;

 private:
  const std::vector<const Pool*> pools_;
  const absl::Time started_;
};

class DeniedAdminService final : public v1::Admin::Service {
 public:
  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::GetStatusResponse* response) override;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_ADMIN_SERVICE_H_

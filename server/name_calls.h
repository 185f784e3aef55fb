// The calls of gRPC's Pool service that are about names, but Watch: from messages to the pools and
// back. spanpool/v1/pool.proto says what they do.
//
// Thread-safe; the threads are gRPC's. A call takes microseconds, and up to 0.1 s if it meets a
// block that is being recounted.

#ifndef SPANPOOL_SERVER_NAME_CALLS_H_
#define SPANPOOL_SERVER_NAME_CALLS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "server/name_table.h"
#include "server/pool.h"
#include "server/session.h"
#include "server/session_table.h"
#include "spanpool/v1/pool.pb.h"

namespace spanpool {

class NameCalls {
 public:
  static constexpr size_t kMostPerMessage = 1024;

  // All outlive this object.
  NameCalls(SessionTable* sessions, std::vector<Pool*> pools)
      : sessions_(sessions), pools_(std::move(pools)) {}
  NameCalls(const NameCalls&) = delete;
  NameCalls& operator=(const NameCalls&) = delete;

  grpc::Status Publish(const grpc::ServerContext& context, const v1::PublishRequest& request,
                       v1::PublishResponse* response);
  grpc::Status Lookup(const grpc::ServerContext& context, const v1::LookupRequest& request,
                      v1::LookupResponse* response);
  grpc::Status Unpublish(const grpc::ServerContext& context, const v1::UnpublishRequest& request);
  grpc::Status ListNames(const grpc::ServerContext& context, const v1::ListNamesRequest& request,
                         v1::ListNamesResponse* response);

  static absl::Status CheckName(const std::string& name);
  static void ToProto(const PublishedBlock& block, v1::NamedBlock* out);
  static void ToProto(const NameTable::News& news, v1::WatchResponse* out);

 private:
  absl::StatusOr<std::shared_ptr<Session>> AttachedSession(
      const grpc::ServerContext& context) const;
  // The pool of the call's session, which may write if that is asked for; or, for an administrator
  // without a session, the one of that name.
  absl::StatusOr<Pool*> PoolOf(const grpc::ServerContext& context, const std::string& name,
                               bool writing) const;

  SessionTable* const sessions_;
  const std::vector<Pool*> pools_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_NAME_CALLS_H_

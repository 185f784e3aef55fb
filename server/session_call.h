// What the calls of gRPC's Pool service have in common: whose they are, and how they end.

#ifndef SPANPOOL_SERVER_SESSION_CALL_H_
#define SPANPOOL_SERVER_SESSION_CALL_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "server/session.h"
#include "server/session_table.h"

namespace spanpool {

// Whether the call's metadata has a token at all.
bool HasToken(const grpc::ServerContext& context);

// The session that the token in the call's metadata names; it may have been detached meanwhile.
//   UNAUTHENTICATED  no token, or it names none
absl::StatusOr<std::shared_ptr<Session>> SessionOf(const grpc::ServerContext& context,
                                                   const SessionTable& sessions);

grpc::Status ToGrpc(const absl::Status& status);

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_SESSION_CALL_H_

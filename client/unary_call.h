// One gRPC call of one request and one answer.

#ifndef SPANPOOL_CLIENT_UNARY_CALL_H_
#define SPANPOOL_CLIENT_UNARY_CALL_H_

#include <google/protobuf/message_lite.h>

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/rpc_connection.h"

namespace spanpool::internal {

// Calls `method` and waits for the answer until `deadline`.
//   DEADLINE_EXCEEDED  none came in time; the call may have been carried out
//   UNAVAILABLE        the connection is broken, or the daemon is stopping; likewise
//   INTERNAL           what came is no answer
//   any other          the daemon's
absl::Status CallOnce(RpcConnection& connection, const std::string& method,
                      const RpcConnection::Metadata& metadata,
                      const google::protobuf::MessageLite& request, absl::Time deadline,
                      google::protobuf::MessageLite* response);

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_UNARY_CALL_H_

#include "server/session_call.h"

#include <string>

#include "absl/strings/string_view.h"

namespace spanpool {
namespace {

constexpr char kTokenKey[] = "spanpool-token-bin";

}  // namespace

bool HasToken(const grpc::ServerContext& context) {
  return context.client_metadata().find(kTokenKey) != context.client_metadata().end();
}

absl::StatusOr<std::shared_ptr<Session>> SessionOf(const grpc::ServerContext& context,
                                                   const SessionTable& sessions) {
  const auto it = context.client_metadata().find(kTokenKey);
  if (it == context.client_metadata().end()) {
    return absl::UnauthenticatedError(
        "no spanpool-token-bin in the metadata: attach first, and send the token it gave");
  }
  std::shared_ptr<Session> session =
      sessions.Find(absl::string_view(it->second.data(), it->second.size()));
  if (session == nullptr) {
    return absl::UnauthenticatedError("the token names no attached session; attach again");
  }
  return session;
}

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace spanpool

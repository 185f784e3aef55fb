#include "server/name_calls.h"

#include "absl/strings/str_cat.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_name.h"
#include "proto/layout/handle_bits.h"
#include "server/grpc_listener.h"
#include "server/log.h"
#include "server/session_call.h"

namespace spanpool {

absl::Status NameCalls::CheckName(const std::string& name) {
  if (layout::IsBlockName(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", Printable(name), "\" is no name for a block; expected ", layout::kNameRule));
}

void NameCalls::ToProto(const PublishedBlock& block, v1::NamedBlock* out) {
  out->set_name(block.name);
  out->mutable_block()->set_low(block.handle.low());
  out->mutable_block()->set_high(block.handle.high());
  out->set_version(block.version);
  out->set_outlives_session(block.outlives_session);
  out->set_session(block.session);
  out->set_pid(block.pid);
  out->set_uid(block.uid);
}

void NameCalls::ToProto(const NameTable::News& news, v1::WatchResponse* out) {
  out->set_reset(news.reset);
  out->set_current(news.current);
  for (const ChangedName& change : news.changes) {
    v1::NameChange* const told = out->add_changes();
    told->set_name(change.name);
    if (change.published.has_value()) {
      ToProto(*change.published, told->mutable_published());
      continue;
    }
    switch (change.removal) {
      case NameRemoval::kUnpublished:
        told->set_removal(v1::NameChange::UNPUBLISHED);
        break;
      case NameRemoval::kPublisherLeft:
        told->set_removal(v1::NameChange::PUBLISHER_LEFT);
        break;
      case NameRemoval::kPublisherLost:
        told->set_removal(v1::NameChange::PUBLISHER_LOST);
        break;
    }
  }
}

absl::StatusOr<std::shared_ptr<Session>> NameCalls::AttachedSession(
    const grpc::ServerContext& context) const {
  absl::StatusOr<std::shared_ptr<Session>> session = SessionOf(context, *sessions_);
  if (session.ok() && (*session)->state() != SessionState::kAttached) {
    return absl::UnauthenticatedError("the session is not attached; attach again");
  }
  return session;
}

absl::StatusOr<Pool*> NameCalls::PoolOf(const grpc::ServerContext& context, const std::string& name,
                                        bool writing) const {
  if (HasToken(context)) {
    absl::StatusOr<std::shared_ptr<Session>> session = AttachedSession(context);
    if (!session.ok()) return session.status();
    if (writing && (*session)->access() == layout::AccessMode::kRead) {
      return absl::PermissionDeniedError(
          "the session is attached for reading; attach with write access to unpublish");
    }
    return &(*session)->pool();
  }
  if (!GrpcListener::IsAdministrator(context.peer())) {
    return absl::PermissionDeniedError(
        "without a session this is for administrators: root, the daemon's own uid, and those whom "
        "every pool allows ADMIN access; with one, send its token");
  }
  for (Pool* const pool : pools_) {
    if (pool->name() == name) return pool;
  }
  return absl::NotFoundError(absl::StrCat("there is no pool \"", Printable(name), "\""));
}

grpc::Status NameCalls::Publish(const grpc::ServerContext& context,
                                const v1::PublishRequest& request, v1::PublishResponse* response) {
  absl::StatusOr<std::shared_ptr<Session>> session = AttachedSession(context);
  if (!session.ok()) return ToGrpc(session.status());
  if (absl::Status valid = CheckName(request.name()); !valid.ok()) return ToGrpc(valid);
  absl::StatusOr<uint64_t> version = (*session)->pool().Publish(
      **session,
      {.name = request.name(),
       .handle = layout::HandleBits::Unpack(request.block().low(), request.block().high()),
       .outlive_session = request.outlive_session(),
       .replace = request.replace()});
  if (!version.ok()) return ToGrpc(version.status());
  response->set_version(*version);
  return grpc::Status::OK;
}

grpc::Status NameCalls::Lookup(const grpc::ServerContext& context, const v1::LookupRequest& request,
                               v1::LookupResponse* response) {
  absl::StatusOr<std::shared_ptr<Session>> session = AttachedSession(context);
  if (!session.ok()) return ToGrpc(session.status());
  if (absl::Status valid = CheckName(request.name()); !valid.ok()) return ToGrpc(valid);
  absl::StatusOr<PublishedBlock> block = (*session)->pool().Lookup(request.name());
  if (!block.ok()) return ToGrpc(block.status());
  ToProto(*block, response->mutable_block());
  return grpc::Status::OK;
}

grpc::Status NameCalls::Unpublish(const grpc::ServerContext& context,
                                  const v1::UnpublishRequest& request) {
  absl::StatusOr<Pool*> pool = PoolOf(context, request.pool(), /*writing=*/true);
  if (!pool.ok()) return ToGrpc(pool.status());
  if (absl::Status valid = CheckName(request.name()); !valid.ok()) return ToGrpc(valid);
  return ToGrpc((*pool)->Unpublish(request.name()));
}

grpc::Status NameCalls::ListNames(const grpc::ServerContext& context,
                                  const v1::ListNamesRequest& request,
                                  v1::ListNamesResponse* response) {
  absl::StatusOr<Pool*> pool = PoolOf(context, request.pool(), /*writing=*/false);
  if (!pool.ok()) return ToGrpc(pool.status());
  bool more;
  for (const PublishedBlock& block :
       (*pool)->names().List(request.prefix(), request.after(), kMostPerMessage, &more)) {
    ToProto(block, response->add_names());
  }
  response->set_more(more);
  return grpc::Status::OK;
}

}  // namespace spanpool

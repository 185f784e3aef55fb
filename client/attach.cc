#include <utility>

#include "client/daemon_link.h"
#include "client/session_core.h"
#include "client/target.h"
#include "spanpool/session.h"

namespace spanpool {

using internal::SessionCore;

absl::StatusOr<std::unique_ptr<Session>> Session::Attach(const SessionOptions& options) {
  absl::StatusOr<std::string> run_directory = internal::ResolveRunDirectory(options.target);
  if (!run_directory.ok()) return run_directory.status();
  internal::PoolFacts facts;
  absl::StatusOr<std::unique_ptr<internal::SpanSource>> link =
      internal::AttachToDaemon(*run_directory, internal::ResolvePool(options.pool), options.access,
                               options.attach_timeout, &facts);
  if (!link.ok()) return link.status();
  absl::StatusOr<SessionCore*> core = SessionCore::Create(std::move(facts), *std::move(link));
  if (!core.ok()) return core.status();
  return SessionCore::NewSession(*core);
}

}  // namespace spanpool

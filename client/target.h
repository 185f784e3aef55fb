// Where the daemon is: what a user's TARGET and the environment amount to.

#ifndef SPANPOOL_CLIENT_TARGET_H_
#define SPANPOOL_CLIENT_TARGET_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace spanpool::internal {

// The run directory that `target` names: itself, or if empty $SPANPOOL_TARGET, or the default.
//   UNIMPLEMENTED     it is host:port
//   INVALID_ARGUMENT  nothing names a directory: no target, no $XDG_RUNTIME_DIR
absl::StatusOr<std::string> ResolveRunDirectory(std::string_view target);

// The pool that `pool` names: itself, or if empty $SPANPOOL_POOL, or "default".
std::string ResolvePool(std::string_view pool);

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_TARGET_H_

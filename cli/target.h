// Which daemon a command talks to.

#ifndef SPANPOOL_CLI_TARGET_H_
#define SPANPOOL_CLI_TARGET_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/status.h"

namespace spanpool::cli {

// The run directory that `flag` (--target), else SPANPOOL_TARGET, else the default means.
//   UNIMPLEMENTED        host:port: this release serves its own machine only
//   FAILED_PRECONDITION  nothing is named, and there is no default
absl::StatusOr<std::string> ResolveTarget(const std::string& flag);

// A channel to the daemon that serves `run_dir`.
//   NOT_FOUND  no socket is there: no daemon runs; the message says how to start one
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& run_dir);

// What a call's failure means to the user of the command.
absl::Status FromGrpc(const grpc::Status& status, const std::string& run_dir);

}  // namespace spanpool::cli

#endif  // SPANPOOL_CLI_TARGET_H_

#include "cli/target.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "proto/layout/run_dir.h"

namespace spanpool::cli {
namespace {

// "host:port", and not the path of a folder that happens to have a colon in it.
bool IsHostPort(const std::string& target) {
  const size_t colon = target.rfind(':');
  struct stat info;
  return target.find('/') == std::string::npos && colon != std::string::npos &&
         colon + 1 < target.size() &&
         target.find_first_not_of("0123456789", colon + 1) == std::string::npos &&
         stat(target.c_str(), &info) != 0;
}

}  // namespace

absl::StatusOr<std::string> ResolveTarget(const std::string& flag) {
  std::string target = flag;
  if (target.empty()) {
    const char* variable = std::getenv("SPANPOOL_TARGET");
    if (variable != nullptr) target = variable;
  }
  if (target.empty()) target = layout::DefaultRunDirectory();
  if (target.empty()) {
    return absl::FailedPreconditionError(
        "no target: XDG_RUNTIME_DIR is not set; name the daemon's run directory with --target or "
        "SPANPOOL_TARGET");
  }
  if (IsHostPort(target)) {
    return absl::UnimplementedError(
        absl::StrCat("target ", target,
                     " is on the network, which this release does not serve; name the run "
                     "directory of a daemon on this machine"));
  }
  return target;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& run_dir) {
  const std::string path = absl::StrCat(run_dir, "/", layout::kGrpcSocketName);
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    if (errno == EACCES) {
      return absl::PermissionDeniedError(
          absl::StrCat("uid ", geteuid(), " may not look into ", run_dir, ": ", strerror(errno)));
    }
    return absl::NotFoundError(absl::StrCat("no daemon serves ", run_dir, " (", path, ": ",
                                            strerror(errno),
                                            "); start one with `spanpoold --run_dir ", run_dir,
                                            "`, or name another run directory with --target"));
  }
  return grpc::CreateChannel(absl::StrCat("unix:", path), grpc::InsecureChannelCredentials());
}

absl::Status FromGrpc(const grpc::Status& status, const std::string& run_dir) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return absl::Status(
          code, absl::StrCat("the daemon of ", run_dir, " does not answer (",
                             status.error_message(), "); it may have been killed: start it again"));
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::Status(code, absl::StrCat("the daemon of ", run_dir,
                                             " did not answer in time; it may be stopped"));
    default:
      return absl::Status(code, status.error_message());
  }
}

}  // namespace spanpool::cli

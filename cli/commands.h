// What `spanpool COMMAND` does once the daemon is known. Each returns what to print.

#ifndef SPANPOOL_CLI_COMMANDS_H_
#define SPANPOOL_CLI_COMMANDS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "spanpool/v1/admin.pb.h"

namespace spanpool::cli {

struct Options {
  std::string run_dir;
  std::string pool;  // "" = all
  bool json = false;
  uint32_t wait_ms =
      0;  // `trim`: how long to wait for sessions to answer; 0 = the daemon's default
};

// `status`: how full each pool is, and who uses it.
//   PERMISSION_DENIED  the user is no administrator of the daemon
//   NOT_FOUND          no daemon, or no such pool
absl::StatusOr<std::string> Status(const Options& options);
// The same, of an answer at hand.
std::string RenderStatus(const v1::GetStatusResponse& response, const Options& options);

// `trim`: takes back what sessions do not use, and gives free memory back to the machine.
//   PERMISSION_DENIED  the user is no administrator of the daemon
//   NOT_FOUND          no daemon, or no such pool
absl::StatusOr<std::string> Trim(const Options& options);
// The same, of an answer at hand.
std::string RenderTrim(const v1::TrimResponse& response, const Options& options);

// `health`: whether the daemon serves, and the pool, if one is named.
//   UNAVAILABLE  it does not (it is stopping)
//   NOT_FOUND    no daemon, or no such pool
absl::StatusOr<std::string> Health(const Options& options);

}  // namespace spanpool::cli

#endif  // SPANPOOL_CLI_COMMANDS_H_

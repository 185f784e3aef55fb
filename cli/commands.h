// What `spanpool COMMAND` does once the daemon is known. Each returns what to print.

#ifndef SPANPOOL_CLI_COMMANDS_H_
#define SPANPOOL_CLI_COMMANDS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "spanpool/v1/admin.pb.h"
#include "spanpool/v1/pool.pb.h"

namespace spanpool::cli {

struct Options {
  std::string run_dir{};
  std::string pool{};  // "" = all
  bool json = false;
  // `trim`: how long to wait for sessions to answer; 0 = the daemon's default
  uint32_t wait_ms = 0;
  std::string name{};  // `names`: what they begin with; `rm`: which
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

// `names`: the names of blocks, and who published them.
//   PERMISSION_DENIED  the user is no administrator of the daemon
//   NOT_FOUND          no daemon, or no such pool
absl::StatusOr<std::string> Names(const Options& options);
using PoolNames = std::pair<std::string, v1::ListNamesResponse>;  // a pool's name, and its names
// The same, of answers at hand.
std::string RenderNames(const std::vector<PoolNames>& pools, const Options& options);

// `rm`: unpublishes a name, of pool `default` if none is named. Prints nothing.
//   PERMISSION_DENIED  the user is no administrator of the daemon
//   NOT_FOUND          no daemon, no such pool or name
absl::StatusOr<std::string> RemoveName(const Options& options);

// `health`: whether the daemon serves, and the pool, if one is named.
//   UNAVAILABLE  it does not (it is stopping)
//   NOT_FOUND    no daemon, or no such pool
absl::StatusOr<std::string> Health(const Options& options);

}  // namespace spanpool::cli

#endif  // SPANPOOL_CLI_COMMANDS_H_

// A daemon for a benchmark: started in a run directory of its own, ended with the object.
//
//   absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon = PoolDaemon::Start({.limit_bytes = 1 <<
//   30}); SessionOptions options{.target = (*daemon)->target()};
//
// It is spanpoold as built beside this program: a suite that uses it lists //server:spanpoold as
// data. One pool, `default`. Not thread-safe, but for target() and pid().

#ifndef SPANPOOL_BENCH_POOL_DAEMON_H_
#define SPANPOOL_BENCH_POOL_DAEMON_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "spanpool/v1/admin.grpc.pb.h"
#include "tests/support/process.h"

namespace spanpool::bench {

class PoolDaemon {
 public:
  struct Options {
    uint64_t limit_bytes = 0;                    // 0 = the daemon's default
    std::optional<uint64_t> reserve_bytes = {};  // none = the daemon's default
    std::string arena_kind = {};                 // "HUGETLB"; empty = the daemon's default
    std::vector<std::string> flags = {};         // more of spanpoold's own
  };

  // Returns once the daemon serves.
  //   ABORTED  it does not; the message is the last line it wrote to standard error
  static absl::StatusOr<std::unique_ptr<PoolDaemon>> Start(const Options& options);
  // Ends the daemon at once, its keeper too and nothing else, and removes its run directory.
  ~PoolDaemon();
  PoolDaemon(const PoolDaemon&) = delete;
  PoolDaemon& operator=(const PoolDaemon&) = delete;

  // What SessionOptions::target takes.
  const std::string& target() const { return run_dir_; }
  // The process that serves.
  pid_t pid() const { return pid_; }

  // What the daemon has logged so far.
  std::string Log() const { return process_->standard_error(); }

  // Admin.GetStatus of the pool. gRPC's status, if the daemon does not answer within a minute.
  absl::StatusOr<v1::PoolStatus> Status();

 private:
  absl::StatusOr<v1::GetStatusResponse> GetStatus();
  PoolDaemon(std::string run_dir, std::unique_ptr<testing::Process> process);

  const std::string run_dir_;
  const std::unique_ptr<testing::Process> process_;
  const std::unique_ptr<v1::Admin::Stub> admin_;
  pid_t pid_ = -1;
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_POOL_DAEMON_H_

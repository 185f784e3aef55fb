// The names of a pool, asked of the daemon: NameSource over gRPC.
//
// Calls go over the connection that also carries the session's exchanges. Watches have one of their
// own: a thread that waits on it for long must not be the one that reads everybody's answers.
//
// While the daemon is away both wait for it. What a broken connection left unanswered is asked
// again: each call may be. A watch begins anew, which its receiver sees as a reset.
//
// Thread-safe. Lock rank: kLink, released while waiting for the daemon.

#ifndef SPANPOOL_CLIENT_DAEMON_NAMES_H_
#define SPANPOOL_CLIENT_DAEMON_NAMES_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"
#include "client/kept_connection.h"
#include "client/name_source.h"
#include "client/reconnection.h"
#include "client/rpc_connection.h"

namespace spanpool::internal {

class DaemonNames final : public NameSource {
 public:
  // At most so many watches of a session at a time: what the daemon lets one connection have.
  static constexpr int kMaxWatches = 16;

  // `connection` returns the connection to use for calls; null if it is not yet time for a new one,
  // as `reconnection` says, which outlives this object. `token` is the session's.
  DaemonNames(std::string grpc_path, std::string token,
              std::function<std::shared_ptr<RpcConnection>()> connection,
              Reconnection* reconnection);
  DaemonNames(const DaemonNames&) = delete;
  DaemonNames& operator=(const DaemonNames&) = delete;

  absl::Status Publish(const std::string& name, const Handle& handle,
                       const PublishOptions& options) override;
  absl::StatusOr<NamedBlock> Lookup(const std::string& name) override;
  absl::Status Unpublish(const std::string& name) override;
  absl::StatusOr<std::vector<NamedBlock>> List(const std::string& prefix) override;
  std::unique_ptr<NameStream> Watch(const NameFilter& filter) override ABSL_LOCKS_EXCLUDED(mu_);

  // Called in a forked child, where this object is not used any more: closes what it has open.
  // Async-signal-safe.
  void AbandonInChild();

 private:
  class Stream;

  // `*repeated` is set if an earlier try may have been carried out.
  absl::Status Call(const char* method, const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite* response, bool* repeated = nullptr);
  // The connection of watches; null if it is not yet time for a new one.
  std::shared_ptr<RpcConnection> Watching() ABSL_LOCKS_EXCLUDED(mu_);

  // Constant.
  const RpcConnection::Metadata metadata_;
  const std::function<std::shared_ptr<RpcConnection>()> connection_;
  Reconnection* const reconnection_;

  RankedMutex mu_{LockRank::kLink};
  KeptConnection watching_ ABSL_GUARDED_BY(mu_);
  std::atomic<int> watches_{0};
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_DAEMON_NAMES_H_

// The daemon as a whole: puts the parts together, in order, and takes them apart in the other.
//
// Start returns once it serves; Stop drains:
//   health says NOT_SERVING ─▶ socket names go, listeners close ─▶ each stream ends with
//   UNAVAILABLE after its answer, other calls finish, within the grace period ─▶ all ends
// Clients keep what they have mapped; their lifelines end.
//
// A daemon that has an FdStore starts with what its predecessor kept there (fd_store.h): each part
// takes its own by their names, and what nobody takes is closed and forgotten.

#ifndef SPANPOOL_SERVER_DAEMON_H_
#define SPANPOOL_SERVER_DAEMON_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "server/admin_service.h"
#include "server/attach_server.h"
#include "server/config.h"
#include "server/event_loop.h"
#include "server/fd_store.h"
#include "server/grpc_listener.h"
#include "server/health_service.h"
#include "server/housekeeper.h"
#include "server/memory_limit.h"
#include "server/pool.h"
#include "server/pool_service.h"
#include "server/reaper.h"
#include "server/recaller.h"
#include "server/run_directory.h"
#include "server/session_table.h"

namespace spanpool {

class Daemon {
 public:
  // Serves `config`, whose gaps are filled in.
  // `store` outlives the daemon, or is null: nothing outlives it. `kept` is what a predecessor left
  // in that store.
  //   ALREADY_EXISTS  another daemon serves the run directory
  //   DATA_LOSS       it will not serve what its predecessor left
  //   and whatever is wrong with the run directory, or short
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(DaemonConfig config,
                                                       FdStore* store = nullptr, KeptFds kept = {});
  ~Daemon();  // stops
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Drains and stops. The second call does nothing. Not thread-safe.
  void Stop();

  const std::string& run_directory() const { return run_directory_.path(); }
  const std::vector<std::unique_ptr<Pool>>& pools() const { return pools_; }

 private:
  Daemon(DaemonConfig config, FdStore* store, RunDirectory run_directory);

  // Takes what it needs out of `kept`.
  absl::Status Serve(KeptFds* kept);
  absl::Status StartGrpc(const std::vector<Pool*>& pools);
  GrpcListener::Role RoleOf(const PeerIdentity& peer) const;

  const DaemonConfig config_;
  FdStore* const store_;  // may be null
  RunDirectory run_directory_;
  const MemoryLimit memory_;
  SessionTable sessions_;
  std::vector<std::unique_ptr<Pool>> pools_;
  std::unique_ptr<Housekeeper> housekeeper_;
  std::unique_ptr<Reaper> reaper_;
  Recaller recaller_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<AttachServer> attach_server_;
  HealthService health_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<PoolService> pool_service_;
  std::unique_ptr<grpc::Server> server_;  // of the three
  std::unique_ptr<GrpcListener> grpc_listener_;
  bool stopped_ = false;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_DAEMON_H_

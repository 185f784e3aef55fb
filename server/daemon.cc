#include "server/daemon.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "allocator/heap.h"
#include "allocator/memfd_arena_source.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/support/server_interceptor.h"
#include "proto/layout/run_dir.h"
#include "server/access.h"
#include "server/held_call_limit.h"
#include "server/huge_pages.h"
#include "server/log.h"
#include "server/session.h"

namespace spanpool {
namespace {

// Threads for Exchange messages: some may be waiting for the kernel to back memory while another
// serves whoever needs none.
constexpr int kExchangeThreads = 4;
// Memory that gRPC may use for what is under way.
constexpr size_t kGrpcQuotaBytes = 256 << 20;
// An Exchange stream and a few short calls are all that a client has on a connection.
constexpr int kMaxStreamsPerConnection = 16;
constexpr int kIdleConnectionMs = 600'000;
// The one method of gRPC's own that takes a thread for as long as its caller likes.
constexpr char kReflectionMethod[] =
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
constexpr size_t kMaxReflectionCalls = 2;
// How long the last answers may take on their way out.
constexpr absl::Duration kCloseGrace = absl::Milliseconds(50);
// One for exchanges and calls, one for watches.
constexpr size_t kConnectionsPerSession = 2;
// Descriptors of one session: lifeline, pidfd, segment, and twice each of its gRPC connections.
constexpr uint64_t kDescriptorsPerSession = 3 + 2 * kConnectionsPerSession;

// What a pool is called to the health service, which knows it beside "", the daemon.
std::string HealthServiceOf(const std::string& pool) { return absl::StrCat("pool/", pool); }

// Makes room for as many descriptors as the sessions and arenas need, as far as this process may.
void RaiseDescriptorLimit(const DaemonConfig& config) {
  uint64_t needed = 512 + config.max_sessions * kDescriptorsPerSession;
  for (const PoolConfig& pool : config.pools) {
    needed += 2 * uint64_t{Heap::MaxArenas(pool.limit_bytes)};
  }
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed) return;
  limit.rlim_cur = std::min<rlim_t>(std::max<rlim_t>(needed, limit.rlim_cur), limit.rlim_max);
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < needed) {
    Log().warn(
        "at most {} descriptors may be open, and {} sessions and the pools' arenas could "
        "need {}: raise `ulimit -n` or lower limits.sessions",
        limit.rlim_cur, config.max_sessions, needed);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(DaemonConfig config, FdStore* store,
                                                      KeptFds kept) {
  const absl::StatusOr<uint64_t> available = MemoryLimit().AvailableBytes();
  if (!available.ok()) return available.status();
  config = WithDefaults(std::move(config), *available);
  if (config.run_dir.empty()) config.run_dir = layout::DefaultRunDirectory();
  if (config.run_dir.empty()) {
    return absl::FailedPreconditionError(
        "no run directory: XDG_RUNTIME_DIR is not set; name a folder with --run_dir or "
        "SPANPOOL_RUN_DIR");
  }
  const MemoryLimit::HugePages huge_pages = MemoryLimit().AvailableHugePages();
  if (absl::Status status = CheckHugePages(config.pools, huge_pages); !status.ok()) return status;
  for (const PoolConfig& pool : config.pools) {
    if (pool.arena_kind == MemfdArenaSource::Kind::kPages && pool.limit_bytes > *available) {
      Log().warn(
          "pool {}: its limit of {} MiB is more than the {} MiB that are available; "
          "allocations will be refused before memory runs out",
          pool.name, pool.limit_bytes >> 20, *available >> 20);
    }
  }
  absl::StatusOr<RunDirectory> run_directory = RunDirectory::Open(config.run_dir, store, &kept);
  if (!run_directory.ok()) return run_directory.status();
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(config), store, *std::move(run_directory)));
  if (absl::Status status = daemon->Serve(&kept); !status.ok()) {
    daemon->run_directory_.LeaveInherited();
    return status;
  }
  // Kept, and never on record: a predecessor died before it used them.
  for (const auto& [name, fd] : kept) {
    Log().info("{}: kept by a predecessor that never used it; closed", name);
    if (store != nullptr) store->Forget(name);
  }
  return daemon;
}

Daemon::Daemon(DaemonConfig config, FdStore* store, RunDirectory run_directory)
    : config_(std::move(config)),
      store_(store),
      run_directory_(std::move(run_directory)),
      sessions_(config_.max_sessions, geteuid()),
      recaller_(&sessions_) {}

absl::Status Daemon::Serve(KeptFds* kept) {
  RaiseDescriptorLimit(config_);
  std::vector<Pool*> pools;
  for (const PoolConfig& config : config_.pools) {
    pools_.push_back(std::make_unique<Pool>(config, &memory_, &sessions_));
    pools.push_back(pools_.back().get());
    pools_.back()->SetShortageCallback([this](const Session& session, uint64_t bytes) {
      recaller_.AskOthers(session, bytes, absl::Now());
    });
    pools_.back()->SetEvictedCallback([this](const Session& session) {
      if (attach_server_ != nullptr) attach_server_->CloseConnection(session.id());
    });
  }
  for (Pool* pool : pools) {
    if (pool->config().arena_kind != MemfdArenaSource::Kind::kHugePages) continue;
    // Now rather than by the housekeeper: who else wants huge pages cannot take these once the
    // daemon serves.
    if (absl::Status status = pool->Replenish(); !status.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("pool ", pool->name(), ": ", status.message()));
    }
  }
  housekeeper_ = std::make_unique<Housekeeper>(pools);
  reaper_ = std::make_unique<Reaper>(pools);
  absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
  if (!loop.ok()) return loop.status();
  loop_ = *std::move(loop);

  auto attach_socket = run_directory_.Listen(layout::kAttachSocketName, SOCK_SEQPACKET, kept);
  if (!attach_socket.ok()) return attach_socket.status();
  attach_server_ = std::make_unique<AttachServer>(*std::move(attach_socket), pools, &sessions_,
                                                  reaper_.get(), &recaller_, loop_.get());
  if (absl::Status status = attach_server_->Start(); !status.ok()) return status;

  if (absl::Status status = StartGrpc(pools); !status.ok()) return status;
  auto grpc_socket = run_directory_.Listen(layout::kGrpcSocketName, SOCK_STREAM, kept);
  if (!grpc_socket.ok()) return grpc_socket.status();
  grpc_listener_ = std::make_unique<GrpcListener>(
      *std::move(grpc_socket),
      GrpcListener::Options{.max_connections = config_.max_sessions * kConnectionsPerSession + 64,
                            .role = [this](const PeerIdentity& peer) { return RoleOf(peer); }},
      server_.get(), loop_.get());
  if (absl::Status status = grpc_listener_->Start(); !status.ok()) return status;
  loop_->Start();
  for (const std::unique_ptr<Pool>& pool : pools_) {
    const bool huge = pool->config().arena_kind == MemfdArenaSource::Kind::kHugePages;
    Log().info("pool {}: limit {} MiB, {} MiB kept ready, {}incarnation {:08x}", pool->name(),
               pool->config().limit_bytes >> 20, pool->config().reserve_bytes.value_or(0) >> 20,
               huge ? "in huge pages, " : "", pool->incarnation());
  }
  Log().info("serving {}", run_directory_.path());
  return absl::OkStatus();
}

// One server for everybody, whose only threads that poll connections are those of PoolService: gRPC
// gives an event to whichever thread polls at the moment, and if that is not the one that waits for
// it the event travels on to that one. Synchronous services beside a completion queue do not poll;
// services of the callback API, gRPC's own health service among them, would.
absl::Status Daemon::StartGrpc(const std::vector<Pool*>& pools) {
  admin_service_ = std::make_unique<AdminService>(pools, &recaller_, store_, absl::Now());
  pool_service_ = std::make_unique<PoolService>(&sessions_, pools);
  health_service_.SetServing("");
  for (const Pool* pool : pools) health_service_.SetServing(HealthServiceOf(pool->name()));
  grpc::EnableDefaultHealthCheckService(false);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ResourceQuota quota("spanpoold");
  quota.Resize(kGrpcQuotaBytes);
  quota.SetMaxThreads(static_cast<int>(config_.max_threads));
  grpc::ServerBuilder builder;
  builder.SetResourceQuota(quota);
  builder.SetMaxReceiveMessageSize(static_cast<int>(config_.max_message_bytes));
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleConnectionMs);
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<HeldCallLimit>(kReflectionMethod, kMaxReflectionCalls));
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  builder.RegisterService(&health_service_);
  builder.RegisterService(admin_service_.get());
  pool_service_->Register(&builder);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) return absl::InternalError("gRPC server could not be started");
  pool_service_->Start(kExchangeThreads);
  return absl::OkStatus();
}

GrpcListener::Role Daemon::RoleOf(const PeerIdentity& peer) const {
  if (peer.uid == 0 || peer.uid == geteuid()) return GrpcListener::Role::kAdmin;
  bool admin_of_all = true;
  bool member = false;
  for (const std::unique_ptr<Pool>& pool : pools_) {
    const AccessLevel access = AccessOf(peer, geteuid(), pool->config().allow);
    admin_of_all = admin_of_all && access == AccessLevel::kAdmin;
    member = member || access != AccessLevel::kNone;
  }
  if (admin_of_all) return GrpcListener::Role::kAdmin;
  return member ? GrpcListener::Role::kMember : GrpcListener::Role::kStranger;
}

Daemon::~Daemon() { Stop(); }

void Daemon::Stop() {
  if (std::exchange(stopped_, true)) return;
  health_service_.Stop();
  run_directory_.RemoveSockets();
  if (loop_ != nullptr) {
    absl::Notification stopped_listening;
    loop_->Post([&] {
      if (attach_server_ != nullptr) attach_server_->StopListening();
      if (grpc_listener_ != nullptr) grpc_listener_->StopListening();
      stopped_listening.Notify();
    });
    // A server that is shutting down must not be given another connection.
    stopped_listening.WaitForNotification();
  }
  recaller_.Stop();
  for (const std::unique_ptr<Pool>& pool : pools_) pool->Stop();
  const absl::Time deadline = absl::Now() + config_.grace;
  if (server_ != nullptr) {
    pool_service_->Drain();
    pool_service_->AwaitDrained(deadline);
    admin_service_->AwaitIdle(deadline);
    // gRPC waits for every client to acknowledge that the connection ends, and one that is idle
    // does not listen. What has to be said has been handed to the kernel by now, or nearly so.
    server_->Shutdown(absl::ToChronoTime(std::min(deadline, absl::Now() + kCloseGrace)));
    pool_service_->Shutdown();
  }
  if (loop_ != nullptr) loop_->Stop();
  // It may be closing a liar's connection.
  reaper_.reset();
  grpc_listener_.reset();
  attach_server_.reset();
  loop_.reset();
  housekeeper_.reset();
  Log().info("stopped");
}

}  // namespace spanpool

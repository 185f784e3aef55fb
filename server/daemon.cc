#include "server/daemon.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
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
#include "server/urgency.h"

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
// Descriptors of one session: lifeline, pidfd, segment, control segment until it was sent, and
// twice each of its gRPC connections.
constexpr uint64_t kDescriptorsPerSession = 4 + 2 * kConnectionsPerSession;

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

// Of what a pool's state depends on, as it was configured: a later worker is to find it the same.
// FNV-1a.
uint64_t HashOf(const PoolConfig& pool, const DaemonConfig& config) {
  const std::string text =
      absl::StrCat(pool.name, " ", pool.limit_bytes, " ", static_cast<int>(pool.arena_kind), " ",
                   config.max_sessions, " ", config.max_names);
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

// Says what of a pool is given up.
void LogDiscarded(const std::string& pool, layout::UniqueFd fd) {
  absl::StatusOr<PoolState::Inventory> lost = PoolState::Look(std::move(fd));
  if (!lost.ok()) {
    Log().warn("pool {}: discarded; what it held cannot be told: {}", pool,
               std::string(lost.status().message()));
    return;
  }
  Log().warn(
      "pool {}: discarded, incarnation {:08x}: {} sessions with {} MiB on loan, {} MiB in shared "
      "blocks, {} names",
      pool, lost->incarnation, lost->sessions, lost->on_loan_bytes >> 20, lost->listed_bytes >> 20,
      lost->names);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(DaemonConfig config, FdStore* store,
                                                      KeptFds kept, bool discard_state) {
  if (config.pools.empty()) config.pools.emplace_back();
  std::vector<KeptPool> kept_pools(config.pools.size());
  for (size_t i = 0; i < config.pools.size(); ++i) {
    kept_pools[i].config_hash = HashOf(config.pools[i], config);
  }
  absl::flat_hash_map<std::string, layout::UniqueFd> states;
  for (auto it = kept.begin(); it != kept.end();) {
    absl::string_view name = it->first;
    if (!absl::ConsumePrefix(&name, KeptStateName(""))) {
      ++it;
      continue;
    }
    states.emplace(name, std::move(it->second));
    kept.erase(it++);
  }
  if (discard_state) {
    for (auto& [pool, fd] : states) {
      LogDiscarded(pool, std::move(fd));
      if (store != nullptr) store->Forget(KeptStateName(pool));
    }
    states.clear();
  }
  for (size_t i = 0; i < config.pools.size(); ++i) {
    PoolConfig& pool = config.pools[i];
    const auto found = states.find(pool.name);
    if (found == states.end()) continue;
    auto state =
        PoolState::Open(std::move(found->second), pool.name, kept_pools[i].config_hash, store);
    if (!state.ok()) return state.status();
    states.erase(found);
    // What is available by now has nothing to do with what the pool may lend.
    pool.limit_bytes = (*state)->limit_bytes();
    kept_pools[i].state = *std::move(state);
  }
  if (!states.empty()) {
    return absl::DataLossError(absl::StrCat(
        "pool ", states.begin()->first,
        " was kept, and the configuration does not have it: add it again, or give it and all that "
        "is in it up with --discard_state"));
  }
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
  std::vector<PoolConfig> new_pools;  // the others have what they have
  for (size_t i = 0; i < config.pools.size(); ++i) {
    if (kept_pools[i].state == nullptr) new_pools.push_back(config.pools[i]);
  }
  if (absl::Status status = CheckHugePages(new_pools, huge_pages); !status.ok()) return status;
  for (const PoolConfig& pool : new_pools) {
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
  if (absl::Status status = daemon->Serve(std::move(kept_pools), &kept); !status.ok()) {
    daemon->run_directory_.LeaveInherited();
    // Nobody has seen these: whoever tries next need not know of them.
    for (const PoolConfig& pool : new_pools) {
      if (store != nullptr) store->Forget(KeptStateName(pool.name));
    }
    return status;
  }
  return daemon;
}

Daemon::Daemon(DaemonConfig config, FdStore* store, RunDirectory run_directory)
    : config_(std::move(config)),
      store_(store),
      run_directory_(std::move(run_directory)),
      sessions_(config_.max_sessions, geteuid()),
      recaller_(&sessions_) {}

absl::StatusOr<std::unique_ptr<Pool>> Daemon::MakePool(const PoolConfig& config, KeptPool kept_pool,
                                                       KeptFds* kept) {
  if (store_ == nullptr) return std::make_unique<Pool>(config, &memory_, &sessions_);
  if (kept_pool.state == nullptr) {
    auto pool = Pool::Create(config, &memory_, &sessions_, store_, kept_pool.config_hash);
    if (pool.ok()) (*pool)->state()->SetWorker(worker_);
    return pool;
  }
  const absl::Time begun = absl::Now();
  const uint32_t last = kept_pool.state->worker();
  const bool stopped = kept_pool.state->TakeStopped();
  kept_pool.state->SetWorker(worker_);
  auto pool = Pool::Restore(config, &memory_, &sessions_, std::move(kept_pool.state), kept);
  if (!pool.ok()) return pool;
  const PoolStats stats = (*pool)->stats();
  Log().info(
      "pool {}: taken over from worker {}, which {}: {} sessions with {} MiB on loan, {} MiB in "
      "shared blocks, {} names; it took {} ms",
      config.name, last, stopped ? "stopped" : "was killed or crashed", stats.sessions,
      stats.heap.on_loan_bytes >> 20, stats.heap.in_lists_bytes >> 20, stats.names,
      absl::ToInt64Milliseconds(absl::Now() - begun));
  return pool;
}

absl::Status Daemon::Serve(std::vector<KeptPool> kept_pools, KeptFds* kept) {
  RaiseDescriptorLimit(config_);
  for (const KeptPool& each : kept_pools) {
    if (each.state != nullptr) worker_ = std::max(worker_, each.state->worker() + 1);
  }
  std::vector<Pool*> pools;
  for (size_t i = 0; i < config_.pools.size(); ++i) {
    auto pool = MakePool(config_.pools[i], std::move(kept_pools[i]), kept);
    if (!pool.ok()) return pool.status();
    pools_.push_back(*std::move(pool));
    pools.push_back(pools_.back().get());
    pools_.back()->SetShortageCallback([this](const Session& session, uint64_t bytes) {
      recaller_.AskOthers(session, bytes, absl::Now());
    });
    pools_.back()->SetEvictedCallback([this](const Session& session) {
      if (attach_server_ != nullptr) attach_server_->CloseConnection(session.id());
    });
  }
  EndUrgency();  // before there are other threads
  auto attach_socket = run_directory_.Listen(layout::kAttachSocketName, SOCK_SEQPACKET, kept);
  if (!attach_socket.ok()) return attach_socket.status();
  auto grpc_socket = run_directory_.Listen(layout::kGrpcSocketName, SOCK_STREAM, kept);
  if (!grpc_socket.ok()) return grpc_socket.status();
  // What is left is on nobody's record: a predecessor died before it used it. Forgotten before
  // anybody keeps something new, which may have the same name.
  for (const auto& [name, fd] : *kept) {
    Log().info("{}: kept by a predecessor that never used it; closed", name);
    if (store_ != nullptr) store_->Forget(name);
  }
  kept->clear();

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
  for (Pool* pool : pools) pool->NoteListedSpans();
  reaper_ = std::make_unique<Reaper>(pools);
  absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
  if (!loop.ok()) return loop.status();
  loop_ = *std::move(loop);

  attach_server_ = std::make_unique<AttachServer>(*std::move(attach_socket), pools, &sessions_,
                                                  reaper_.get(), &recaller_, loop_.get());
  // A number of a recall says which worker's it is.
  recaller_.StartAt(uint64_t{worker_} << 32 | 1);
  for (Pool* pool : pools) attach_server_->Resume(*pool);
  attach_server_->SendResumed();
  if (absl::Status status = attach_server_->Start(); !status.ok()) return status;

  if (absl::Status status = StartGrpc(pools); !status.ok()) return status;
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

void Daemon::MakeRoom() {
  for (const std::unique_ptr<Pool>& pool : pools_) {
    if (pool->state() != nullptr) pool->state()->SetStopped();
  }
}

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
  MakeRoom();
  Log().info("stopped");
}

}  // namespace spanpool

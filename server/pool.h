// A pool: one heap, its arenas, and the sessions that borrow from it. The trust domain.
//
// Everything the daemon does for a client ends up here, on plain structs: the gRPC service and the
// attach socket only carry them. So this class can be driven without either, and is, by its test.
//
//   Attach ─▶ Exchange … ─▶ Detach                        a client that leaves in order
//                      └──▶ LifelineEnded / Evict          quarantined: its process still lives
//                      └──▶ ProcessDied ─▶ ReapSome …      taken back, piece by piece
//
// name_table.h has the names of blocks, session_reaper.h says how a dead session is reaped,
// recounter.h what is done about references that a death left unclear, worker_references.h what the
// daemon holds itself.
//
// With an FdStore a pool outlives the worker: what happens is on record in its heap state
// (pool_state.h) before anybody learns of it, and Restore makes the pool anew from that and from
// the descriptors that were kept. Whatever the dead worker was in the middle of either was done, or
// can be done again: a grant without a record is free, a return is on loan until it is on record, a
// dead session's slots say how far the reaper came.
//
// Thread-safe. ReapSome and SettleReferences are for one thread, the reaper's. No lock is held
// across calls into the heap.

#ifndef SPANPOOL_SERVER_POOL_H_
#define SPANPOOL_SERVER_POOL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "allocator/heap.h"
#include "allocator/lock_rank.h"
#include "allocator/span.h"
#include "allocator/units.h"
#include "proto/layout/attach.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/packet.h"
#include "server/access.h"
#include "server/block_states.h"
#include "server/config.h"
#include "server/fd_store.h"
#include "server/log.h"
#include "server/memory_limit.h"
#include "server/name_table.h"
#include "server/pool_arenas.h"
#include "server/pool_state.h"
#include "server/quarantine.h"
#include "server/recount_journal.h"
#include "server/recounter.h"
#include "server/session.h"
#include "server/session_reaper.h"
#include "server/session_table.h"
#include "server/worker_references.h"

namespace spanpool {

// One Exchange message each way; spanpool/v1/pool.proto says what the fields mean.
struct ExchangeWant {
  uint32_t span_class = 0;
  uint32_t spans = 0;
  uint64_t pages = 0;
  uint64_t alignment_pages = 0;
};
struct ExchangeBatch {
  std::vector<uint64_t> returns;  // sequence numbers
  std::vector<ExchangeWant> wants;
};
struct ExchangeGrant {
  uint64_t sequence = 0;
  PageId first_page;
  PageCount pages;
  SpanClass span_class;
  std::vector<uint64_t> in_use;  // empty = no block is
  uint32_t want = 0;
};
struct ExchangeShortfall {
  uint32_t want = 0;
  uint32_t spans_missing = 0;
  absl::Status status;
};
struct ExchangeResult {
  std::vector<ExchangeGrant> grants;
  std::vector<ExchangeShortfall> shortfalls;
};

// A part of what a client says it has on loan, as spanpool/v1/pool.proto has it.
struct InventoryPart {
  std::vector<uint64_t> sequence_deltas;
  bool more = false;
};
// How much of an inventory has come.
struct InventoryProgress {
  uint64_t last = 0;  // sequence number
  uint64_t count = 0;
};

struct PoolStats {
  HeapStats heap;
  uint64_t table_bytes = 0;
  uint64_t sessions = 0;  // attached or detached
  uint64_t sessions_attached_total = 0;
  uint64_t sessions_reaped_total = 0;
  uint64_t exchange_messages_total = 0;
  uint64_t grants_total = 0;
  uint64_t returns_total = 0;
  uint64_t quarantined_bytes = 0;
  uint64_t suspect_blocks = 0;  // pages with a word that made no sense: in quarantine
  uint64_t recounts_total = 0;
  uint64_t names = 0;
  uint64_t adopted_references = 0;  // under way, and kept by the daemon for a dead sender
  uint64_t refusals_total = 0;
  uint64_t lies_total = 0;
  uint64_t evictions_total = 0;
};

class Pool {
 public:
  static constexpr size_t kMaxReturns = 4096;
  static constexpr size_t kMaxWants = 256;
  static constexpr size_t kMaxInventory = 16384;  // numbers in one part
  static constexpr uint32_t kMaxSpansPerWant = 1024;
  // Grants in one result; further wants get a shortfall that says to ask again.
  static constexpr size_t kMaxGrants = 4096;
  static constexpr uint64_t kMaxAlignmentPages = kPagesPerArena;

  // `config` has its defaults filled in. `memory` may be null; it and `sessions` outlive the pool.
  // The pool ends with this object.
  Pool(const PoolConfig& config, const MemoryLimit* memory, SessionTable* sessions);

  // A pool that Restore can make again; `store` outlives it. `config_hash` tells apart
  // configurations that it cannot go on with.
  //   RESOURCE_EXHAUSTED  no memory or descriptor, or the store is full
  static absl::StatusOr<std::unique_ptr<Pool>> Create(const PoolConfig& config,
                                                      const MemoryLimit* memory,
                                                      SessionTable* sessions, FdStore* store,
                                                      uint64_t config_hash);

  // The pool of a worker that is dead, however it ended. Takes its descriptors out of `kept`.
  // Sessions are in the table again: TakeLifelines has their connections, pidfds are to be watched,
  // and those that are dead to be reaped. `state` is what PoolState::Open returned; of `config` its
  // limit is what counts.
  //   DATA_LOSS           what was kept does not add up; the message says what
  //   RESOURCE_EXHAUSTED  no memory, addresses or descriptors
  static absl::StatusOr<std::unique_ptr<Pool>> Restore(const PoolConfig& config,
                                                       const MemoryLimit* memory,
                                                       SessionTable* sessions,
                                                       std::unique_ptr<PoolState> state,
                                                       KeptFds* kept);
  struct Lifeline {
    std::shared_ptr<Session> session;
    layout::UniqueFd connection;
  };
  // Of a restored pool: the connections of sessions that were attached. Once.
  std::vector<Lifeline> TakeLifelines() { return std::move(lifelines_); }
  // Null without an FdStore.
  PoolState* state() { return state_.get(); }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  enum class Work { kReplenish, kSweep };
  // Called, on any thread and under no lock, when there may be work for Replenish or Sweep. Set
  // before the first session.
  void SetWorkCallback(std::function<void(Work)> work) { work_ = std::move(work); }

  // Called, on any thread and under no lock, when `session` was refused for want of `bytes`: what
  // other sessions do not use may be all that is missing. Set before the first session.
  void SetShortageCallback(std::function<void(const Session& session, uint64_t bytes)> shortage) {
    shortage_ = std::move(shortage);
  }

  // Called, on any thread and under no lock, when `session` was evicted: its connection is to be
  // closed. Set before the first session.
  void SetEvictedCallback(std::function<void(const Session& session)> evicted) {
    evicted_ = std::move(evicted);
  }

  const std::string& name() const { return config_.name; }
  const PoolConfig& config() const { return config_; }
  uint32_t incarnation() const { return incarnation_; }
  // Every arena lies below this offset: what a client has to reserve addresses for.
  uint64_t address_bytes() const { return uint64_t{max_arenas_} * kArenaBytes; }
  PoolArenas& arenas() { return arenas_; }
  const Heap& heap() const { return heap_; }

  // Opens a session for `peer`, whose rights the caller has checked, on the connection `lifeline`,
  // which stays the caller's. With an FdStore this may wait for it.
  //   RESOURCE_EXHAUSTED  no memory or descriptor, or the daemon's limit on sessions is reached
  absl::StatusOr<std::shared_ptr<Session>> Attach(const PeerIdentity& peer,
                                                  layout::AccessMode access, layout::UniqueFd pidfd,
                                                  int lifeline = -1);

  // Carries out the returns, then the wants. Each grant is on record before this returns.
  //   UNAUTHENTICATED   the session is not attached
  //   INVALID_ARGUMENT  the batch breaks a rule that an honest client keeps; evict the session
  absl::StatusOr<ExchangeResult> Exchange(Session& session, const ExchangeBatch& batch);

  // Takes back what is on record for the session and missing in its inventory, as far as this part
  // reaches. Nothing else is carried out for the session until its last part. Returns the numbers
  // that are not on record. Errors as Exchange.
  absl::StatusOr<std::vector<uint64_t>> Reconcile(Session& session, const InventoryPart& part,
                                                  InventoryProgress* progress);

  // Names of blocks (spanpool/v1/pool.proto, "Names", which also has the errors). For each that
  // stands the pool holds a reference of its own: taken before the name is stored, dropped after it
  // is removed, so that a name always opens (rule 13 of tests/model/README.md).
  struct PublishRequest {
    std::string name;
    layout::HandleBits handle;
    bool outlive_session = false;
    bool replace = false;
  };
  absl::StatusOr<uint64_t> Publish(Session& session, const PublishRequest& request);
  absl::StatusOr<PublishedBlock> Lookup(const std::string& name) const;
  absl::Status Unpublish(const std::string& name);
  NameTable& names() { return names_; }

  // Ends an attached session whose client says that it is done. If handles that it sent are under
  // way, the session is dead then, and to be reaped.
  //   FAILED_PRECONDITION  spans are on loan, or references are held; it stays attached
  absl::Status Detach(Session& session);

  // The connection ended: detached, quarantined. Nothing if it is detached or ended already.
  void LifelineEnded(Session& session);
  // The same by our own decision: it broke a rule, or lied in its segment.
  void Evict(Session& session, const absl::Status& why);

  // The kernel says that the process is dead. False if the session had ended.
  bool ProcessDied(Session& session);
  // Takes back a part of what a dead session held, about `budget` slots or spans. kDone: the
  // session has ended.
  ReapProgress ReapSome(Session& session, uint32_t budget);
  // Gives up what the daemon kept for dead senders, once it was taken or its grace is over, and
  // finishes what waited for a recount. Returns when to call again.
  absl::Time SettleReferences(absl::Time now);

  // The references the daemon holds itself.
  WorkerReferences& worker_references() { return worker_references_; }
  // Every session that is not over.
  std::vector<std::shared_ptr<Session>> Sessions() const { return sessions_->Snapshot(this); }

  // Backs free memory ahead of demand. Slow; for a background thread.
  absl::Status Replenish() { return heap_.Replenish(); }
  // Frees blocks in listed spans that lost their last reference. Returns the pages freed.
  PageCount Sweep();
  // Gives some free memory back to the system if there is too much. Returns how long to sleep
  // before the next call. For one thread.
  absl::Duration Scavenge() { return heap_.Scavenge(); }
  // Sweeps, then gives all free memory above the reserve back to the system at once. Returns how
  // much that was, in bytes. Slow: a quarter of a millisecond for 2 MiB.
  uint64_t Trim();
  // Has them swept if there are any: after a restart nobody has looked at them yet.
  void NoteListedSpans() { NoteWork(0, true); }
  bool HasListedSpans() const { return heap_.stats().spans_in_lists != 0; }
  // Replenish fails from now on.
  void Stop() { arenas_.Stop(); }

  PoolStats stats() const;

 private:
  Pool(const PoolConfig& config, const MemoryLimit* memory, SessionTable* sessions,
       uint32_t incarnation, uint32_t max_arenas, std::unique_ptr<PoolState> state,
       std::unique_ptr<SessionMemory> worker_memory);

  // The parts of Restore, in order.
  absl::Status RestoreArenas(KeptFds* kept);
  // The sessions, by record.
  using SessionsByRecord =
      absl::flat_hash_map<uint32_t, std::pair<std::shared_ptr<Session>, uint64_t>>;
  absl::StatusOr<SessionsByRecord> RestoreSessions(KeptFds* kept);
  absl::Status RestoreSpans(const SessionsByRecord& sessions);
  absl::Status RestoreReferences();
  // Recounts what session 0 was in the middle of. The reaper's.
  void RecountUnclear();
  // Changes with each worker.
  uint64_t epoch() const;
  uint64_t NewSequence();
  // The session is over, or its connection is: what was kept of it is not needed.
  void ForgetSession(const Session& session);
  void ForgetLifeline(const Session& session);

  absl::Status CheckBatch(const ExchangeBatch& batch) const;
  // The sequence numbers of a part.
  absl::StatusOr<std::vector<uint64_t>> CheckInventory(const InventoryPart& part,
                                                       const InventoryProgress& progress) const;
  // Drops references of names that are gone.
  void DropNamed(const std::vector<uint32_t>& slots);
  // Grants one span, sweeping once if the heap has none.
  absl::StatusOr<Span*> GrantOne(const ExchangeWant& want);
  // What is short, who holds most, and what to do.
  absl::Status DescribeShortage(const absl::Status& cause) const;
  void NoteWork(uint64_t granted_bytes, bool returned);
  // Counts it, logs it, and evicts the session if it is attached.
  void NoteLie(Session& session, const char* what);
  void NoteLostTransit(const Session& session, const absl::Status& why);
  // Gives up the span that `granule` is in.
  void GiveUpSpan(GranuleId granule, const char* why);

  // Constant.
  const PoolConfig config_;
  SessionTable* const sessions_;
  const uint32_t incarnation_;
  const uint32_t max_arenas_;
  std::function<void(Work)> work_ = [](Work) {};
  std::function<void(const Session&, uint64_t)> shortage_ = [](const Session&, uint64_t) {};

  std::function<void(const Session&)> evicted_ = [](const Session&) {};

  const std::unique_ptr<PoolState> state_;  // may be null
  const std::unique_ptr<RecountJournal> journal_;
  const std::unique_ptr<SpanJournal> span_journal_;  // null without state_
  PoolArenas arenas_;
  Quarantine quarantine_;
  TableBlockStates block_states_;
  Heap heap_;
  WorkerReferences worker_references_;
  NameTable names_;
  Recounter recounter_;
  SessionReaper session_reaper_;

  std::vector<Lifeline> lifelines_;
  std::atomic<uint64_t> next_sequence_{1};  // without state_
  std::atomic<uint64_t> granted_since_work_{0};

  // When a sweep for a failing grant last helped nobody, in nanoseconds: those that fail within a
  // moment of it fail at once, so that a client that keeps asking costs little.
  std::atomic<int64_t> futile_sweep_nanos_{0};

  // Counters, for the operator only.
  std::atomic<uint64_t> sessions_attached_total_{0};
  std::atomic<uint64_t> sessions_reaped_total_{0};
  std::atomic<uint64_t> exchange_messages_total_{0};
  std::atomic<uint64_t> grants_total_{0};
  std::atomic<uint64_t> returns_total_{0};
  std::atomic<uint64_t> refusals_total_{0};
  std::atomic<uint64_t> lies_total_{0};
  std::atomic<uint64_t> evictions_total_{0};
  LogLimit lie_log_{20, absl::Seconds(1)};
  LogLimit lost_log_{5, absl::Seconds(10)};
  LogLimit inventory_log_{20, absl::Seconds(1)};
  LogLimit suspect_log_{5, absl::Seconds(10)};
  LogLimit eviction_log_{20, absl::Seconds(1)};
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_POOL_H_

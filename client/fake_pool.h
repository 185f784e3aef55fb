// A pool in the test's own process: a real heap over real memfds, and no daemon.
//
// Each source stands for one attached process. A handle that was sent lives as long as the session
// that sent it: the pool has no grace period. Two sessions on one pool, in one process, see each
// other's blocks as two processes would: through the same memfds, mapped twice.
//
// Thread-safe.

#ifndef SPANPOOL_CLIENT_FAKE_POOL_H_
#define SPANPOOL_CLIENT_FAKE_POOL_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "allocator/heap.h"
#include "allocator/memfd_arena_source.h"
#include "allocator/span.h"
#include "client/session_core.h"
#include "client/span_source.h"
#include "proto/layout/block_table.h"

namespace spanpool::internal {

class FakePool {
 public:
  explicit FakePool(uint64_t limit_bytes, uint32_t incarnation = 7);
  ~FakePool();

  // A session of its own. Ends before the pool does.
  SessionCore* Attach();
  // With a background thread, which makes the number of messages a matter of timing.
  SessionCore* AttachWithHousekeeper();
  SessionCore* AttachReadOnly();

  // The parts that a session is made of, for a stand-in daemon to hand out.
  std::unique_ptr<SpanSource> NewSource();
  PoolFacts NewFacts();
  bool IsOnLoan(GrantSequence sequence);

  // While down, every exchange and arena request fails with UNAVAILABLE.
  void SetDown(bool down) { down_.store(down); }
  // Every session is told that the pool is back.
  void SayResumed();
  // Drops all memory of a grant: its session is told so with its next exchange. The span is never
  // lent again.
  void Forget(GrantSequence sequence);
  // For one session on the pool: takes back what is on loan and not in the ascending `held`.
  // Returns those of `held` that are not on loan.
  std::vector<uint64_t> Reconcile(const std::vector<uint64_t>& held);

  // Asks every session for `bytes` of what it does not use.
  void Recall(uint64_t bytes = UINT64_MAX);
  // Waits until every session that was asked has answered. Sessions without a housekeeper answer
  // when KeepHouse is called.
  void AwaitAnswers();

  HeapStats stats() { return heap_.stats(); }
  // Sweeps what was returned with blocks living on, and says whether everything is free.
  bool Empty();
  // Exchanges answered so far, by all sessions.
  uint64_t exchanges() const { return exchanges_.load(); }
  uint32_t detached() const { return detached_.load(); }

  layout::SharedWord& WordOf(GranuleId granule);
  layout::BlockTable& TableOf(ArenaIndex arena);

 private:
  class Source;
  class States;
  SessionCore* AttachAs(bool writable, bool background);

  const uint64_t limit_bytes_;
  const uint32_t incarnation_;
  std::atomic<bool> down_{false};
  std::atomic<uint64_t> exchanges_{0};
  std::atomic<uint32_t> detached_{0};

  MemfdArenaSource arenas_;
  absl::Mutex mu_;
  std::map<uint32_t, layout::BlockTable*> tables_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Span*> loans_ ABSL_GUARDED_BY(mu_);
  std::vector<GrantSequence> forgotten_ ABSL_GUARDED_BY(mu_);  // and not told
  std::set<Source*> sources_ ABSL_GUARDED_BY(mu_);
  uint64_t last_recall_ ABSL_GUARDED_BY(mu_) = 0;
  int unanswered_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t next_sequence_ ABSL_GUARDED_BY(mu_) = 1;
  const std::unique_ptr<BlockStates> states_;
  Heap heap_;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_FAKE_POOL_H_

// gRPC's Pool service: carries its calls to the pools. The token in the metadata names the session.
//
// The streams are on the completion-queue API. An Exchange has one operation under way at a time:
// read a request, carry it out, write the answer, read the next. So a client that never reads costs
// one answer, and one that floods waits for itself. A session's second Exchange ends its first, and
// reads nothing before the first has carried out what it had read: its inventory is of what is so
// then. A
// Watch writes what is new, one message at a time; what changes while one is under way is told by
// the next.
//
// The short calls about names (name_calls.h) are synchronous: gRPC's threads carry them out.
//
// Threads of the streams: the service's own. One of them leads: it waits for events and does what
// they ask for, and the others sleep. When it is about to wait for the kernel (long_step.h) one of
// them takes over. So as long as nothing takes long a message passes through one thread, and others
// are never woken for it; and nobody waits for another's memory.
//
// A stream's events never overlap, except End and the news of a Watch, which may come from any
// thread.

#ifndef SPANPOOL_SERVER_POOL_SERVICE_H_
#define SPANPOOL_SERVER_POOL_SERVICE_H_

#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "allocator/lock_rank.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/server_builder.h"
#include "server/name_calls.h"
#include "server/pool.h"
#include "server/session_table.h"

namespace spanpool {

class PoolService {
 public:
  // `sessions` and `pools` outlive this object. A session that breaks the rules is evicted.
  PoolService(SessionTable* sessions, std::vector<Pool*> pools);
  // Drain and Shutdown were called, if Start was.
  ~PoolService();
  PoolService(const PoolService&) = delete;
  PoolService& operator=(const PoolService&) = delete;

  // Before the server is built.
  void Register(grpc::ServerBuilder* builder);
  // After it was built. So many messages may be waiting for the kernel at a time, less one.
  void Start(int threads);
  // Ends every stream with UNAVAILABLE, each after the answer it is working on; new ones at once.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);
  // After Drain: waits until every stream has ended, at most until `deadline`.
  void AwaitDrained(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // After the server was shut down: waits for the threads.
  void Shutdown();

 private:
  class Rpcs;
  class Stream;
  class ExchangeStream;
  class WatchStream;

  void Run();
  // Waits until nobody leads, then leads. False: there will be no more events.
  bool Lead() ABSL_LOCKS_EXCLUDED(leader_mu_);
  void StopLeading(bool ended) ABSL_LOCKS_EXCLUDED(leader_mu_);
  // Waits for the next call of T's kind.
  template <typename T>
  void Accept() ABSL_LOCKS_EXCLUDED(mu_);
  // The stream that waited for a call will get none: the server is shutting down.
  void NotAccepted() ABSL_LOCKS_EXCLUDED(mu_);
  // False if new streams are refused.
  bool Add(const std::shared_ptr<Stream>& stream) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const std::shared_ptr<Stream>& stream) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after Register.
  SessionTable* const sessions_;
  NameCalls name_calls_;
  const std::unique_ptr<Rpcs> rpcs_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;

  RankedMutex mu_{LockRank::kSessionTable};
  std::set<std::shared_ptr<Stream>> streams_ ABSL_GUARDED_BY(mu_);  // accepted, not finished
  // Streams that may still start an operation: accepted ones, and those that wait for a call.
  // The queue may be shut down only when there is none.
  int live_ ABSL_GUARDED_BY(mu_) = 0;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;

  RankedMutex leader_mu_{LockRank::kLeaf};
  bool led_ ABSL_GUARDED_BY(leader_mu_) = false;
  bool ended_ ABSL_GUARDED_BY(leader_mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_POOL_SERVICE_H_

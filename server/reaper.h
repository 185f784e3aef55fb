// The thread that takes back what dead processes held, away from those that serve the living.
//
// It goes round the dead sessions and takes a piece of each in turn, so that one that held a
// million references does not make others wait. In between it looks after what the pools hold for
// senders that are gone.

#ifndef SPANPOOL_SERVER_REAPER_H_
#define SPANPOOL_SERVER_REAPER_H_

#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "server/pool.h"
#include "server/session.h"

namespace spanpool {

class Reaper {
 public:
  // `pools` outlive the reaper.
  explicit Reaper(std::vector<Pool*> pools);
  // Finishes the piece in hand and leaves the rest undone: the daemon is going.
  ~Reaper();
  Reaper(const Reaper&) = delete;
  Reaper& operator=(const Reaper&) = delete;

  // The kernel says that the session's process is dead. Does nothing if the session had ended.
  // Thread-safe; returns at once.
  void ProcessDied(std::shared_ptr<Session> session) ABSL_LOCKS_EXCLUDED(mu_);
  // The session is dead, as Pool::Detach left it. Thread-safe; returns at once.
  void Reap(std::shared_ptr<Session> session) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Run();
  // Says what a dead session held, and how long it took to take it back.
  static void LogReaped(const Session& session);
  // Gives up what is due of all pools; sets settle_at_.
  void SettlePools();

  const std::vector<Pool*> pools_;
  absl::Time settle_at_ = absl::InfiniteFuture();  // the thread's own

  RankedMutex mu_{LockRank::kLeaf};
  std::deque<std::shared_ptr<Session>> dead_ ABSL_GUARDED_BY(mu_);
  // Those whose recount was put off.
  std::vector<std::shared_ptr<Session>> put_off_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_REAPER_H_

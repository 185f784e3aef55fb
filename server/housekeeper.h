// The thread that does the heaps' slow work before somebody has to wait for it: backing free pages
// with memory ahead of demand, sweeping listed spans for blocks that lost their last reference, and
// giving back to the system what is not likely to be needed again.
//
// Sweeping goes on at intervals only while a pool has listed spans: often while it finds something,
// ever more seldom while it does not. How often memory is given back is the heap's to say
// (Heap::Scavenge): about once a second while there is nothing to give.

#ifndef SPANPOOL_SERVER_HOUSEKEEPER_H_
#define SPANPOOL_SERVER_HOUSEKEEPER_H_

#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "server/log.h"
#include "server/pool.h"

namespace spanpool {

class Housekeeper {
 public:
  static constexpr absl::Duration kMinSweepInterval = absl::Milliseconds(50);
  static constexpr absl::Duration kMaxSweepInterval = absl::Seconds(1);
  static constexpr absl::Duration kRetryInterval = absl::Seconds(1);

  // `pools` outlive this object. Takes over their work callback.
  explicit Housekeeper(std::vector<Pool*> pools);
  // Waits for the step in hand: call Pool::Stop first.
  ~Housekeeper();
  Housekeeper(const Housekeeper&) = delete;
  Housekeeper& operator=(const Housekeeper&) = delete;

 private:
  struct Chore {
    Pool* pool = nullptr;
    // Set by others, taken by the thread.
    bool replenish = true;
    bool sweep = false;
    bool listed = false;  // a span was listed since the last sweep began
    // The thread's own.
    absl::Time replenish_at = absl::InfiniteFuture();
    absl::Time sweep_at = absl::InfiniteFuture();
    absl::Time scavenge_at = absl::InfinitePast();
    absl::Duration sweep_interval = kMinSweepInterval;
  };

  void Note(size_t chore, Pool::Work work) ABSL_LOCKS_EXCLUDED(mu_);
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Run();

  RankedMutex mu_{LockRank::kLeaf};
  std::vector<Chore> chores_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  LogLimit replenish_log_{1, absl::Seconds(10)};
  std::thread thread_;  // last: it uses the rest
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_HOUSEKEEPER_H_

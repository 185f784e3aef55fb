// When to try to reach the daemon again, and when to give up: for threads that need it while it is
// away.
//
// Whatever ended is made anew at once, and if that fails, too, after 10 ms, 20 ms, … 100 ms: as
// long as somebody waits, and by one thread for all. The daemon's own word that it is back ends the
// pause. Against a socket that its keeper holds open there is none: who connects waits in the queue
// of the worker to come.
//
// Thread-safe. Lock rank: kLeaf.

#ifndef SPANPOOL_CLIENT_RECONNECTION_H_
#define SPANPOOL_CLIENT_RECONNECTION_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"

namespace spanpool::internal {

class Reconnection {
 public:
  static constexpr absl::Duration kFirstPause = absl::Milliseconds(10);
  static constexpr absl::Duration kLongestPause = absl::Milliseconds(100);

  // `path` is the daemon's socket, for messages. `lost` says whether the daemon is gone for good;
  // it is called under no lock of this object.
  Reconnection(std::string path, std::function<bool()> lost);
  Reconnection(const Reconnection&) = delete;
  Reconnection& operator=(const Reconnection&) = delete;

  bool lost() const { return lost_(); }

  // Whether the caller may try now. If so nobody else may for a while.
  bool TakeTurn();
  // Waits until it may be worth while to try (again), until `deadline` at the latest. `why` is what
  // came of it last.
  //   UNAVAILABLE  the deadline has passed, or the pool is lost; the message says which and `why`
  absl::Status Await(absl::Time deadline, const absl::Status& why);

  // The daemon has answered: what ends now is made anew at once.
  void NoteAnswer() {
    if (troubled_.load(std::memory_order_relaxed)) Calm();
  }
  // The daemon says that it is back, or its lifeline has ended: nobody need wait.
  void WakeAll();

  // UNAVAILABLE, of a daemon that took longer than it may.
  absl::Status NoAnswer() const;
  // UNAVAILABLE, of a pool that is lost to the session.
  absl::Status Lost(const absl::Status& why) const;
  // Lost, of an answer by which the daemon ended the session; of any other, OK.
  absl::Status LostIfRefused(const absl::Status& answer) const;

 private:
  void Calm();

  // Constant.
  const std::string path_;
  const std::function<bool()> lost_;

  std::atomic<bool> troubled_{false};  // there is a pause

  RankedMutex mu_{LockRank::kLeaf};
  absl::Time next_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Duration pause_ ABSL_GUARDED_BY(mu_);
  uint64_t wakes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_RECONNECTION_H_

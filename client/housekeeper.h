// A session's one background thread: it is woken when there is something to do ahead of need or the
// daemon has something to say, and otherwise sleeps.
//
// Nothing depends on it for correctness: if it cannot be started, or does not exist (as in a forked
// child), threads do its work when they come to need it.
//
// Thread-safe.

#ifndef SPANPOOL_CLIENT_HOUSEKEEPER_H_
#define SPANPOOL_CLIENT_HOUSEKEEPER_H_

#include <pthread.h>

#include <atomic>
#include <functional>

#include "absl/time/time.h"
#include "proto/layout/packet.h"

namespace spanpool::internal {

class Housekeeper {
 public:
  // Does what is due. Returns when to be called again at the latest, woken or not;
  // InfiniteFuture: only when woken.
  using Work = std::function<absl::Time()>;

  // `work` is called on the background thread, which has all signals blocked. It is also called
  // when `watched_fd` becomes readable or is hung up, and is to read what is there; once hung up
  // the descriptor is not looked at again. -1: none. It outlives this object.
  explicit Housekeeper(Work work, int watched_fd = -1);
  ~Housekeeper() { Stop(); }
  Housekeeper(const Housekeeper&) = delete;
  Housekeeper& operator=(const Housekeeper&) = delete;

  // Makes the thread. Apart from construction, so that the work may refer to this object. Once.
  void Start();
  // Waits for work under way to end; none is done afterwards. Not beside Wake from other threads
  // than the work's.
  void Stop();

  // Has the work done soon. Cheap when it was asked for already. False: there is no thread.
  bool Wake();

  // In a forked child, which has no such thread and must not destroy this object: closes what the
  // child has inherited. Async-signal-safe.
  void AbandonInChild();

 private:
  static void* Run(void* self);
  void Loop();
  // Waits until woken, something is to be read from the watched descriptor, or `deadline`.
  void Wait(absl::Time deadline);
  void Signal();

  // Constant after construction.
  const Work work_;
  const layout::UniqueFd wake_fd_;  // an eventfd, so that it can be waited for beside the other

  // Written only while the thread does not run.
  bool running_ = false;
  pthread_t thread_{};

  int watched_fd_;  // the thread's own
  std::atomic<bool> woken_{false};
  std::atomic<bool> stop_{false};
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_HOUSEKEEPER_H_

// A session's one background thread: it is woken when there is something to do ahead of need, and
// otherwise sleeps.
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

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace spanpool::internal {

class Housekeeper {
 public:
  // Does what is due. Returns when to be called again at the latest, woken or not;
  // InfiniteFuture: only when woken.
  using Work = std::function<absl::Time()>;

  // `work` is called on the background thread, which has all signals blocked.
  explicit Housekeeper(Work work);
  // Waits for work under way to end.
  ~Housekeeper();
  Housekeeper(const Housekeeper&) = delete;
  Housekeeper& operator=(const Housekeeper&) = delete;

  // Has the work done soon. Cheap when it was asked for already. False: there is no thread.
  bool Wake();

 private:
  static void* Run(void* self);
  void Loop();

  const Work work_;
  bool running_ = false;  // constant after construction
  pthread_t thread_{};
  std::atomic<bool> woken_{false};
  absl::Mutex mu_;
  bool notified_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_HOUSEKEEPER_H_

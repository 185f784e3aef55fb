// One thread that waits for many descriptors (epoll) and calls whoever watches the one that is
// ready.
//
// A watch that is removed is never called again, not even for an event that was already fetched
// with it: every watch has a number of its own, and events carry numbers, not descriptors.
//
// Watch, Change and Unwatch are for the loop's thread, or for before Start and after Stop. Post is
// thread-safe.

#ifndef SPANPOOL_SERVER_EVENT_LOOP_H_
#define SPANPOOL_SERVER_EVENT_LOOP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "proto/layout/packet.h"

namespace spanpool {

class EventLoop {
 public:
  using WatchId = uint64_t;
  static constexpr WatchId kNoWatch = 0;

  //   RESOURCE_EXHAUSTED  no descriptor left
  static absl::StatusOr<std::unique_ptr<EventLoop>> Create();
  ~EventLoop();  // stops
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Calls `ready` with the epoll events whenever one of `events` is there. The descriptor stays the
  // caller's, who unwatches it before closing it.
  //   RESOURCE_EXHAUSTED  the kernel's limit on watches is reached
  absl::StatusOr<WatchId> Watch(int fd, uint32_t events, std::function<void(uint32_t)> ready);
  void Change(WatchId watch, uint32_t events);
  void Unwatch(WatchId watch);

  // Calls `task` on the loop's thread, soon; on this one if the loop does not run (any more).
  void Post(std::function<void()> task) ABSL_LOCKS_EXCLUDED(mu_);
  // Calls `task` on the loop's thread after `delay`, if the loop still runs then. Loop thread only.
  void PostAfter(absl::Duration delay, std::function<void()> task);

  void Start();
  // Runs what was posted before, then ends the thread.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Watched {
    int fd = -1;
    std::function<void(uint32_t)> ready;
  };
  struct Delayed {
    absl::Time at;
    std::function<void()> task;
  };

  EventLoop(layout::UniqueFd epoll, layout::UniqueFd wake)
      : epoll_(std::move(epoll)), wake_(std::move(wake)) {}

  void Run();
  // Returns false once the loop is to stop.
  bool RunPosted() ABSL_LOCKS_EXCLUDED(mu_);
  // Milliseconds until the next delayed task, -1 = none.
  int RunDelayed();

  const layout::UniqueFd epoll_;
  const layout::UniqueFd wake_;  // an eventfd: something was posted

  // The loop's thread.
  absl::flat_hash_map<WatchId, std::shared_ptr<Watched>> watches_;
  WatchId next_watch_ = 1;
  std::vector<Delayed> delayed_;

  RankedMutex mu_{LockRank::kLeaf};
  std::vector<std::function<void()>> posted_ ABSL_GUARDED_BY(mu_);
  bool running_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_EVENT_LOOP_H_

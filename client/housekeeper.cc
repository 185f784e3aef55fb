#include "client/housekeeper.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace spanpool::internal {

Housekeeper::Housekeeper(Work work, int watched_fd)
    : work_(std::move(work)),
      wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      watched_fd_(watched_fd) {}

void Housekeeper::Start() {
  if (!wake_fd_.valid()) return;
  // The user's signal handlers run on the user's threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  running_ = true;
  if (pthread_create(&thread_, nullptr, &Run, this) != 0) running_ = false;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Housekeeper::Stop() {
  if (!running_) return;
  // relaxed: the kernel orders it before what follows, and the thread reads it after.
  stop_.store(true, std::memory_order_relaxed);
  Signal();
  pthread_join(thread_, nullptr);
  running_ = false;
}

void Housekeeper::AbandonInChild() {
  if (wake_fd_.valid()) close(wake_fd_.get());
}

void Housekeeper::Signal() {
  const uint64_t one = 1;
  // Cannot fail: the counter is far from full.
  [[maybe_unused]] const ssize_t written = write(wake_fd_.get(), &one, sizeof(one));
}

bool Housekeeper::Wake() {
  if (!running_) return false;
  if (woken_.load(std::memory_order_relaxed)) return true;
  // acq_rel: what the waker saw to be done is seen by the work, which clears the mark first.
  if (woken_.exchange(true, std::memory_order_acq_rel)) return true;
  Signal();
  return true;
}

void* Housekeeper::Run(void* self) {
  pthread_setname_np(pthread_self(), "spanpool");
  static_cast<Housekeeper*>(self)->Loop();
  return nullptr;
}

void Housekeeper::Wait(absl::Time deadline) {
  for (;;) {
    pollfd ready[2] = {{wake_fd_.get(), POLLIN, 0}, {watched_fd_, POLLIN, 0}};
    timespec left;
    if (deadline != absl::InfiniteFuture()) {
      left = absl::ToTimespec(std::max(deadline - absl::Now(), absl::ZeroDuration()));
    }
    const int count =
        ppoll(ready, 2, deadline == absl::InfiniteFuture() ? nullptr : &left, nullptr);
    if (count == 0) return;
    if (count < 0) continue;  // every signal is blocked; but a debugger may have been here
    if ((ready[1].revents & (POLLHUP | POLLERR | POLLNVAL)) != 0) watched_fd_ = -1;
    if (ready[0].revents != 0) {
      uint64_t ignored;
      [[maybe_unused]] const ssize_t got = read(wake_fd_.get(), &ignored, sizeof(ignored));
    }
    return;
  }
}

void Housekeeper::Loop() {
  absl::Time next = absl::InfiniteFuture();
  for (;;) {
    Wait(next);
    if (stop_.load(std::memory_order_relaxed)) return;
    woken_.exchange(false, std::memory_order_acq_rel);
    next = work_();
  }
}

}  // namespace spanpool::internal

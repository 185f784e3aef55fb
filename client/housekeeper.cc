#include "client/housekeeper.h"

#include <signal.h>

#include <utility>

namespace spanpool::internal {

Housekeeper::Housekeeper(Work work) : work_(std::move(work)) {
  // The user's signal handlers run on the user's threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  running_ = pthread_create(&thread_, nullptr, &Run, this) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Housekeeper::~Housekeeper() {
  if (!running_) return;
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  pthread_join(thread_, nullptr);
}

bool Housekeeper::Wake() {
  if (!running_) return false;
  if (woken_.load(std::memory_order_relaxed)) return true;
  // acq_rel: what the waker saw to be done is seen by the work, which clears the mark first.
  if (woken_.exchange(true, std::memory_order_acq_rel)) return true;
  absl::MutexLock lock(&mu_);
  notified_ = true;
  return true;
}

void* Housekeeper::Run(void* self) {
  pthread_setname_np(pthread_self(), "spanpool");
  static_cast<Housekeeper*>(self)->Loop();
  return nullptr;
}

void Housekeeper::Loop() {
  absl::Time next = absl::InfiniteFuture();
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      const auto due = [this] {
        mu_.AssertHeld();
        return notified_ || stop_;
      };
      mu_.AwaitWithDeadline(absl::Condition(&due), next);
      if (stop_) return;
      notified_ = false;
    }
    woken_.exchange(false, std::memory_order_acq_rel);
    next = work_();
  }
}

}  // namespace spanpool::internal

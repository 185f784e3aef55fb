// A lock for the few places in the client that allocations pass through by the batch.
//
// It keeps the order of allocator/lock_rank.h, with the same checks in debug builds, at the cost of
// a pthread mutex. Debian's Abseil is built with the deadlock detector of absl::Mutex always on:
// there a pair of Lock and Unlock takes some 370 instructions and a lock common to the whole
// process; here it takes 70.
//
// Spins a little before it sleeps: what it guards takes well under a microsecond.

#ifndef SPANPOOL_CLIENT_HOT_MUTEX_H_
#define SPANPOOL_CLIENT_HOT_MUTEX_H_

#include <pthread.h>

#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"

namespace spanpool::internal {

class ABSL_LOCKABLE HotMutex {
 public:
  constexpr explicit HotMutex([[maybe_unused]] LockRank rank)
#ifdef SPANPOOL_DEBUG
      : rank_(rank)
#endif
  {
  }
  HotMutex(const HotMutex&) = delete;
  HotMutex& operator=(const HotMutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    lock_rank_internal::Acquired(rank());
    pthread_mutex_lock(&mutex_);
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    pthread_mutex_unlock(&mutex_);
    lock_rank_internal::Released(rank());
  }

 private:
#ifdef SPANPOOL_DEBUG
  LockRank rank() const { return rank_; }
  const LockRank rank_;
#else
  static constexpr LockRank rank() { return LockRank::kLeaf; }
#endif
  pthread_mutex_t mutex_ = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;
};

class ABSL_SCOPED_LOCKABLE HotMutexLock {
 public:
  explicit HotMutexLock(HotMutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  ~HotMutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  HotMutexLock(const HotMutexLock&) = delete;
  HotMutexLock& operator=(const HotMutexLock&) = delete;

 private:
  HotMutex* const mutex_;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_HOT_MUTEX_H_

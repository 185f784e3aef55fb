// Mutexes that know their place in the one lock order.
//
// A thread may take a lock only if its rank is higher than that of every lock it holds; two locks
// of one rank are never held together. So no cycle of waiting threads can arise. With
// SPANPOOL_DEBUG every acquisition is checked and a violation aborts with both ranks.
//
// A RankedMutex is a pthread mutex with absl::Mutex's interface: the deadlock detector of
// absl::Mutex is always on in Debian's build of Abseil, where a pair of Lock and Unlock takes some
// 370 instructions (here 70) and a lock common to the whole process, so that threads that share
// nothing wait for each other. It spins a little before it sleeps: what it guards takes well under
// a microsecond.
//
// No lock is held while an arena's memory is created, backed, mapped or sent, nor across a
// callback. The heap's own records are committed under its locks, by an mprotect of a few pages.

#ifndef SPANPOOL_ALLOCATOR_LOCK_RANK_H_
#define SPANPOOL_ALLOCATOR_LOCK_RANK_H_

#include <pthread.h>

#include <cstdint>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace spanpool {

// The lock order, first to take first. Gaps are for nobody: add a line where it belongs.
enum class LockRank : uint8_t {
  kBuffer,        // client: what several Buffers own together
  kLink,          // client: the session's way to the daemon
  kSessionTable,  // daemon: all sessions; client: the session's exchange state
  kSession,       // daemon: one session
  kSessionCache,  // client: the spans and blocks cached for one span class
  kSlotStocks,    // client: the threads' stocks of free slots
  kCentralList,   // heap: the spans of one span class
  kPageCache,     // heap: one cache of single pages
  kHeap,          // heap: pages, arenas, limit
  kRecords,       // heap: the allocators of its own records
  kArenaSource,   // descriptors of arenas
  kLeaf,          // metrics, logs: taken last, hold nothing
};

const char* LockRankName(LockRank rank);

namespace lock_rank_internal {
#ifdef SPANPOOL_DEBUG
// What the calling thread holds.
void Acquired(LockRank rank);
void Released(LockRank rank);
#else
inline void Acquired(LockRank) {}
inline void Released(LockRank) {}
#endif
}  // namespace lock_rank_internal

class ABSL_LOCKABLE RankedMutex {
 public:
  constexpr explicit RankedMutex([[maybe_unused]] LockRank rank)
#ifdef SPANPOOL_DEBUG
      : rank_(rank)
#endif
  {
  }
  RankedMutex(const RankedMutex&) = delete;
  RankedMutex& operator=(const RankedMutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    // Before the wait, so that a violation is seen even when it would deadlock.
    lock_rank_internal::Acquired(rank());
    pthread_mutex_lock(&mutex_);
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    if (ABSL_PREDICT_FALSE(waiters_ != nullptr)) WakeWaiters();
    pthread_mutex_unlock(&mutex_);
    lock_rank_internal::Released(rank());
  }
  // True if the lock was free and is now held. Checked as Lock is: order does not depend on luck.
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    lock_rank_internal::Acquired(rank());
    if (pthread_mutex_trylock(&mutex_) == 0) return true;
    lock_rank_internal::Released(rank());
    return false;
  }

  // Tells the static analysis that the calling thread holds the lock; checks nothing.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

  // Waits, with the lock released meanwhile, until `condition` holds, which may depend only on what
  // the lock guards: whoever unlocks looks at it.
  void Await(const absl::Condition& condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    AwaitWithDeadline(condition, absl::InfiniteFuture());
  }
  // The same until `deadline`; returns whether `condition` holds.
  bool AwaitWithDeadline(const absl::Condition& condition, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this);

 private:
  // A thread in Await, on its stack.
  struct Waiter {
    const absl::Condition& condition;
    Waiter* next;
    pthread_cond_t may_hold = PTHREAD_COND_INITIALIZER;
  };

  // Wakes the threads whose conditions hold.
  void WakeWaiters();

#ifdef SPANPOOL_DEBUG
  LockRank rank() const { return rank_; }
  const LockRank rank_;
#else
  static constexpr LockRank rank() { return LockRank::kLeaf; }
#endif

  pthread_mutex_t mutex_ = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;
  Waiter* waiters_ = nullptr;  // guarded by mutex_
};

class ABSL_SCOPED_LOCKABLE RankedMutexLock {
 public:
  explicit RankedMutexLock(RankedMutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) {
    mu_->Lock();
  }
  ~RankedMutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  RankedMutexLock(const RankedMutexLock&) = delete;
  RankedMutexLock& operator=(const RankedMutexLock&) = delete;

 private:
  RankedMutex* const mu_;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_LOCK_RANK_H_

// Mutexes that know their place in the one lock order.
//
// A thread may take a lock only if its rank is higher than that of every lock it holds; two locks
// of one rank are never held together. So no cycle of waiting threads can arise. With
// SPANPOOL_DEBUG every acquisition is checked and a violation aborts with both ranks; otherwise a
// RankedMutex is an absl::Mutex and nothing else.
//
// No lock is held across a kernel call that can block, nor across a callback.

#ifndef SPANPOOL_ALLOCATOR_LOCK_RANK_H_
#define SPANPOOL_ALLOCATOR_LOCK_RANK_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace spanpool {

// The lock order, first to take first. Gaps are for nobody: add a line where it belongs.
enum class LockRank : uint8_t {
  kSessionTable,  // daemon: all sessions; client: the session's exchange state
  kSession,       // daemon: one session
  kSessionCache,  // client: the spans and blocks cached for one span class
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
#ifdef SPANPOOL_DEBUG
  constexpr explicit RankedMutex(LockRank rank) : mu_(absl::kConstInit), rank_(rank) {}
#else
  constexpr explicit RankedMutex(LockRank) : mu_(absl::kConstInit) {}
#endif
  RankedMutex(const RankedMutex&) = delete;
  RankedMutex& operator=(const RankedMutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    // Before the wait, so that a violation is seen even when it would deadlock.
    lock_rank_internal::Acquired(rank());
    mu_.Lock();
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    mu_.Unlock();
    lock_rank_internal::Released(rank());
  }
  void ReaderLock() ABSL_SHARED_LOCK_FUNCTION() {
    lock_rank_internal::Acquired(rank());
    mu_.ReaderLock();
  }
  void ReaderUnlock() ABSL_UNLOCK_FUNCTION() {
    mu_.ReaderUnlock();
    lock_rank_internal::Released(rank());
  }
  // True if the lock was free and is now held. Checked as Lock is: order does not depend on luck.
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    lock_rank_internal::Acquired(rank());
    if (mu_.TryLock()) return true;
    lock_rank_internal::Released(rank());
    return false;
  }

  // Waits, with the lock released meanwhile, until `condition` holds.
  void Await(const absl::Condition& condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    mu_.Await(condition);
  }
  // The same until `deadline`; returns whether `condition` holds.
  bool AwaitWithDeadline(const absl::Condition& condition, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    return mu_.AwaitWithDeadline(condition, deadline);
  }

  // The same for at most `timeout`.
  bool AwaitWithTimeout(const absl::Condition& condition, absl::Duration timeout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    return mu_.AwaitWithTimeout(condition, timeout);
  }

  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() { mu_.AssertHeld(); }

 private:
#ifdef SPANPOOL_DEBUG
  LockRank rank() const { return rank_; }
#else
  static constexpr LockRank rank() { return LockRank::kLeaf; }
#endif

  absl::Mutex mu_;
#ifdef SPANPOOL_DEBUG
  const LockRank rank_;
#endif
};

#ifndef SPANPOOL_DEBUG
static_assert(sizeof(RankedMutex) == sizeof(absl::Mutex));
#endif

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

class ABSL_SCOPED_LOCKABLE RankedReaderLock {
 public:
  explicit RankedReaderLock(RankedMutex* mu) ABSL_SHARED_LOCK_FUNCTION(mu) : mu_(mu) {
    mu_->ReaderLock();
  }
  ~RankedReaderLock() ABSL_UNLOCK_FUNCTION() { mu_->ReaderUnlock(); }
  RankedReaderLock(const RankedReaderLock&) = delete;
  RankedReaderLock& operator=(const RankedReaderLock&) = delete;

 private:
  RankedMutex* const mu_;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_LOCK_RANK_H_

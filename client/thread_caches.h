// The stacks of all threads for one session: their making, filling, draining and end.
//
// The hot path (spanpool/thread_cache.h) runs without a lock; everything here does with one: the
// mutex of the cache that is touched, held for a few instructions and never while the session cache
// or the daemon is asked. A thread finds its caches, one for each session it used, in a
// thread-local list; the last used is `hot_cache`.
//
// How much a stack may hold adapts: it grows by a batch each time it overflows, up to its capacity
// and to what the thread may hold in all; and what it takes at a refill doubles each time it runs
// dry. A thread that holds as much as it may takes room from stacks that do not use theirs, and
// then from the fullest. What all threads may hold is divided evenly among them; a thread that came
// to have more before others joined gives it up as it next makes room for something, or is quiet.
//
// Life
//  * A thread's end drains its caches and puts them aside for the next thread.
//  * A session's end orphans them: the keys are cleared, and the thread frees them when it next
//    looks, or ends. What was in the stacks is gone with the session.
//  * The two meet under the registry's mutex.
//  * While a thread's thread-local objects are destroyed, and after, it has no caches: blocks then
//    move one by one.
//
// Thread-safe. Locks: the registry (kSessionTable), one for the process; then a cache's own
// (kSession).

#ifndef SPANPOOL_CLIENT_THREAD_CACHES_H_
#define SPANPOOL_CLIENT_THREAD_CACHES_H_

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/address_range.h"
#include "client/cache_class.h"
#include "client/page_map.h"
#include "client/session_cache.h"
#include "spanpool/thread_cache.h"

namespace spanpool::internal {

// What keeps a session alive while a thread that ends gives it its blocks back.
class SessionLife {
 public:
  virtual ~SessionLife() = default;
  // False if the session is ending.
  virtual bool TryRef() = 0;
  virtual void Unref() = 0;
  // In a forked child, which must not use the session. Async-signal-safe.
  virtual void AbandonInChild() = 0;
};

class ThreadCaches {
 public:
  // `life` is also the key of the hot path for Buffers; `session_key` that for the Session. All
  // outlive this.
  ThreadCaches(uint64_t limit_bytes, AddressRange* range, PageMap* pages, SessionCache* cache,
               SessionLife* life);
  // Orphans the caches. No thread may be using the session.
  ~ThreadCaches();
  ThreadCaches(const ThreadCaches&) = delete;
  ThreadCaches& operator=(const ThreadCaches&) = delete;

  // The Session object that the hot path answers to from now on; null: none.
  void SetSessionKey(const void* session);

  // A free block of class `c`: from the thread's stack, filled from the session cache.
  // Errors are SessionCache::Take's.
  absl::StatusOr<void*> Allocate(CacheClass c);

  // Takes back a block of class `c`, which StackIndexOf(c) may or may not have a stack for.
  void Free(CacheClass c, void* block, const void* call_site);

  // Counts an allocation that did not pass through Allocate().
  void CountOther(bool waited);

  // Empties this thread's stacks into the session cache.
  void DrainMine();

  // Empties the stacks of all other threads, whatever they are doing. Does nothing where the kernel
  // has no membarrier. `halfway` is called, for tests, when all have been told to keep off and
  // before the first is emptied.
  void DrainOthers(absl::FunctionRef<void()> halfway = [] {});

  struct Counts {
    uint64_t allocations = 0;
    uint64_t refills = 0;
  };
  Counts counts();

 private:
  friend struct ThreadState;
  friend struct ForkHandlers;
  friend void UndoPop(ThreadCache* cache, size_t offset, void** top);
  friend bool UndoPush(ThreadCache* cache, size_t offset, void** top, const void* key);
  struct OwnedCache;
  using DrainedBlocks = std::vector<std::pair<CacheClass, std::vector<void*>>>;

  // The thread's cache for this session, if it has one. Frees those of sessions that have ended.
  OwnedCache* FindMine();
  // The same, made if need be, now the hot one. Null: the thread is ending, or there is no memory.
  OwnedCache* Mine();
  OwnedCache* NewCache();
  // Most that the calling thread's stacks may hold now. Requires that it has some.
  uint64_t CapBytes() const;
  static void Dispose(OwnedCache* cache);
  // Gives all that is in the calling thread's stacks to the session cache.
  void Drain(OwnedCache* cache, const void* call_site);
  // Takes the blocks of another thread's cache, whose keys are hidden since before a fence, with
  // its mutex held.
  static void CollectDrained(OwnedCache* cache, DrainedBlocks* drained);
  // The end of a thread's cache.
  static void Retire(OwnedCache* cache);
  // In a forked child, with the registry's mutex held: every session is the parent's.
  static void AbandonAllInChild();

  // Constant after construction.
  const uint64_t thread_cap_bytes_;   // most one thread's stacks may hold
  const uint64_t session_cap_bytes_;  // and those of all threads
  AddressRange* const range_;
  PageMap* const pages_;
  SessionCache* const cache_;
  SessionLife* const life_;

  // Guarded by the registry's mutex.
  const void* session_key_ = nullptr;
  OwnedCache* caches_ = nullptr;      // of living threads
  OwnedCache* spare_ = nullptr;       // put aside
  Counts ended_;                      // of threads that ended
  std::atomic<uint32_t> threads_{0};  // in caches_; written with the mutex, read without
  // Registered sessions of the process.
  ThreadCaches* next_ = nullptr;
  ThreadCaches* previous_ = nullptr;

  // Blocks that moved without a stack.
  std::atomic<uint64_t> other_allocations_{0};
  std::atomic<uint64_t> other_refills_{0};
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_THREAD_CACHES_H_

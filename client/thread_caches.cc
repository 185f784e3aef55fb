#include "client/thread_caches.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <utility>

#include "absl/functional/function_ref.h"
#include "allocator/check.h"
#include "allocator/lock_rank.h"
#include "allocator/size_classes.h"
#include "client/asymmetric_fence.h"

namespace spanpool::internal {
namespace {

// Most that the stacks of one thread hold, and those of a session's threads together, in a pool
// that is large enough.
constexpr uint64_t kThreadCapBytes = 4 << 20;
constexpr uint64_t kSessionCapBytes = 64 << 20;

constexpr size_t kMaxMove = 512;  // blocks moved at a time

// Where each stack's room begins in the memory behind a cache, and how much that is in all.
struct Room {
  std::array<uint32_t, kStacks + 1> first{};
};
constexpr Room MakeRoom() {
  Room room;
  uint32_t next = 0;
  for (size_t i = 0; i < kStacks; ++i) {
    room.first[i] = next;
    if (i >= 2) next += static_cast<uint32_t>(StackCapacityOf(CacheClassOfStack(i)));
  }
  room.first[kStacks] = next;
  return room;
}
constexpr Room kRoom = MakeRoom();

// What threads without a cache of their own look at: no key matches it.
constinit ThreadCache no_cache;

// Where a cache begins in its memory. Large blocks begin on pages; what a program writes at their
// start must not look, in the lowest 12 bits of its address, like what the hot path reads next: the
// processor would make the read wait for the write.
constexpr size_t kCacheOffset = 1088;

constinit RankedMutex registry_mu{LockRank::kSessionTable};
constinit ThreadCaches* sessions ABSL_GUARDED_BY(registry_mu) = nullptr;

}  // namespace

constinit thread_local ThreadCache* hot_cache __attribute__((tls_model("initial-exec"))) =
    &no_cache;

struct ThreadCaches::OwnedCache : ThreadCache {
  // Null once the session has ended. Written under the registry's mutex; read by the owning thread.
  std::atomic<ThreadCaches*> owner{nullptr};
  OwnedCache* next = nullptr;  // in the owner's list, under the registry's mutex
  OwnedCache* previous = nullptr;
  uint64_t refills = 0;  // as `allocations`

  RankedMutex mu{LockRank::kSession};
  // What `session` and `core` are while the cache is not drained.
  const void* session_key ABSL_GUARDED_BY(mu) = nullptr;
  const void* core_key ABSL_GUARDED_BY(mu) = nullptr;
  // Others are about to look at the stacks: the keys stay hidden until they have, whatever the
  // owner does.
  bool draining ABSL_GUARDED_BY(mu) = false;
  // Others took the blocks: those below drained_top, which is where each stack's top was.
  bool drained ABSL_GUARDED_BY(mu) = false;
  void** drained_top[kStacks] ABSL_GUARDED_BY(mu) = {};
  uint64_t room_bytes ABSL_GUARDED_BY(mu) = 0;        // sum of (limit - floor) × block bytes
  uint16_t refill[kStacks] ABSL_GUARDED_BY(mu) = {};  // blocks to take next time; 0 = a batch

  void SetKeys(const void* session, const void* core) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    session_key = session;
    core_key = core;
    PublishKeys();
  }
  void PublishKeys() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (draining || drained) return;
    WritePlain(&this->session, session_key);
    WritePlain(&this->core, core_key);
  }
  void HideKeys() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const void* const none = nullptr;
    __atomic_store_n(&this->session, none, __ATOMIC_SEQ_CST);
    __atomic_store_n(&this->core, none, __ATOMIC_SEQ_CST);
  }

  // Empties the books of a stack that has no blocks left; it starts small again.
  void ResetStack(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    Stack& stack = stacks[index];
    const CacheClass c = CacheClassOfStack(index);
    room_bytes -= static_cast<uint64_t>(stack.limit - stack.floor) * BlockBytesOf(c);
    stack.limit = stack.floor;
    stack.top.store(stack.floor, std::memory_order_relaxed);
    refill[index] = 0;
  }

  // The owner's: after this the stacks are as they seem. Every slow operation begins with it.
  void Settle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (!drained) return;
    for (size_t index = 2; index < kStacks; ++index) {
      if (stacks[index].limit != stacks[index].floor) ResetStack(index);
    }
    drained = false;
    PublishKeys();
  }

  void UndoPop(size_t index, void** top) {
    Stack& stack = stacks[index];
    RankedMutexLock lock(&mu);
    if (!drained) {
      // The key is another session's.
      stack.top.store(top, std::memory_order_relaxed);
      return;
    }
    // Who drained saw the top as it was before the pop, or after.
    const bool taken = drained_top[index] == top;
    Settle();
    if (taken) return;
    *stack.floor = top[-1];
    stack.limit = stack.floor + 1;
    stack.top.store(stack.floor + 1, kTopOrder);
    room_bytes += BlockBytesOf(CacheClassOfStack(index));
  }
  bool UndoPush(size_t index, void** top, const void* key) {
    RankedMutexLock lock(&mu);
    if (!drained) {
      stacks[index].top.store(top, std::memory_order_relaxed);
      return false;
    }
    const bool taken = drained_top[index] == top + 1;
    Settle();
    return taken && (key == session_key || key == core_key);
  }

  // Makes the stack at `index` room for up to `bytes` more below `cap_bytes`, at the expense of the
  // others: of the room they do not use, then of the older half of what the fullest holds, which
  // is moved to `moved`. Returns that stack's index; 0: nothing was moved. The owner's, settled.
  size_t FindRoom(size_t index, uint64_t bytes, uint64_t cap_bytes, void** moved, size_t* count)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    *count = 0;
    if (room_bytes + bytes <= cap_bytes) return 0;
    size_t fullest = 0;
    uint64_t most = 0;
    for (size_t i = 2; i < kStacks; ++i) {
      Stack& stack = stacks[i];
      if (i == index || stack.limit == stack.floor) continue;
      const uint64_t block_bytes = BlockBytesOf(CacheClassOfStack(i));
      void** const top = stack.top.load(std::memory_order_relaxed);
      room_bytes -= static_cast<uint64_t>(stack.limit - top) * block_bytes;
      stack.limit = top;
      const uint64_t held = static_cast<uint64_t>(top - stack.floor) * block_bytes;
      if (held > most) {
        most = held;
        fullest = i;
      }
    }
    if (fullest == 0 || room_bytes + bytes <= cap_bytes) return 0;
    Stack& stack = stacks[fullest];
    void** const top = stack.top.load(std::memory_order_relaxed);
    *count = std::min((static_cast<size_t>(top - stack.floor) + 1) / 2, kMaxMove);
    std::copy(stack.floor, stack.floor + *count, moved);
    std::copy(stack.floor + *count, top, stack.floor);
    stack.limit = top - *count;
    stack.top.store(stack.limit, kTopOrder);
    room_bytes -= *count * BlockBytesOf(CacheClassOfStack(fullest));
    return fullest;
  }

  // How many blocks more the stacks may have room for below `cap_bytes`.
  size_t BlocksLeft(uint64_t cap_bytes, uint64_t block_bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return static_cast<size_t>((cap_bytes - std::min(cap_bytes, room_bytes)) / block_bytes);
  }

  // Moves up to a batch of blocks from a stack to `moved`. The owner's, settled.
  size_t PopSome(size_t index, void** moved) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    Stack& stack = stacks[index];
    void** const top = stack.top.load(std::memory_order_relaxed);
    const size_t count = std::min(static_cast<size_t>(top - stack.floor), kMaxMove);
    std::copy(top - count, top, moved);
    stack.top.store(top - count, std::memory_order_relaxed);
    if (top - count == stack.floor) ResetStack(index);
    return count;
  }

  void** room() { return reinterpret_cast<void**>(this + 1); }
  static constexpr size_t Bytes() {
    return kCacheOffset + sizeof(OwnedCache) + kRoom.first[kStacks] * sizeof(void*);
  }
};

// The calling thread's caches, most of the time one.
struct ThreadState {
  std::vector<ThreadCaches::OwnedCache*> caches;
  ~ThreadState();
};

namespace {

thread_local ThreadState thread_state;
// Set when thread_state is gone. Trivially destructible, so it can be read until the thread's end.
constinit thread_local bool thread_ended = false;

}  // namespace

ThreadState::~ThreadState() {
  hot_cache = &no_cache;
  thread_ended = true;
  for (ThreadCaches::OwnedCache* cache : caches) ThreadCaches::Retire(cache);
}

void ThreadCaches::Retire(OwnedCache* cache) {
  ThreadCaches* owner;
  bool alive = false;
  {
    RankedMutexLock lock(&registry_mu);
    owner = cache->owner.load(std::memory_order_relaxed);
    alive = owner != nullptr && owner->life_->TryRef();
  }
  if (alive) owner->Drain(cache, nullptr);
  {
    RankedMutexLock lock(&registry_mu);
    // Orphaned, perhaps meanwhile: nobody else knows it any more.
    owner = cache->owner.load(std::memory_order_relaxed);
    if (owner != nullptr) {
      owner->threads_.fetch_sub(1, std::memory_order_relaxed);
      (cache->previous != nullptr ? cache->previous->next : owner->caches_) = cache->next;
      if (cache->next != nullptr) cache->next->previous = cache->previous;
      owner->ended_.allocations += cache->allocations;
      owner->ended_.refills += cache->refills;
      if (alive) {
        cache->next = owner->spare_;
        owner->spare_ = cache;
        cache = nullptr;
      }
    }
  }
  if (cache != nullptr) Dispose(cache);
  if (alive) owner->life_->Unref();
}

void ThreadCaches::Dispose(OwnedCache* cache) {
  cache->~OwnedCache();
  munmap(reinterpret_cast<char*>(cache) - kCacheOffset, OwnedCache::Bytes());
}

namespace {

// A fork finds the list of sessions whole, and the child's copies of them are abandoned.
void BeforeFork() ABSL_NO_THREAD_SAFETY_ANALYSIS { registry_mu.Lock(); }
void AfterForkInParent() ABSL_NO_THREAD_SAFETY_ANALYSIS { registry_mu.Unlock(); }

}  // namespace

// Named, so that it may walk the list of sessions.
struct ForkHandlers {
  static void InChild() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    ThreadCaches::AbandonAllInChild();
    registry_mu.Unlock();
  }
};

void ThreadCaches::AbandonAllInChild() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  for (ThreadCaches* session = sessions; session != nullptr; session = session->next_) {
    session->life_->AbandonInChild();
  }
  sessions = nullptr;
  hot_cache = &no_cache;
  if (!thread_ended) thread_state.caches.clear();
}

ThreadCaches::ThreadCaches(uint64_t limit_bytes, AddressRange* range, PageMap* pages,
                           SessionCache* cache, SessionLife* life)
    : thread_cap_bytes_(std::min(kThreadCapBytes, limit_bytes / 64)),
      session_cap_bytes_(std::min(kSessionCapBytes, limit_bytes / 8)),
      range_(range),
      pages_(pages),
      cache_(cache),
      life_(life) {
  static const int registered =
      pthread_atfork(&BeforeFork, &AfterForkInParent, &ForkHandlers::InChild);
  SPANPOOL_CHECK_EQ(registered, 0);
  RankedMutexLock lock(&registry_mu);
  next_ = sessions;
  if (sessions != nullptr) sessions->previous_ = this;
  sessions = this;
}

ThreadCaches::~ThreadCaches() {
  OwnedCache* spare;
  {
    RankedMutexLock lock(&registry_mu);
    (previous_ != nullptr ? previous_->next_ : sessions) = next_;
    if (next_ != nullptr) next_->previous_ = previous_;
    for (OwnedCache* cache = caches_; cache != nullptr;) {
      OwnedCache* const next = cache->next;
      {
        RankedMutexLock cache_lock(&cache->mu);
        cache->HideKeys();
        cache->SetKeys(nullptr, nullptr);
        // The page map goes with the session, and the cache may stay the thread's hot one.
        __atomic_store_n(&cache->bytes, 0, __ATOMIC_RELAXED);
      }
      cache->next = nullptr;
      cache->previous = nullptr;
      // release: the last that is done to it; pairs with the acquire in Mine.
      cache->owner.store(nullptr, std::memory_order_release);
      cache = next;
    }
    spare = std::exchange(spare_, nullptr);
  }
  while (spare != nullptr) {
    OwnedCache* const next = spare->next;
    Dispose(spare);
    spare = next;
  }
}

void ThreadCaches::SetSessionKey(const void* session) {
  RankedMutexLock lock(&registry_mu);
  session_key_ = session;
  for (OwnedCache* cache = caches_; cache != nullptr; cache = cache->next) {
    RankedMutexLock cache_lock(&cache->mu);
    cache->SetKeys(session, life_);
  }
}

ThreadCaches::OwnedCache* ThreadCaches::NewCache() {
  {
    RankedMutexLock lock(&registry_mu);
    if (OwnedCache* cache = spare_; cache != nullptr) {
      spare_ = cache->next;
      cache->next = nullptr;
      return cache;
    }
  }
  void* memory = mmap(nullptr, OwnedCache::Bytes(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* const cache = new (static_cast<char*>(memory) + kCacheOffset) OwnedCache;
  cache->base = range_->base();
  cache->bytes = range_->bytes();
  cache->pages = pages_->entries();
  for (size_t i = 0; i < kInlineSizes; ++i) {
    cache->stack_of[i] = static_cast<uint16_t>(MallocStackIndex(SizeOfIndex(i)) * sizeof(Stack));
  }
  for (size_t i = 2; i < kStacks; ++i) {
    Stack& stack = cache->stacks[i];
    stack.floor = stack.limit = cache->room() + kRoom.first[i];
    stack.top.store(stack.floor, std::memory_order_relaxed);
    const SpanClass span_class = SpanClassOf(CacheClassOfStack(i));
    stack.reciprocal = span_class.large() ? uint32_t{1} << (32 - kPageShift)
                                          : InfoOf(span_class.size_class()).reciprocal;
  }
  return cache;
}

ThreadCaches::OwnedCache* ThreadCaches::FindMine() {
  if (thread_ended) return nullptr;
  std::vector<OwnedCache*>& mine = thread_state.caches;
  for (size_t i = 0; i < mine.size();) {
    OwnedCache* const cache = mine[i];
    // acquire: pairs with the release when the session ended.
    ThreadCaches* const owner = cache->owner.load(std::memory_order_acquire);
    if (owner == this) return cache;
    if (owner != nullptr) {
      ++i;
      continue;
    }
    if (hot_cache == cache) hot_cache = &no_cache;
    Dispose(cache);
    mine[i] = mine.back();
    mine.pop_back();
  }
  return nullptr;
}

ThreadCaches::OwnedCache* ThreadCaches::Mine() {
  if (thread_ended) return nullptr;
  if (OwnedCache* const cache = FindMine(); cache != nullptr) {
    hot_cache = cache;
    return cache;
  }
  OwnedCache* const cache = NewCache();
  if (cache == nullptr) return nullptr;
  {
    RankedMutexLock lock(&registry_mu);
    cache->allocations = 0;
    cache->refills = 0;
    cache->next = caches_;
    cache->previous = nullptr;
    if (caches_ != nullptr) caches_->previous = cache;
    caches_ = cache;
    threads_.fetch_add(1, std::memory_order_relaxed);
    cache->owner.store(this, std::memory_order_relaxed);
    RankedMutexLock cache_lock(&cache->mu);
    cache->SetKeys(session_key_, life_);
    cache->Settle();  // it may have been drained after its last thread had emptied it
  }
  thread_state.caches.push_back(cache);
  hot_cache = cache;
  return cache;
}

uint64_t ThreadCaches::CapBytes() const {
  // The calling thread is one.
  return std::min(thread_cap_bytes_, session_cap_bytes_ / threads_.load(std::memory_order_relaxed));
}

absl::StatusOr<void*> ThreadCaches::Allocate(CacheClass c) {
  const size_t index = StackIndexOf(c);
  OwnedCache* const mine = index == 0 ? nullptr : Mine();
  if (mine == nullptr) {
    void* block;
    absl::StatusOr<SessionCache::Taken> taken = cache_->Take(c, {&block, 1});
    if (!taken.ok()) return taken.status();
    CountOther(taken->waited);
    return block;
  }
  Stack& stack = mine->stacks[index];
  const uint64_t block_bytes = BlockBytesOf(c);
  const uint64_t cap_bytes = CapBytes();
  void* blocks[kMaxMove];
  size_t wanted;
  size_t evicted = 0;
  size_t from = 0;
  {
    RankedMutexLock lock(&mine->mu);
    mine->Settle();
    void** const top = stack.top.load(std::memory_order_relaxed);
    if (top != stack.floor) {
      stack.top.store(top - 1, std::memory_order_relaxed);
      CountOne(&mine->allocations);
      cache_->NoteUse();
      return top[-1];
    }
    uint16_t& refill = mine->refill[index];
    wanted = refill != 0 ? refill : BatchOf(c);
    // The one asked for may exceed what the thread may keep; the rest may not.
    const auto room = static_cast<size_t>(stack.limit - stack.floor);
    const size_t extra = std::min(wanted - 1, StackCapacityOf(c));
    if (extra > room) {
      from = mine->FindRoom(index, (extra - room) * block_bytes, cap_bytes, blocks, &evicted);
    }
    const size_t may_keep = room + mine->BlocksLeft(cap_bytes, block_bytes);
    const size_t capacity = std::min(StackCapacityOf(c), may_keep);
    wanted = std::clamp<size_t>(wanted, 1, std::min(kMaxMove, 1 + capacity));
    refill = static_cast<uint16_t>(std::min(2 * wanted, kMaxMove));
  }
  if (evicted > 0) cache_->Give(CacheClassOfStack(from), {blocks, evicted}, nullptr);
  absl::StatusOr<SessionCache::Taken> taken =
      cache_->Take(c, absl::MakeSpan(blocks).subspan(0, wanted));
  if (!taken.ok()) return taken.status();
  CountOne(&mine->allocations);
  if (taken->waited) CountOne(&mine->refills);
  size_t kept = 0;
  {
    RankedMutexLock lock(&mine->mu);
    mine->Settle();
    const size_t extra = taken->blocks - 1;
    if (static_cast<size_t>(stack.limit - stack.floor) < extra) {
      mine->room_bytes += (extra - static_cast<size_t>(stack.limit - stack.floor)) * block_bytes;
      stack.limit = stack.floor + extra;
    }
    // The lowest address on top: neighbours are handed out in order.
    void** top = stack.top.load(std::memory_order_relaxed);
    for (size_t i = taken->blocks; i-- > 1 && top != stack.limit;) {
      *top++ = blocks[i];
      ++kept;
    }
    stack.top.store(top, kTopOrder);
    SPANPOOL_CHECK_EQ(kept, extra);  // the stack was empty, and only its thread fills it
  }
  return blocks[0];
}

void ThreadCaches::Free(CacheClass c, void* block, const void* call_site) {
  const size_t index = StackIndexOf(c);
  OwnedCache* const mine = index == 0 ? nullptr : Mine();
  if (mine == nullptr) {
    cache_->Give(c, {&block, 1}, call_site);
    cache_->NoteUse();
    return;
  }
  Stack& stack = mine->stacks[index];
  const uint64_t block_bytes = BlockBytesOf(c);
  const uint64_t cap_bytes = CapBytes();
  void* moved[kMaxMove];
  size_t count = 0;
  void* evicted[kMaxMove];
  size_t evicted_count = 0;
  size_t from = 0;
  {
    RankedMutexLock lock(&mine->mu);
    mine->Settle();
    void** top = stack.top.load(std::memory_order_relaxed);
    if (top == stack.limit) {
      const auto room = static_cast<size_t>(stack.limit - stack.floor);
      const size_t capacity = StackCapacityOf(c);
      size_t grow = std::min(BatchOf(c), capacity - std::min(room, capacity));
      if (grow > 0) {
        from = mine->FindRoom(index, grow * block_bytes, cap_bytes, evicted, &evicted_count);
        grow = std::min(grow, mine->BlocksLeft(cap_bytes, block_bytes));
      }
      if (grow > 0) {
        stack.limit += grow;
        mine->room_bytes += grow * block_bytes;
      } else if (room == 0) {
        moved[count++] = block;
      } else {
        // The older half goes: what was freed last is warm.
        count = std::min((room + 1) / 2, kMaxMove);
        std::copy(stack.floor, stack.floor + count, moved);
        std::copy(stack.floor + count, top, stack.floor);
        top -= count;
      }
    }
    if (top != stack.limit) *top++ = block;
    stack.top.store(top, kTopOrder);
  }
  if (evicted_count > 0) {
    cache_->Give(CacheClassOfStack(from), {evicted, evicted_count}, call_site);
  }
  if (count > 0) cache_->Give(c, {moved, count}, call_site);
  cache_->NoteUse();
}

void ThreadCaches::CountOther(bool waited) {
  other_allocations_.fetch_add(1, std::memory_order_relaxed);
  if (waited) other_refills_.fetch_add(1, std::memory_order_relaxed);
}

void ThreadCaches::DrainOthers(absl::FunctionRef<void()> halfway) {
  if (!CanFenceAllThreads()) return;
  OwnedCache* const mine = FindMine();
  DrainedBlocks drained;
  {
    RankedMutexLock lock(&registry_mu);
    for (OwnedCache* cache = caches_; cache != nullptr; cache = cache->next) {
      if (cache == mine) continue;
      RankedMutexLock cache_lock(&cache->mu);
      cache->draining = true;
      cache->HideKeys();
    }
    FenceAllThreads();
    halfway();
    for (OwnedCache* cache = caches_; cache != nullptr; cache = cache->next) {
      if (cache == mine) continue;
      RankedMutexLock cache_lock(&cache->mu);
      cache->draining = false;
      // What a thread lost before and does not know yet stays as it is.
      if (!cache->drained) CollectDrained(cache, &drained);
    }
  }
  for (const auto& [c, blocks] : drained) cache_->Give(c, blocks, nullptr);
}

void ThreadCaches::CollectDrained(OwnedCache* cache,
                                  DrainedBlocks* drained) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  for (size_t index = 2; index < kStacks; ++index) {
    const Stack& stack = cache->stacks[index];
    // acquire: pairs with the release in Push; the block stands in its place.
    void** const top =
        stack.top.load(kTopOrder == std::memory_order_seq_cst ? std::memory_order_seq_cst
                                                              : std::memory_order_acquire);
    cache->drained_top[index] = top;
    if (top == stack.floor) continue;
    drained->emplace_back(CacheClassOfStack(index), std::vector<void*>(stack.floor, top));
  }
  cache->drained = true;
}

void UndoPop(ThreadCache* cache, size_t offset, void** top) {
  static_cast<ThreadCaches::OwnedCache*>(cache)->UndoPop(offset / sizeof(Stack), top);
}

bool UndoPush(ThreadCache* cache, size_t offset, void** top, const void* key) {
  return static_cast<ThreadCaches::OwnedCache*>(cache)->UndoPush(offset / sizeof(Stack), top, key);
}

void ThreadCaches::Drain(OwnedCache* cache, const void* call_site) {
  void* moved[kMaxMove];
  for (size_t index = 2; index < kStacks; ++index) {
    for (;;) {
      size_t count;
      {
        RankedMutexLock lock(&cache->mu);
        cache->Settle();
        count = cache->PopSome(index, moved);
      }
      if (count == 0) break;
      cache_->Give(CacheClassOfStack(index), {moved, count}, call_site);
    }
  }
}

void ThreadCaches::DrainMine() {
  if (OwnedCache* const mine = FindMine(); mine != nullptr) Drain(mine, nullptr);
}

ThreadCaches::Counts ThreadCaches::counts() {
  RankedMutexLock lock(&registry_mu);
  Counts counts = ended_;
  for (OwnedCache* cache = caches_; cache != nullptr; cache = cache->next) {
    counts.allocations += ReadCount(&cache->allocations);
    counts.refills += ReadCount(&cache->refills);
  }
  counts.allocations += other_allocations_.load(std::memory_order_relaxed);
  counts.refills += other_refills_.load(std::memory_order_relaxed);
  return counts;
}

}  // namespace spanpool::internal

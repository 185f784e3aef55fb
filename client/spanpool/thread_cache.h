// The hot path: per thread, a stack of free blocks for each class of blocks. Users include
// spanpool.h, not this.
//
// Allocating pops, freeing looks the block's page up and pushes. Neither takes a lock, uses an
// atomic read-modify-write or writes memory that another thread writes; both are inline up to the
// miss.
//
// Invariants
//  1. Only the owning thread touches stacks and counters while its keys (`session`, `core`) stand.
//     Whoever else wants them (to drain an idle thread, to read the counters) clears the keys, has
//     every running thread pass a barrier (membarrier), and waits for `busy` to be clear: then the
//     owner is outside the hot path, and on its next operation takes the slow one, which locks.
//  2. `busy` is set before a key is looked at and cleared after the last access to a stack.
//  3. floor ≤ top ≤ limit; the blocks in [floor, top) are free and in no other stack.
//  4. Stack 0 is always both empty and full and its reciprocal is 0, so that pages which hold no
//     small block (entry 0) need no test of their own.
//
// Where the processor orders stores after earlier stores and loads after earlier loads (x86), the
// memory orders below cost no instruction.

#ifndef SPANPOOL_THREAD_CACHE_H_
#define SPANPOOL_THREAD_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace spanpool::internal {

// The largest size whose class is looked up inline.
inline constexpr size_t kInlineBytes = 1024;

// 136 span classes; then the sizes of large blocks from 5 to 512 pages.
inline constexpr size_t kSpanClassStacks = 136;
inline constexpr size_t kLargeStacks = 52;
inline constexpr size_t kStacks = kSpanClassStacks + kLargeStacks;

struct Stack {
  void** top = nullptr;    // one above the block that was freed last
  void** floor = nullptr;  // constant
  void** limit = nullptr;  // moved by the slow path only
  // ⌈2^32 / bytes per block⌉: offset × reciprocal, modulo 2^32, is below reciprocal exactly for
  // offsets that are a multiple of the block size.
  uint32_t reciprocal = 0;
  uint32_t unused = 0;
};
static_assert(sizeof(Stack) == 32);

// A page's entry; bits 63..32 and 15..0 are 0 for a page that holds no block which may be freed
// inline:
//   bits 15..0   the byte offset of its stack within ThreadCache::stacks
//   bits 31..16  not the hot path's
//   bits 63..32  the span's offset in the pool × reciprocal, modulo 2^32
using PageEntry = std::atomic<uint64_t>;

struct ThreadCache {
  std::atomic<const void*> session{nullptr};  // the Session whose blocks these are
  std::atomic<const void*> core{nullptr};     // the same session's core, for Buffers
  uintptr_t base = 0;                         // where the pool is mapped
  uint64_t bytes = 0;                         // how far it reaches
  const PageEntry* pages = nullptr;
  uint64_t allocations = 0;  // written by CountOne, read by anyone with ReadCount
  std::atomic<bool> busy{false};
  uint16_t stack_of[kInlineBytes / 8 + 1] = {};  // by (size + 7) / 8: byte offset of the stack
  Stack stacks[kStacks];
};

// The cache of the session this thread used last; never null. A constant initial value and the
// initial-exec model make reading it one instruction.
extern constinit thread_local ThreadCache* hot_cache __attribute__((tls_model("initial-exec")));

// ThreadSanitizer knows nothing of membarrier; it is shown the full order instead.
#if defined(__SANITIZE_THREAD__)
inline constexpr std::memory_order kMarkOrder = std::memory_order_seq_cst;
inline constexpr std::memory_order kKeyOrder = std::memory_order_seq_cst;
#else
inline constexpr std::memory_order kMarkOrder = std::memory_order_relaxed;
// acquire: pairs with the release that puts the keys back after somebody else used the stacks.
inline constexpr std::memory_order kKeyOrder = std::memory_order_acquire;
#endif

inline void Mark(ThreadCache* cache) {
  cache->busy.store(true, kMarkOrder);
  // The processor may let the load of the key overtake this store; membarrier makes up for it. The
  // compiler may not.
  std::atomic_signal_fence(std::memory_order_seq_cst);
}
inline void Unmark(ThreadCache* cache) {
  // release: pairs with the acquire of whoever waits for busy to clear before it reads the stacks.
  cache->busy.store(false, std::memory_order_release);
}

// Adds one to a counter that only the calling thread writes. Readers load it atomically; a single
// plain increment is what a relaxed load and store amount to, in one instruction instead of three.
inline void CountOne(uint64_t* counter) {
#if defined(__SANITIZE_THREAD__)
  __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
#else
  ++*counter;
#endif
}
inline uint64_t ReadCount(const uint64_t* counter) {
  return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

// Pops a block from the stack at `offset`; null if there is none or the cache is not `key`'s.
inline void* Pop(ThreadCache* cache, std::atomic<const void*> ThreadCache::*key_field,
                 const void* key, size_t offset) {
  Mark(cache);
  if (__builtin_expect((cache->*key_field).load(kKeyOrder) == key, 1)) {
    auto& stack = *reinterpret_cast<Stack*>(reinterpret_cast<char*>(cache->stacks) + offset);
    void** top = stack.top;
    if (__builtin_expect(top != stack.floor, 1)) {
      void* block = *--top;
      if (block == nullptr) __builtin_unreachable();  // spares the caller's test
      stack.top = top;
      CountOne(&cache->allocations);
      Unmark(cache);
      return block;
    }
  }
  Unmark(cache);
  return nullptr;
}

// Pushes `block` on its stack. False, with nothing done, if it is not the start of a block that
// has a stack, the stack is full, or the cache is not `key`'s.
inline bool Push(ThreadCache* cache, std::atomic<const void*> ThreadCache::*key_field,
                 const void* key, void* block) {
  Mark(cache);
  if (__builtin_expect((cache->*key_field).load(kKeyOrder) == key, 1)) {
    const uint64_t offset = reinterpret_cast<uintptr_t>(block) - cache->base;
    if (__builtin_expect(offset < cache->bytes, 1)) {
      // relaxed: whoever passed the block to this thread made the entry visible with it.
      const uint64_t entry = cache->pages[offset >> 13].load(std::memory_order_relaxed);
      auto& stack = *reinterpret_cast<Stack*>(reinterpret_cast<char*>(cache->stacks) +
                                              static_cast<uint16_t>(entry));
      const uint32_t residue =
          static_cast<uint32_t>(offset) * stack.reciprocal - static_cast<uint32_t>(entry >> 32);
      void** top = stack.top;
      if (__builtin_expect(residue < stack.reciprocal, 1) &&
          __builtin_expect(top != stack.limit, 1)) {
        *top = block;
        stack.top = top + 1;
        Unmark(cache);
        return true;
      }
    }
  }
  Unmark(cache);
  return false;
}

}  // namespace spanpool::internal

#endif  // SPANPOOL_THREAD_CACHE_H_

// The hot path: per thread, a stack of free blocks for each class of blocks. Users include
// spanpool.h, not this.
//
// Allocating pops, freeing looks the block's page up and pushes. Neither takes a lock, uses an
// atomic read-modify-write or writes memory that another thread writes; both are inline up to the
// miss.
//
// Others may want the blocks of a thread that is idle, and cannot know whether it was stopped in
// the middle of an operation. So an operation first acts and then looks: it moves `top`, and then
// reads the key. Whoever drains a cache clears its keys, has every running thread pass a barrier
// (membarrier), and reads the tops. An operation that read the key before the barrier is complete,
// and its top is seen; any other will find the key gone, and learns in the slow path (Undo...)
// whether the block it moved was taken from under it. Nobody waits for anybody.
//
// Invariants
//  1. Only the owning thread writes tops, floors, limits, the places of blocks and `allocations`.
//     A cache that was drained stays without keys, and is not drained again, until the owner has
//     settled its stacks: so at most one operation runs on tops that no longer count.
//  2. floor ≤ top ≤ limit; unless it was drained, the blocks in [floor, top) are free and in no
//     other stack.
//  3. Stack 0 is always both empty and full and its reciprocal is 0, so that pages which hold no
//     small block (entry 0) need no test of their own.
//  4. `bytes` is 0 before the memory behind `pages` goes.
//
// Where the processor orders stores after earlier stores and loads after earlier loads (x86), the
// memory orders below cost no instruction.

#ifndef SPANPOOL_THREAD_CACHE_H_
#define SPANPOOL_THREAD_CACHE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace spanpool::internal {

// Sizes are looked up in steps of 8 bytes up to 1 KiB, of 128 bytes up to 32 KiB, and of pages (8
// KiB) up to 4 MiB, the largest that threads keep stacks of.
inline constexpr size_t kFineBytes = 1 << 10;
inline constexpr size_t kMediumBytes = 32 << 10;
inline constexpr size_t kInlineBytes = 4 << 20;
inline constexpr size_t kFineSizes = kFineBytes / 8 + 1;
inline constexpr size_t kMediumSizes = (kMediumBytes - kFineBytes) / 128;
inline constexpr size_t kInlineSizes =
    kFineSizes + kMediumSizes + (kInlineBytes - kMediumBytes) / 8192;

// Requires bytes <= kInlineBytes. The largest size of an index is SizeOfIndex().
constexpr size_t IndexOfSize(size_t bytes) {
  if (__builtin_expect(bytes <= kFineBytes, 1)) return (bytes + 7) / 8;
  if (bytes <= kMediumBytes) return (bytes + 127) / 128 + (kFineSizes - 1 - kFineBytes / 128);
  return (bytes + 8191) / 8192 + (kFineSizes + kMediumSizes - 1 - kMediumBytes / 8192);
}
constexpr size_t SizeOfIndex(size_t index) {
  if (index < kFineSizes) return index * 8;
  index -= kFineSizes - 1;
  if (index <= kMediumSizes) return kFineBytes + index * 128;
  return kMediumBytes + (index - kMediumSizes) * 8192;
}

// 136 span classes; then the sizes of large blocks from 5 to 512 pages.
inline constexpr size_t kSpanClassStacks = 136;
inline constexpr size_t kLargeStacks = 52;
inline constexpr size_t kStacks = kSpanClassStacks + kLargeStacks;

struct Stack {
  std::atomic<void**> top{nullptr};  // one above the block that was freed last
  void** floor = nullptr;            // constant
  void** limit = nullptr;            // moved by the slow path only
  // ⌈2^32 / bytes per block⌉: offset × reciprocal, modulo 2^32, is below reciprocal exactly for
  // offsets that are a multiple of the block size.
  uint32_t reciprocal = 0;
  uint32_t unused = 0;
};
static_assert(sizeof(Stack) == 32);

// What the hot path knows of a page: `product` and `stack`, both 0 if it holds no block that may be
// freed inline. Written with WritePlain, read with ReadPlain, each field by itself: who was passed
// a block sees the fields as they were written before, and of any other page sees what may be stale
// or mixed. Such a page is not recognised reliably, and freeing into it is an error of the
// program's.
struct alignas(8) PageEntry {
  uint32_t product = 0;  // the span's offset in the pool × reciprocal, modulo 2^32
  uint16_t stack = 0;    // the byte offset of its stack within ThreadCache::stacks
  uint16_t flags = 0;    // not the hot path's
};

struct ThreadCache {
  // The keys, read with ReadKey; null if there are none.
  const void* session = nullptr;  // the Session whose blocks these are
  const void* core = nullptr;     // the same session's core, for Buffers
  uintptr_t base = 0;             // where the pool is mapped
  uint64_t bytes = 0;             // how far it reaches; see ReadPlain
  const PageEntry* pages = nullptr;
  uint64_t allocations = 0;              // written by CountOne, read by anyone with ReadCount
  uint16_t stack_of[kInlineSizes] = {};  // by IndexOfSize: byte offset of the stack
  Stack stacks[kStacks];
};

// The cache of the session this thread used last; never null. A constant initial value and the
// initial-exec model make reading it one instruction.
extern constinit thread_local ThreadCache* hot_cache __attribute__((tls_model("initial-exec")));

// What other threads may read or write meanwhile is read and written by the following. A plain load
// or store is what a relaxed one amounts to, but can be a part of the instruction that compares or
// adds. ThreadSanitizer is shown atomic ones; and since it knows nothing of membarrier, the full
// order instead.
#if defined(__SANITIZE_THREAD__)
inline constexpr std::memory_order kTopOrder = std::memory_order_seq_cst;
inline const void* ReadKey(const void* const* key) {
  return __atomic_load_n(key, __ATOMIC_SEQ_CST);
}
template <typename T>
inline T ReadPlain(const T* value) {
  return __atomic_load_n(value, __ATOMIC_RELAXED);
}
#else
// release: pairs with the acquire of who drains; the block stands in its place before.
inline constexpr std::memory_order kTopOrder = std::memory_order_release;
// As if relaxed: nothing is reached through a key.
inline const void* ReadKey(const void* const* key) { return *key; }
template <typename T>
inline T ReadPlain(const T* value) {
  return *value;
}
#endif
template <typename T>
inline void WritePlain(T* place, T value) {
  __atomic_store_n(place, value, __ATOMIC_RELAXED);
}

// Adds one to a counter that only the calling thread writes. Readers use ReadCount.
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

// The slow ends of Pop and Push, for an operation that found its key gone after it had moved the
// top of the stack at `offset` from `top`. Afterwards it is as if the operation had not been begun;
// but UndoPush may return true: the block had been pushed in time to be drained with the others,
// and so is free.
void UndoPop(ThreadCache* cache, size_t offset, void** top);
bool UndoPush(ThreadCache* cache, size_t offset, void** top, const void* key);

// Pops a block from the stack at `offset`; null if there is none or the cache is not `key`'s.
inline void* Pop(ThreadCache* cache, const void* ThreadCache::*key_field, const void* key,
                 size_t offset) {
  auto& stack = *reinterpret_cast<Stack*>(reinterpret_cast<char*>(cache->stacks) + offset);
  void** const top = stack.top.load(std::memory_order_relaxed);
  if (__builtin_expect(top == stack.floor, 0)) return nullptr;
  void* const block = top[-1];
  if (block == nullptr) __builtin_unreachable();  // spares the caller's test
  stack.top.store(top - 1, kTopOrder);
  // The processor may let the load of the key overtake the store; membarrier makes up for it. The
  // compiler may not.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (__builtin_expect(ReadKey(&(cache->*key_field)) != key, 0)) {
    UndoPop(cache, offset, top);
    return nullptr;
  }
  CountOne(&cache->allocations);
  return block;
}

// What a push came to, with what UndoPush is told if its key was gone.
struct Pushed {
  enum Result : uint32_t { kDone, kNotDone, kKeyGone } result;
  uint32_t offset = 0;
  void** top = nullptr;
};
inline Pushed TryPush(ThreadCache* cache, const void* ThreadCache::*key_field, const void* key,
                      void* block) {
  const uint64_t offset = reinterpret_cast<uintptr_t>(block) - cache->base;
  if (__builtin_expect(offset >= ReadPlain(&cache->bytes), 0)) return {Pushed::kNotDone};
  const PageEntry* const page = &cache->pages[offset >> 13];
  const size_t stack_offset = ReadPlain(&page->stack);
  auto& stack = *reinterpret_cast<Stack*>(reinterpret_cast<char*>(cache->stacks) + stack_offset);
  const uint32_t residue =
      static_cast<uint32_t>(offset) * stack.reciprocal - ReadPlain(&page->product);
  if (__builtin_expect(residue >= stack.reciprocal, 0)) return {Pushed::kNotDone};
  void** const top = stack.top.load(std::memory_order_relaxed);
  if (__builtin_expect(top == stack.limit, 0)) return {Pushed::kNotDone};
  *top = block;
  stack.top.store(top + 1, kTopOrder);
  std::atomic_signal_fence(std::memory_order_seq_cst);  // as in Pop
  if (__builtin_expect(ReadKey(&(cache->*key_field)) != key, 0)) {
    return {Pushed::kKeyGone, static_cast<uint32_t>(stack_offset), top};
  }
  return {Pushed::kDone};
}
// What is left to do after TryPush. True: the block was pushed.
inline bool FinishPush(ThreadCache* cache, const void* key, const Pushed& pushed) {
  if (__builtin_expect(pushed.result == Pushed::kDone, 1)) return true;
  return pushed.result == Pushed::kKeyGone && UndoPush(cache, pushed.offset, pushed.top, key);
}

// Pushes `block` on its stack. False, with nothing done, if it is not the start of a block that
// has a stack, the stack is full, or the cache is not `key`'s.
inline bool Push(ThreadCache* cache, const void* ThreadCache::*key_field, const void* key,
                 void* block) {
  return FinishPush(cache, key, TryPush(cache, key_field, key, block));
}

}  // namespace spanpool::internal

#endif  // SPANPOOL_THREAD_CACHE_H_

// The allocators that traces are replayed against, behind one door shaped like malloc.
//
//   malloc      the C library's, or whichever LD_PRELOAD puts in its place (jemalloc, tcmalloc)
//   linear      LinearAlloc over one large reservation: nothing is ever given back
//   free_list   FreeListAlloc over the same, extended at its end as a program break is
//   size_class  the heap of allocator/ on anonymous memory: blocks from spans, spans from the heap
//
// size_class does what a process that uses the heap alone would: per size class it takes blocks
// from the first span that has one free, asks the heap for a span when none has, and returns a span
// when its last block is free, keeping one per class.
//
// Not thread-safe.

#ifndef SPANPOOL_BENCH_TRACE_BLOCK_ALLOCATORS_H_
#define SPANPOOL_BENCH_TRACE_BLOCK_ALLOCATORS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace spanpool::bench {

class BlockAllocator {
 public:
  virtual ~BlockAllocator() = default;

  // Null when out of memory. `alignment` is a power of two; 16 stands for malloc's own rule.
  virtual void* Alloc(size_t bytes, size_t alignment) = 0;
  // Takes back what Alloc gave for `bytes`.
  virtual void Free(void* block, size_t bytes) = 0;
  // How much of the block its owner may use: at least `bytes`.
  virtual size_t Usable(void* block, size_t bytes) = 0;
  // Into how many pieces free memory is broken, where an allocator can say: what a walk passes.
  virtual size_t holes() const { return 0; }
  // What other processes hold in memory for this one, and how long they have worked (processor
  // time, in nanoseconds). Differences count: what was there before may be in both.
  virtual uint64_t bytes_elsewhere() { return 0; }
  virtual double ns_elsewhere() { return 0; }
};

// Null for a name that is none of the above.
std::unique_ptr<BlockAllocator> MakeBlockAllocator(std::string_view name);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_TRACE_BLOCK_ALLOCATORS_H_

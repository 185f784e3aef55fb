// The textbook allocator: a linked list of free blocks in address order, first fit, splitting and
// coalescing.
//
// Allocation walks the list from the start and takes the first block that is long enough; what is
// left of it stays in the list. Freeing walks to the place the block belongs and joins it with its
// neighbours. Memory is used again, so it does better than a bump pointer; but blocks of all sizes
// and lives lie side by side, so long-lived small ones break what is free into pieces that no
// larger request fits into (external fragmentation), and every call costs a walk over those pieces.
// `./dev bench fragmentation` shows both against the heap's size classes.
//
// Positions are plain bytes in a range given by the owner; the memory is not touched, and freeing
// names the length. Lengths are rounded up to 16 bytes, as they are where links lie in free blocks.
//
// Invariants
//  1. Free blocks are in ascending order, none empty, and no two touch: each is as long as can be.
//  2. All lie in [begin, end); their lengths add up to free_bytes.
//
// Not thread-safe: one owner, or its lock.

#ifndef SPANPOOL_ALLOCATOR_FREE_LIST_ALLOC_H_
#define SPANPOOL_ALLOCATOR_FREE_LIST_ALLOC_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "allocator/fix_alloc.h"
#include "allocator/linear_alloc.h"

namespace spanpool {

class FreeListAlloc {
 public:
  static constexpr uint64_t kGrain = 16;

  // [begin, end) is free; both are multiples of kGrain (CHECK). `memory` holds the list and
  // outlives the allocator.
  FreeListAlloc(PersistentAlloc* memory, uint64_t begin, uint64_t end);

  // The lowest place for `bytes` bytes at a multiple of `alignment`, a power of two (CHECK); 0
  // bytes take as much as 1. Nothing if no free block is long enough, or the list itself has no
  // memory.
  std::optional<uint64_t> Alloc(uint64_t bytes, uint64_t alignment = kGrain);

  // Takes back what Alloc gave for `bytes`. A block that is free in part, or not in the range, is a
  // bug of the caller (CHECK). A part of a block can be freed if it begins and ends on a grain.
  // False when the list has no memory to note it: nothing has changed, try again later.
  bool Free(uint64_t position, uint64_t bytes);

  // Adds [end, new_end) to the range. False when the list has no memory to note it.
  bool Extend(uint64_t new_end);

  uint64_t begin() const { return begin_; }
  uint64_t end() const { return end_; }
  uint64_t free_bytes() const { return free_bytes_; }
  size_t free_blocks() const { return nodes_.in_use(); }
  // O(free blocks).
  uint64_t largest_free() const;
  // List nodes looked at since the beginning: what the walks have cost.
  uint64_t steps() const { return steps_; }

  // Aborts unless the invariants hold. O(free blocks).
  void CheckInvariants() const;

 private:
  struct Node {
    uint64_t begin = 0;
    uint64_t end = 0;
    Node* next = nullptr;
  };

  static std::optional<uint64_t> Round(uint64_t bytes);

  const uint64_t begin_;
  uint64_t end_;
  FixAlloc<Node> nodes_;
  Node* head_ = nullptr;
  uint64_t free_bytes_ = 0;
  uint64_t steps_ = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_FREE_LIST_ALLOC_H_

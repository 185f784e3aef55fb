// Records of one type, taken and given back one at a time: the last one given back is the next
// taken.
//
// The heap's own records (spans, specials) come from here. A record is constructed once, when it is
// carved from a 16 KiB chunk, and then shown to the `first` hook: that is how a new span gets into
// the list of all spans exactly once. From then on it is only handed out and taken back: *its
// fields keep their values*, and its address is a record of this type for as long as the allocator
// lives. A sweeper that still holds a pointer to a span freed meanwhile reads a valid sweep
// generation there, and loses its race instead of winning it on a zeroed value. Whoever takes a
// record sets what must not be left over.
//
// Links of the free list lie beside the records, not in them, for the same reason.
//
// Invariants
//  1. in_use + records in the free list = records carved.
//  2. A carved record is never destroyed before the allocator is.
//
// Not thread-safe: one owner, or its lock.

#ifndef SPANPOOL_ALLOCATOR_FIX_ALLOC_H_
#define SPANPOOL_ALLOCATOR_FIX_ALLOC_H_

#include <algorithm>
#include <cstddef>
#include <functional>
#include <new>
#include <utility>
#include <vector>

#include "allocator/check.h"
#include "allocator/linear_alloc.h"

namespace spanpool {

template <typename T>
class FixAlloc {
 public:
  static constexpr size_t kChunkBytes = size_t{16} << 10;
  using First = std::function<void(T*)>;

  // `memory` outlives the allocator. `first` sees each record once, right after its construction;
  // it must not use this allocator.
  explicit FixAlloc(PersistentAlloc* memory, First first = nullptr)
      : memory_(memory), first_(std::move(first)) {}

  // Destroys all records, in use or not.
  ~FixAlloc() {
    ForEach([](T* record) { record->~T(); });
  }
  FixAlloc(const FixAlloc&) = delete;
  FixAlloc& operator=(const FixAlloc&) = delete;

  // A record with the fields it was given back with, or a new one, value-initialised. Null when
  // there is no memory for a new chunk; try again later.
  T* Alloc() {
    if (free_ != nullptr) {
      Slot* slot = free_;
      free_ = slot->next_free;
      slot->next_free = nullptr;
      ++in_use_;
      return &slot->record;
    }
    if (chunks_.empty() || carved_of_last_ == kSlotsPerChunk) {
      void* chunk = memory_->Alloc(kChunkBytes, std::max(alignof(Slot), size_t{64}));
      if (chunk == nullptr) return nullptr;
      chunks_.push_back(static_cast<Slot*>(chunk));
      carved_of_last_ = 0;
    }
    Slot* slot = new (chunks_.back() + carved_of_last_) Slot;
    ++carved_of_last_;
    ++in_use_;
    if (first_) first_(&slot->record);
    return &slot->record;
  }

  // Takes back a record that Alloc gave. Requires that nobody else gives it back, too.
  void Free(T* record) {
    SPANPOOL_CHECK_GT(in_use_, 0u);
    // The record is the slot's first member.
    Slot* slot = reinterpret_cast<Slot*>(record);
    slot->next_free = free_;
    free_ = slot;
    --in_use_;
  }

  // Calls f(record) for every record carved, in use or not, in the order of carving.
  template <typename F>
  void ForEach(F f) {
    for (Slot* chunk : chunks_) {
      const size_t n = chunk == chunks_.back() ? carved_of_last_ : kSlotsPerChunk;
      for (size_t i = 0; i < n; ++i) f(&chunk[i].record);
    }
  }

  size_t in_use() const { return in_use_; }
  size_t carved() const {
    return chunks_.empty() ? 0 : (chunks_.size() - 1) * kSlotsPerChunk + carved_of_last_;
  }

  // Aborts unless every record is in use or in the free list once. O(records).
  void CheckInvariants() const {
    size_t free = 0;
    for (const Slot* slot = free_; slot != nullptr; slot = slot->next_free) {
      SPANPOOL_CHECK(Carved(slot));
      SPANPOOL_CHECK_LE(++free, carved()) << "a record was given back twice";
    }
    SPANPOOL_CHECK_EQ(in_use_ + free, carved());
  }

 private:
  struct Slot {
    T record{};
    Slot* next_free = nullptr;
  };
  static constexpr size_t kSlotsPerChunk = kChunkBytes / sizeof(Slot);
  static_assert(kSlotsPerChunk >= 1, "too large a record");
  static_assert(alignof(Slot) <= PersistentAlloc::kMaxAlignment);

  bool Carved(const Slot* slot) const {
    for (const Slot* chunk : chunks_) {
      const size_t n = chunk == chunks_.back() ? carved_of_last_ : kSlotsPerChunk;
      if (!std::less<const Slot*>()(slot, chunk) && std::less<const Slot*>()(slot, chunk + n)) {
        return true;
      }
    }
    return false;
  }

  PersistentAlloc* const memory_;
  const First first_;
  Slot* free_ = nullptr;
  std::vector<Slot*> chunks_;
  size_t carved_of_last_ = 0;  // slots of chunks_.back() that hold a record
  size_t in_use_ = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_FIX_ALLOC_H_

// The pool in this process's address space: one reserved range, mapped arena by arena.
//
// The range covers every offset that the pool may ever use, in whole arenas, so that an offset and
// a pointer differ by one constant and a block may span arenas. Block tables lie in a second range.
// Both are reserved without memory (PROT_NONE) and filled in as arenas are met; nothing is unmapped
// before the end.
//
// Invariants
//  1. An arena whose bit is set is mapped, data and table, until destruction.
//  2. Mappings are neither inherited by forked children nor written to core dumps.
//
// Thread-safe: looking up takes no lock; mapping does, and one arena is mapped once.

#ifndef SPANPOOL_CLIENT_ADDRESS_RANGE_H_
#define SPANPOOL_CLIENT_ADDRESS_RANGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "client/span_source.h"
#include "proto/layout/block_table.h"

namespace spanpool::internal {

// Where the block tables of all arenas are, mapped or not: first the words of all, one behind the
// other, so that a word is found by its granule alone; then the marks of all.
class BlockTables {
 public:
  static constexpr size_t kWordsBytes = sizeof(layout::BlockTable::words);
  static constexpr size_t kMarksBytes = layout::kBlockTableBytes - kWordsBytes;

  BlockTables() = default;
  BlockTables(uintptr_t words, uintptr_t marks) : words_(words), marks_(marks) {}

  // Both require that the arena is mapped.
  layout::SharedWord& WordOf(GranuleId granule) const {
    return reinterpret_cast<layout::SharedWord*>(words_)[granule.value()];
  }
  layout::BlockMarks& MarksOf(ArenaIndex arena) const {
    return *reinterpret_cast<layout::BlockMarks*>(MarksAt(arena));
  }

  // Where the two parts of an arena's table are mapped.
  uintptr_t WordsAt(ArenaIndex arena) const { return words_ + arena.value() * kWordsBytes; }
  uintptr_t MarksAt(ArenaIndex arena) const { return marks_ + arena.value() * kMarksBytes; }

 private:
  uintptr_t words_ = 0;
  uintptr_t marks_ = 0;
};

class AddressRange {
 public:
  // Reserves room for offsets below `address_bytes`, at most 2^44. `source` outlives the range.
  //   RESOURCE_EXHAUSTED  the process has no such stretch of address space (ulimit -v?)
  static absl::StatusOr<std::unique_ptr<AddressRange>> Reserve(uint64_t address_bytes,
                                                               bool writable, SpanSource* source);
  ~AddressRange();
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;

  uintptr_t base() const { return base_; }
  // The length of the range: whole arenas.
  uint64_t bytes() const { return uint64_t{arenas_} << kArenaShift; }

  std::byte* PointerTo(PoolOffset offset) const {
    return reinterpret_cast<std::byte*>(base_ + offset.value());
  }
  bool Contains(const void* pointer) const {
    return reinterpret_cast<uintptr_t>(pointer) - base_ < bytes();
  }
  // Requires Contains(pointer).
  PoolOffset OffsetOf(const void* pointer) const {
    return PoolOffset(reinterpret_cast<uintptr_t>(pointer) - base_);
  }

  bool IsMapped(ArenaIndex arena) const {
    // acquire: pairs with the release in Map, after which the mapping stands.
    return (mapped_[arena.value() / 64].load(std::memory_order_acquire) >> (arena.value() % 64)) &
           1;
  }
  // Whether [offset, offset + length), which the range covers, lies in one mapped arena.
  bool IsMapped(PoolOffset offset, uint64_t length) const {
    return offset.value() % kArenaBytes + length <= kArenaBytes && IsMapped(ArenaOf(offset));
  }
  // Whether [offset, offset + length) lies within the range; any values are allowed.
  bool Covers(PoolOffset offset, uint64_t length) const {
    return offset.value() < bytes() && length <= bytes() - offset.value();
  }

  // Maps the arenas of a range of bytes within the pool that are not mapped yet.
  //   INVALID_ARGUMENT    the range leaves the pool
  //   NOT_FOUND           the pool has no such arena
  //   RESOURCE_EXHAUSTED  mmap failed: vm.max_map_count or memory
  //   UNAVAILABLE         the daemon did not answer
  absl::Status EnsureMapped(PoolOffset offset, uint64_t length) {
    if (ABSL_PREDICT_TRUE(Covers(offset, length))) {
      if (ABSL_PREDICT_TRUE(IsMapped(offset, length))) return absl::OkStatus();
    }
    return MapMissing(offset, length);
  }

  // Maps what lies behind a range of bytes of mapped arenas now rather than when it is touched; a
  // hint, which may fail.
  void Prefault(PoolOffset offset, uint64_t length);

  const BlockTables& tables() const { return tables_; }
  // Both require that the arena is mapped.
  layout::BlockMarks& MarksOf(ArenaIndex arena) const { return tables_.MarksOf(arena); }
  layout::SharedWord& WordOf(GranuleId granule) const { return tables_.WordOf(granule); }

 private:
  AddressRange(uint32_t arenas, bool writable, SpanSource* source);
  absl::Status MapMissing(PoolOffset offset, uint64_t length);
  absl::Status Map(ArenaIndex arena);

  // Constant after construction.
  const uint32_t arenas_;
  const bool writable_;
  SpanSource* const source_;
  void* reservation_ = nullptr;  // data, before it is aligned to an arena
  size_t reservation_bytes_ = 0;
  uintptr_t base_ = 0;
  void* tables_reservation_ = nullptr;
  size_t tables_bytes_ = 0;
  BlockTables tables_;

  // One bit per arena; written under mu_.
  const std::unique_ptr<std::atomic<uint64_t>[]> mapped_;
  RankedMutex mu_{LockRank::kLeaf};
  // The arena that a thread is asking the daemon for, with mu_ released; others wait their turn.
  bool mapping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_ADDRESS_RANGE_H_

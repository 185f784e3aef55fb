// Arenas of private memory: for tests, and for a heap used inside one process.
//
// One range of addresses is reserved for all arenas there may ever be, so that a pool offset and an
// address differ by a constant, and a span may cross arenas.
//
// Thread-safe.

#ifndef SPANPOOL_ALLOCATOR_ANONYMOUS_ARENA_SOURCE_H_
#define SPANPOOL_ALLOCATOR_ANONYMOUS_ARENA_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/arena_source.h"
#include "allocator/lock_rank.h"
#include "allocator/page_ranges.h"
#include "allocator/units.h"

namespace spanpool {

class AnonymousArenaSource : public ArenaSource {
 public:
  // Reserves addresses for `max_arenas` arenas; aborts if there are not that many.
  explicit AnonymousArenaSource(uint32_t max_arenas);
  ~AnonymousArenaSource() override;
  AnonymousArenaSource(const AnonymousArenaSource&) = delete;
  AnonymousArenaSource& operator=(const AnonymousArenaSource&) = delete;

  // Beyond `max_arenas`: RESOURCE_EXHAUSTED.
  absl::Status Create(ArenaIndex arena) override;
  absl::Status Populate(PageRange pages) override;
  absl::Status Discard(PageRange pages) override;
  // Not those that are swapped out.
  absl::StatusOr<PageRanges> FindBacked(PageRange pages) override;

  // The address of `offset`; readable and writable where it was populated.
  std::byte* At(PoolOffset offset) const { return base_ + offset.value(); }
  // The inverse; requires an address within the reserved range.
  PoolOffset OffsetOfAddress(const void* address) const {
    return PoolOffset(static_cast<uint64_t>(static_cast<const std::byte*>(address) - base_));
  }

 private:
  const uint32_t max_arenas_;
  std::byte* base_;  // constant after construction

  RankedMutex mu_{LockRank::kArenaSource};
  std::set<ArenaIndex> created_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_ANONYMOUS_ARENA_SOURCE_H_

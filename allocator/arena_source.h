// Where the heap's memory comes from, 64 MiB arena by arena.
//
// An arena is created once, with no memory behind it; its pages are then backed (Populate) before
// they are granted and may be given back (Discard). Backing pages is the dearest step there is, so
// the heap asks for it ahead of demand.
//
// Implementations: MemfdArenaSource (sealed memfds that are passed to clients),
// AnonymousArenaSource (private memory, for tests and for the heap used alone), FaultyArenaSource
// (fails on demand, for tests).

#ifndef SPANPOOL_ALLOCATOR_ARENA_SOURCE_H_
#define SPANPOOL_ALLOCATOR_ARENA_SOURCE_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/page_ranges.h"
#include "allocator/units.h"

namespace spanpool {

// Thread-safe; every call may block in the kernel.
class ArenaSource {
 public:
  virtual ~ArenaSource() = default;

  // Creates arena `arena`, 64 MiB, not backed by memory.
  //   RESOURCE_EXHAUSTED  no descriptor or address space left
  //   ALREADY_EXISTS      it was created before; try the next index
  virtual absl::Status Create(ArenaIndex arena) = 0;

  // Backs `pages` with zeroed memory; pages already backed keep their contents. The range may span
  // arenas, all of them created.
  //   RESOURCE_EXHAUSTED  no memory; nothing is promised about which pages were backed
  virtual absl::Status Populate(PageRange pages) = 0;

  // Memory comes and goes by aligned runs of so many pages, a power of two up to 256: Populate
  // backs all of each run that it touches or, where it fails, none of it; Discard is given whole
  // runs. Constant.
  virtual PageCount unit() const { return PageCount(1); }

  // Gives the memory of `pages` back to the system; they read as zeroes when populated again.
  virtual absl::Status Discard(PageRange pages) = 0;

  // Those of `pages`, whole units in arenas that exist, that have memory behind all of them: whole
  // units. The others may have memory as well, in part or all of them, for not every system tells;
  // whoever must know populates or discards them. For a heap that takes over arenas
  // (Heap::Restore). Unless overridden, none is known.
  virtual absl::StatusOr<PageRanges> FindBacked(PageRange /*pages*/) { return PageRanges(); }
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_ARENA_SOURCE_H_

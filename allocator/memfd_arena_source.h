// Arenas that can be passed to other processes: memfds, sealed.
//
// Each arena is two files. The *data* memfd holds its 64 MiB of blocks; the *block table* memfd
// holds what members of the pool keep about those blocks, in a size and format that is not this
// layer's business. Both have their final size and are sealed against any other before anyone else
// sees them, so no mapping of them can ever fault beyond the end. Their mode is 0444: a descriptor
// opened read-only cannot be reopened for writing by another user.
//
// Memory is allocated by this process (fallocate), so it is charged to its cgroup, and whoever
// touches an allocated page later can get neither an error nor SIGBUS.
//
// Thread-safe. Lock rank: kArenaSource, never held across a kernel call.

#ifndef SPANPOOL_ALLOCATOR_MEMFD_ARENA_SOURCE_H_
#define SPANPOOL_ALLOCATOR_MEMFD_ARENA_SOURCE_H_

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/arena_source.h"
#include "allocator/lock_rank.h"
#include "allocator/page_ranges.h"
#include "allocator/units.h"

namespace spanpool {

class MemfdArenaSource : public ArenaSource {
 public:
  enum class Kind : uint8_t {
    kPages,      // the system's pages
    kHugePages,  // 2 MiB pages that the administrator has set aside (vm.nr_hugepages)
  };
  static constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

  // `name` shows in /proc/*/maps, as "name.3.data" and "name.3.table". Each arena gets a block
  // table of `table_bytes` bytes; 0 = none.
  // With huge pages memory comes and goes by 2 MiB: Populate backs those that a range touches, and
  // Discard is refused (INVALID_ARGUMENT) unless its range is made of whole ones, for the kernel
  // would clear a part of one and keep it. Tables are never of huge pages.
  MemfdArenaSource(std::string name, uint64_t table_bytes, Kind kind = Kind::kPages);
  // Closes the descriptors; memory that others still map lives on.
  ~MemfdArenaSource() override;
  MemfdArenaSource(const MemfdArenaSource&) = delete;
  MemfdArenaSource& operator=(const MemfdArenaSource&) = delete;

  absl::Status Create(ArenaIndex arena) override;
  // Instead of Create: takes over the files that an earlier source of the same name, table_bytes
  // and kind made for this arena, contents and memory as they are; `table` is -1 if arenas have
  // none. They are this object's if OK is returned, and stay the caller's otherwise.
  //   INVALID_ARGUMENT  one of them is not what it should be: says which one, what it should be and
  //                     what it is (name, kind of pages, size, access, seals)
  //   ALREADY_EXISTS    the arena was created or adopted before
  absl::Status Adopt(ArenaIndex arena, int data, int table);
  absl::Status Populate(PageRange pages) override;
  absl::Status Discard(PageRange pages) override;
  // Exact for the system's pages since Linux 6.5; before, those that were allocated and never
  // touched are not found (backed_pages.h). Of huge pages the kernel only tells how many an arena
  // has: they are found in one that has all.
  absl::StatusOr<PageRanges> FindBacked(PageRange pages) override;
  PageCount unit() const override {
    return PageCount(kind_ == Kind::kHugePages ? kHugePageBytes / kPageBytes : 1);
  }

  // Allocates zeroed memory for `bytes` bytes of the block table from `offset`; what is allocated
  // already keeps its contents.
  //   RESOURCE_EXHAUSTED  no memory
  //   OUT_OF_RANGE        the range ends past the table
  //   NOT_FOUND           the arena was never created
  absl::Status PopulateTable(ArenaIndex arena, uint64_t offset, uint64_t bytes);

  // Descriptors open for reading and writing, owned by this object; -1 if the arena was never
  // created or has no table.
  int data_fd(ArenaIndex arena) const;
  int table_fd(ArenaIndex arena) const;

  // A new descriptor of the arena's data, open for reading only; the caller closes it.
  //   NOT_FOUND           the arena was never created
  //   RESOURCE_EXHAUSTED  no descriptor left
  absl::StatusOr<int> OpenDataReadOnly(ArenaIndex arena) const;

  uint64_t table_bytes() const { return table_bytes_; }

 private:
  struct Files {
    int data = -1;
    int table = -1;
  };

  Files FilesOf(ArenaIndex arena) const;

  // Constant.
  const std::string name_;
  const uint64_t table_bytes_;
  const Kind kind_;

  mutable RankedMutex mu_{LockRank::kArenaSource};
  // An entry without descriptors stands for an arena that is being created.
  absl::flat_hash_map<ArenaIndex, Files> files_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_MEMFD_ARENA_SOURCE_H_

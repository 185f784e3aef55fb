// The arenas of one pool: their memory, and their block tables, which the daemon maps.
//
// Stands between the heap and its memfds and adds two things: memory is refused before the
// machine's or the cgroup's last bytes are asked for, and each arena's block table is mapped here
// and backed by memory of the daemon's before a client learns of the span it is for, so that
// clients are charged for none of it.
//
// Invariants
//  1. An arena's table is mapped, and its lengths and hints are backed, before Create returns.
//  2. WordOf gives only words whose memory this object backed: looking at one never allocates.
//
// With a PoolState an arena is on record, and its descriptors are kept, before it is used; the next
// worker adopts it.
//
// Arena data is never mapped in the daemon.
//
// Thread-safe. Locks only in the source, and a leaf.

#ifndef SPANPOOL_SERVER_POOL_ARENAS_H_
#define SPANPOOL_SERVER_POOL_ARENAS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "allocator/arena_source.h"
#include "allocator/lock_rank.h"
#include "allocator/memfd_arena_source.h"
#include "allocator/page_ranges.h"
#include "allocator/span.h"
#include "allocator/units.h"
#include "proto/layout/block_table.h"
#include "proto/layout/packet.h"
#include "server/memory_limit.h"
#include "server/pool_state.h"

namespace spanpool {

class PoolArenas : public ArenaSource {
 public:
  // Bytes that are always left to the machine, or the cgroup.
  static constexpr uint64_t kMarginBytes = uint64_t{32} << 20;

  // At most `max_arenas` arenas. `memory` may be null (nothing is refused in advance) and outlives
  // this object. It is not asked about huge pages, which are no part of the memory that others
  // could need: of those the kernel refuses what there is not.
  PoolArenas(const std::string& name, uint32_t max_arenas, const MemoryLimit* memory,
             MemfdArenaSource::Kind kind = MemfdArenaSource::Kind::kPages,
             PoolState* state = nullptr);
  ~PoolArenas() override;

  absl::Status Create(ArenaIndex arena) override;
  // Instead of Create, in a worker that takes over: the files that an earlier one kept. Words that
  // somebody has written count as backed; AdoptTable adds those of spans that nobody has shared.
  //   DATA_LOSS           they are not what Create makes
  //   RESOURCE_EXHAUSTED  no memory or addresses
  absl::Status Adopt(ArenaIndex arena, layout::UniqueFd data, layout::UniqueFd table);
  absl::StatusOr<PageRanges> FindBacked(PageRange pages) override {
    return source_.FindBacked(pages);
  }
  //   RESOURCE_EXHAUSTED  too little memory is left, here or in the cgroup
  //   CANCELLED           Stop was called
  absl::Status Populate(PageRange pages) override;
  absl::Status Discard(PageRange pages) override;
  PageCount unit() const override { return source_.unit(); }

  // Backs the words of `span`. Cheap once done: spans of the same pages find it so.
  //   RESOURCE_EXHAUSTED  as above
  absl::Status PrepareTable(const Span& span);

  // After Adopt: the words of `span` were backed by an earlier worker.
  void AdoptTable(const Span& span);

  // The word of `granule`, or null if no span ever held it. Any value is allowed.
  layout::SharedWord* WordOf(GranuleId granule) {
    const uint64_t index = granule.value() / kGranulesPerArena;
    if (index >= arenas_.size()) return nullptr;
    // acquire, both: pair with the releases in Create and PrepareWords; what is seen is there.
    Arena* const arena = arenas_[index].load(std::memory_order_acquire);
    if (arena == nullptr) return nullptr;
    const size_t page = granule.value() % kGranulesPerArena / kWordsPerTablePage;
    if ((arena->backed[page / 64].load(std::memory_order_acquire) >> (page % 64) & 1) == 0) {
      return nullptr;
    }
    return &layout::WordOf(*arena->table, granule);
  }
  // The table of a created arena, or null.
  layout::BlockTable* TableOf(ArenaIndex arena);

  // The 8 bytes at `offset` of the pool, as they are at this moment. Any value is allowed.
  //   NOT_FOUND  there is no arena there, or the offset is no multiple of 8
  absl::StatusOr<uint64_t> ReadData(PoolOffset offset) const;

  struct ArenaFiles {
    layout::UniqueFd read_only_data;  // set if asked for read-only
    int data = -1;
    int table = -1;
  };
  // Descriptors to send to a member; owned by this object but for read_only_data.
  //   NOT_FOUND           there is no such arena
  //   RESOURCE_EXHAUSTED  no descriptor left
  absl::StatusOr<ArenaFiles> FilesOf(ArenaIndex arena, bool writable) const;

  // From now on Populate fails: the daemon is stopping and must not spend seconds on it.
  void Stop() { stopping_.store(true, std::memory_order_relaxed); }

  uint64_t table_bytes() const { return table_bytes_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kTablePageBytes = 4096;
  static constexpr size_t kWordsPerTablePage = kTablePageBytes / sizeof(layout::SharedWord);
  static constexpr size_t kWordPages =
      sizeof(layout::BlockTable::words) / kTablePageBytes;  // 2048, of 4 KiB

  struct Arena {
    layout::BlockTable* table = nullptr;
    // Bit i: page i of the words is backed. Set after the memory is there.
    std::array<std::atomic<uint64_t>, kWordPages / 64> backed{};
  };

  Arena* Find(ArenaIndex arena) const;
  // Of an arena whose files the source has.
  absl::StatusOr<std::unique_ptr<Arena>> MapTable(ArenaIndex arena);
  void MarkBacked(Arena& arena, size_t first_page, size_t end_page);
  // Calls `f(arena, first, end)` for the table pages that the words of `span` fill, arena by arena,
  // until it fails.
  template <typename F>
  static absl::Status ForEachTableRun(const Span& span, F f);
  absl::Status PrepareWords(ArenaIndex arena, size_t first_page, size_t end_page);
  absl::Status CheckMemory(uint64_t bytes) ABSL_LOCKS_EXCLUDED(memory_mu_);

  // Constant.
  const MemoryLimit* const memory_;
  const MemfdArenaSource::Kind kind_;
  MemfdArenaSource source_;
  PoolState* const state_;

  std::vector<std::atomic<Arena*>> arenas_;  // fixed length; an entry is set once
  std::atomic<uint64_t> table_bytes_{0};
  std::atomic<bool> stopping_{false};

  RankedMutex memory_mu_{LockRank::kLeaf};
  // What was left at the last look, less what was backed since.
  uint64_t available_bytes_ ABSL_GUARDED_BY(memory_mu_) = 0;
  absl::Time looked_ ABSL_GUARDED_BY(memory_mu_) = absl::InfinitePast();
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_POOL_ARENAS_H_

// What somebody wants to be told when a block is freed: records attached to single blocks.
//
// Two kinds: a *notification* (someone waits for the block to be free) and a *profile* record (a
// sampled allocation, whose end the profile must learn). They hang on their span in a list sorted
// by block and kind; a bit in the arena's map says which spans have any, so that sweeping the
// others costs one look.
//
// A special is due when a sweep of its span finds its block free. Spans on loan are not swept: what
// happens on them is known when they come back. It is then taken off the list and handed to the
// listener, once, in order of blocks and kinds, after the span is listed or freed and with no lock
// held. By then the block may be in use again.
//
// Invariants
//  1. A span's list is strictly ascending in (block, kind).
//  2. The span's bit is set if and only if its list is not empty.
//  3. A free span has none.
//
// Thread-safe. Lock rank: kRecords.

#ifndef SPANPOOL_ALLOCATOR_SPECIALS_H_
#define SPANPOOL_ALLOCATOR_SPECIALS_H_

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "allocator/arena_map.h"
#include "allocator/fix_alloc.h"
#include "allocator/linear_alloc.h"
#include "allocator/lock_rank.h"
#include "allocator/metadata_source.h"
#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool {

// In the order in which they are reported.
enum class SpecialKind : uint8_t { kNotification = 1, kProfile = 2 };

// A block that was freed, and what was attached to it.
struct FreedBlock {
  PageId first_page;  // of the span
  uint32_t block = 0;
  SpecialKind kind = SpecialKind::kNotification;
  uint64_t value = 0;  // what the one who attached it gave

  friend bool operator==(const FreedBlock&, const FreedBlock&) = default;
};

// An element of a span's list.
struct SpecialRecord {
  uint32_t block = 0;
  SpecialKind kind = SpecialKind::kNotification;
  uint64_t value = 0;
  SpecialRecord* next = nullptr;
};

class FreedBlockListener {
 public:
  virtual ~FreedBlockListener() = default;
  // Thread-safe: any thread that sweeps calls it. No lock of the heap is held; but it must not call
  // the heap, for a sweep does not end before it returns.
  virtual void OnFreed(absl::Span<const FreedBlock> blocks) = 0;
};

class Specials {
 public:
  // `map`, `metadata` and `listener` outlive this object; `listener` may be null.
  Specials(ArenaMap* map, MetadataSource* metadata, FreedBlockListener* listener)
      : map_(map), listener_(listener), memory_(metadata), records_(&memory_) {}
  Specials(const Specials&) = delete;
  Specials& operator=(const Specials&) = delete;

  // Attaches a special to a block that is in use and stays so meanwhile.
  //   OUT_OF_RANGE        the span has no such block
  //   ALREADY_EXISTS      the block has one of this kind
  //   RESOURCE_EXHAUSTED  no memory for the record
  absl::Status Add(Span* span, uint32_t block, SpecialKind kind, uint64_t value);

  // Takes one off, unreported; false if there was none.
  bool Remove(Span* span, uint32_t block, SpecialKind kind);

  // Takes off those of blocks that are not in use, as the span's bitmap says. The caller sweeps the
  // span. Then Report, when the span is out of its hands.
  std::vector<FreedBlock> TakeDue(Span* span);
  void Report(absl::Span<const FreedBlock> due);

  uint64_t metadata_bytes() const;
  uint64_t size() const;

  // Aborts unless the span's part of the invariants holds; it is in use and stays so meanwhile.
  // Returns how many specials it has: those of all spans together are size().
  uint64_t CheckInvariants(const Span& span) const;

 private:
  // The link that points, or would point, to the special.
  static SpecialRecord** Find(Span* span, uint32_t block, SpecialKind kind);

  // Constant.
  ArenaMap* const map_;
  FreedBlockListener* const listener_;

  mutable RankedMutex mu_{LockRank::kRecords};  // guards the lists of all spans, too
  PersistentAlloc memory_ ABSL_GUARDED_BY(mu_);
  FixAlloc<SpecialRecord> records_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SPECIALS_H_

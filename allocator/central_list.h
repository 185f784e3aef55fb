// The spans of one span class that came back from their holders with blocks still in use elsewhere.
//
// Four sets: partial (some block is free) and full, swept in this cycle and not. The sweep
// generation says which is which: when a cycle begins the two swept sets become the two unswept
// ones, and no span is touched. A span is granted from the first of these that has one:
//   partial, swept       as it is
//   partial, not swept   swept first
//   full, not swept      swept first; if no block came free it goes to full, swept
// and otherwise the heap has to make one. At most 100 spans of the last two kinds are tried, so
// that a grant never costs a walk of the list: what that overlooks is at most one span in a
// hundred.
//
// A span that comes back is in the journal, as listed or as freed, before anybody else can have it;
// that is told without the lock, too.
//
// Sweeping asks `BlockStates` which blocks are in use; it may be slow, so it is done without the
// lock, by whoever swapped the span's sweep generation (span.h).
//
// Invariants
//  1. The unswept sets only shrink: everything is added to the swept ones.
//  2. They are empty when the next cycle begins.
//  3. A span of the partial sets has a free block, one of the full sets has none, as of its last
//     sweep; spans with no block in use are in no set.
//
// Thread-safe. Lock rank: kCentralList. One cache line apart from others.

#ifndef SPANPOOL_ALLOCATOR_CENTRAL_LIST_H_
#define SPANPOOL_ALLOCATOR_CENTRAL_LIST_H_

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "allocator/active_sweep.h"
#include "allocator/lock_rank.h"
#include "allocator/page_heap.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/span_set.h"
#include "allocator/specials.h"
#include "allocator/units.h"

namespace spanpool {

class alignas(ABSL_CACHELINE_SIZE) CentralList {
 public:
  // All outlive the list; `states` may be null: then no block is in use. So may `specials`.
  CentralList(SpanClass span_class, PageHeap* heap, BlockStates* states, Specials* specials);
  CentralList(const CentralList&) = delete;
  CentralList& operator=(const CentralList&) = delete;

  // Takes out a span with a free block, swept: it is on loan now. Null if none was found. The list
  // must not be that of large spans: they have one block, which is in use. Counts itself in
  // `sweep` before it takes a span that needs sweeping.
  Span* Take(ActiveSweep* sweep);

  // Takes back a span on loan (CHECK) and sweeps it: lists it, or frees it if no block is in use.
  void Return(Span* span);
  // The same in two steps, for who frees many at once. True: no block is in use, and the span is
  // the caller's to free (PageHeap). What is to be reported when it is, is added to `due`.
  bool TakeBack(Span* span, std::vector<FreedBlock>* due);

  // Lists a span on loan (CHECK) whose blocks nobody has looked at since the heap began: until it
  // is swept all of them count as in use.
  void Restore(Span* span);

  // The next cycle: the generation advances by 2. The unswept sets are empty (CHECK) and no span of
  // this list is being swept.
  void BeginCycle();

  enum Kind { kPartial, kFull };

  // Sweeps one unswept span of the kind, if there is one: lists it, or frees it. `token` is a
  // sweeper's.
  struct Swept {
    PageCount pages;  // of the span swept; 0 = there was none
    PageCount freed;  // the same if the span was freed, else 0
  };
  Swept SweepOne(const ActiveSweep::Token& token, Kind kind);

  // Sweeps `span`, whose generation the caller swapped to "being swept", wherever it is: the page
  // reclaimer finds spans by their pages. Returns the pages freed.
  PageCount SweepOwned(const ActiveSweep::Token& token, Span* span);

  // How much is listed.
  PageCount listed_pages() const {
    return PageCount(listed_pages_.load(std::memory_order_relaxed));
  }
  uint64_t listed_spans() const { return listed_spans_.load(std::memory_order_relaxed); }
  uint64_t live_blocks() const { return live_blocks_.load(std::memory_order_relaxed); }

  // Aborts unless the invariants hold. Concurrent calls must be excluded.
  void CheckInvariants() const;

 private:
  SpanSet& SweptSet(Kind kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return sets_[kind][generation_ / 2 % 2];
  }
  SpanSet& UnsweptSet(Kind kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return sets_[kind][1 - generation_ / 2 % 2];
  }

  // An unswept span whose generation is now "being swept"; null if there is none.
  Span* TakeUnsweptLocked(Kind kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Asks the states and sets the span's bitmap and count; returns the specials to report when the
  // span is out of our hands. Without the lock; the span is ours.
  std::vector<FreedBlock> SweepBlocks(Span* span);
  // Without the lock.
  void Report(const std::vector<FreedBlock>& due);
  // Sweeps a listed span that is ours, and lists it again or frees it; returns the pages freed.
  PageCount SweepListed(const ActiveSweep::Token& token, Span* span);
  // Adds a span that is ours and was just swept to the set it belongs to.
  void ListLocked(Span* span) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountIn(const Span& span);
  void CountOut(const Span& span);

  // Constant.
  const SpanClass span_class_;
  PageHeap* const heap_;
  BlockStates* const states_;
  Specials* const specials_;

  mutable RankedMutex mu_{LockRank::kCentralList};
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = Span::kFirstGeneration;
  // Guesses of empty() are made without the lock.
  SpanSet sets_[2][2];

  std::atomic<uint64_t> listed_pages_{0};
  std::atomic<uint64_t> listed_spans_{0};
  std::atomic<uint64_t> live_blocks_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_CENTRAL_LIST_H_

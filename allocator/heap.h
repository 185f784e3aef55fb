// The heap of one pool: pages, spans and central lists behind one door.
//
// The heap hands out *spans*: runs of 8 KiB pages cut into equal blocks of one span class, or one
// large run. It never looks at the memory itself and may never have it mapped; what it knows of a
// block is whether somebody still refers to it, and that it asks of a `BlockStates`.
//
// A span is always in exactly one of four places, and the statistics say how many bytes each has:
//   on loan    granted to a session; nobody but its holder carves or collects its blocks
//   in lists   returned while blocks of it live on elsewhere; in the central list of its class
//   free       its pages are in the page allocator, backed by memory
//   scavenged  its pages are in the page allocator, their memory given back to the system
//   on loan + in lists + free + scavenged = reserved (invariant 1)
//
// Thread-safe. No lock is held while the arena source is called. Lock ranks: lock_rank.h.

#ifndef SPANPOOL_ALLOCATOR_HEAP_H_
#define SPANPOOL_ALLOCATOR_HEAP_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "allocator/arena_source.h"
#include "allocator/metadata_source.h"
#include "allocator/run_pool.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/specials.h"
#include "allocator/units.h"

namespace spanpool {

struct HeapOptions {
  uint64_t limit_bytes = 0;    // spans on loan and in lists together never exceed this
  uint64_t reserve_bytes = 0;  // free memory kept backed, ahead of demand (Replenish)
  // Arenas there may be, at most kMaxArenas: how much address space whoever maps the pool needs.
  // 0 = MaxArenas(limit_bytes).
  uint32_t max_arenas = 0;
  // Is told of freed blocks that something was attached to (AddSpecial). May be null; outlives the
  // heap.
  FreedBlockListener* listener = nullptr;
  // Is told what becomes of returned spans (span.h). May be null; outlives the heap.
  SpanJournal* journal = nullptr;
  // Where the heap's records live; null = the system. Outlives the heap.
  MetadataSource* metadata = nullptr;
};

struct HeapStats {
  uint64_t limit_bytes = 0;
  uint64_t reserved_bytes = 0;      // arenas created × 64 MiB
  uint64_t on_loan_bytes = 0;       // spans granted and not returned
  uint64_t in_lists_bytes = 0;      // spans whose blocks live on elsewhere
  uint64_t free_bytes = 0;          // free pages backed by memory
  uint64_t scavenged_bytes = 0;     // free pages not backed by memory
  uint64_t live_listed_blocks = 0;  // blocks in use in listed spans, as of their last sweep
  uint64_t metadata_bytes = 0;      // the heap's own records
  uint64_t spans_on_loan = 0;
  uint64_t spans_in_lists = 0;
};

class Heap {
 public:
  // `source` and `states` outlive the heap. `states` may be null: then no block of a returned span
  // is in use, as in a heap without sharing.
  Heap(const HeapOptions& options, ArenaSource* source, BlockStates* states);
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  // Makes the heap what another one over the same arenas was when it ended, however that was:
  // `arenas` exist in the source, ascending; `spans`, ascending by first page, were on loan or
  // listed. All other pages are free; memory behind them is kept where the source knows of it. Runs
  // of the RunPool and specials are gone. Listed spans count all of their blocks as live until they
  // are swept: a cycle is begun that does that.
  // Returns the record of each of `spans` that is on loan, and null for the others. Of those
  // records in_use() is empty and needs_zero set.
  // Before anything else is done with the heap, by one thread. `states` is asked nothing yet, the
  // journal told nothing. O(spans and arenas).
  //   INVALID_ARGUMENT     arenas or spans that cannot be: out of order, one over another, in no
  //                        arena, not as long as their class says. Says which and where
  //   FAILED_PRECONDITION  the heap was used before, or its limit_bytes or max_arenas is less than
  //                        there is
  //   RESOURCE_EXHAUSTED   no memory for the records, or behind pages of a span that lost it
  //   other                the source could not say what is backed
  // After the first two nothing has changed; after the others the heap can only be destroyed, and
  // no page of a span has been touched.
  absl::StatusOr<std::vector<Span*>> Restore(absl::Span<const ArenaIndex> arenas,
                                             absl::Span<const SpanState> spans);

  // Grants one span of a small span class (size class 1..67), its pages backed by memory; blocks
  // that live on elsewhere are set in span->in_use(). Prefers spans already in the central list.
  //   INVALID_ARGUMENT    the size class is 0
  //   RESOURCE_EXHAUSTED  the limit is reached, or the source has no more memory: recall idle
  //                       spans and try again
  absl::StatusOr<Span*> Grant(SpanClass span_class);

  // Grants a large span: one block of `pages` pages, aligned to `alignment` pages (a power of two).
  //   INVALID_ARGUMENT    no pages, or an alignment that is not a power of two
  //   RESOURCE_EXHAUSTED  as above
  absl::StatusOr<Span*> GrantLarge(PageCount pages, bool scan, PageCount alignment = PageCount(1));

  // Takes back a span that Grant or GrantLarge gave out. Its blocks are swept: if none is in use
  // its pages are free at once, else it goes to its central list. The caller must not touch `span`
  // afterwards. Returning a span that is not on loan is a bug of the caller (CHECK).
  void Return(Span* span);
  // The same for many spans, of any class; cheaper, above all where they are neighbours.
  void ReturnAll(absl::Span<Span* const> spans);

  // The span that owns `page`, or null. Never fails; any value is allowed.
  Span* SpanOf(PageId page) const;

  // Attaches something to a block that is in use and stays so meanwhile; the listener is told when
  // a sweep finds it free, which is not before its span is returned (specials.h). The same block
  // takes one of each kind.
  //   OUT_OF_RANGE        the span has no such block
  //   ALREADY_EXISTS      the block has one of this kind
  //   RESOURCE_EXHAUSTED  no memory for the record
  absl::Status AddSpecial(Span* span, uint32_t block, SpecialKind kind, uint64_t value);
  // Takes it off again, unreported; false if there is none.
  bool RemoveSpecial(Span* span, uint32_t block, SpecialKind kind);

  // Runs of 8 to 64 KiB for the owner of the heap itself, under the same limit; in the statistics
  // they are on loan (run_pool.h). All are given back before the heap ends (CHECK).
  RunPool* runs();

  // Sweeps every span listed now: blocks freed by others since they were last swept are collected,
  // and spans left empty are freed. Returns the pages freed.
  PageCount Sweep();

  // A background thread's share of sweeping: begins a cycle when one is due, which is when as many
  // pages were granted afresh as are listed, and sweeps up to `spans` spans of it. True if more is
  // left to do. While a cycle goes on, grants of fresh pages sweep in proportion.
  bool SweepInBackground(uint32_t spans);

  // Backs free pages with memory until `reserve_bytes` are free and backed, or as much as the limit
  // leaves. Creates arenas as needed. Call from a background thread; slow (microseconds a page).
  //   RESOURCE_EXHAUSTED  no memory, or no addresses left
  absl::Status Replenish();

  // A background thread's share of giving memory back: discards up to 2 MiB of free memory if more
  // is kept than a tenth of the recent peak and the reserve. Returns how long to sleep before the
  // next call, so that about 1 % of a core is spent. Not thread-safe: one thread calls it.
  absl::Duration Scavenge();

  // Gives all free memory above the reserve back to the system at once, in whole runs of 2 MiB.
  // Returns the pages given back.
  PageCount Trim();

  // Arenas enough for `limit_bytes` of spans even when free pages lie scattered between them: twice
  // what they fill, and two.
  static uint32_t MaxArenas(uint64_t limit_bytes);
  uint32_t max_arenas() const;

  HeapStats stats() const;

  // Aborts unless every structure is sound. O(heap); concurrent calls must be excluded.
  void CheckInvariants() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_HEAP_H_

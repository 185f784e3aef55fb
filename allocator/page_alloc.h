// Which pages of a pool are free, and which of the free ones have memory behind them.
//
// Allocation is address-ordered first fit: of all free runs that are long enough the lowest is
// taken. That keeps what lives long together at low addresses, so that whole high stretches fall
// free and their memory can be given back; and it makes one watermark per arena enough to know
// which pages were never used. A bitmap alone would make first fit a scan of the heap, so a tree of
// summaries stands over it:
//
//   level 0   16 GiB an entry      2^14 entries      a summary says how long the free run at the
//   level 1    2 GiB               2^17              entry's start is, the longest, and the one at
//   level 2  256 MiB               2^20              its end (page_summary.h); eight siblings fill
//   level 3   32 MiB               2^23              a cache line
//   level 4    4 MiB = 1 chunk     2^26
//   bitmaps  512 pages of 8 KiB: allocated and scavenged, 128 bytes a chunk
//
// A search walks down the leftmost branch that can hold the run, adding up runs that cross borders;
// at most 8 entries of each level below the root are looked at. A change recomputes the leaves it
// touched and then parents for as long as one changes. `search_`, below which nothing is free, cuts
// off the full part of the heap.
//
// The index covers 2^48 bytes. All of it is address space from the start (about 8.6 GiB) but only
// what describes pages that exist is memory: about 32 bytes a MiB.
//
// A page is in one of three states: free and backed, free and scavenged (no memory behind it), or
// allocated. The scavenged bit of an allocated page is a note for its holder, which Free keeps:
//   Alloc … Free                                     the usual life; the run comes back as backed
//   FindScavenged, AllocRange, … ClearScavenged, Free   backing free pages without the heap's lock
//   TakeScavengable, … SetScavenged, Free            giving memory back without the heap's lock
// Where "…" fails, Free alone puts things back as they were.
//
// Invariants
//  1. Every summary equals what its children say; a leaf equals what its bitmap says.
//  2. No page below search_ is free; search_ lies in a chunk that exists, or past the index.
//  3. No free scavenged page lies below scavenged_from_.
//  4. No aligned, wholly free run of scavenge_run_ pages with a backed page among them ends above
//     scavengable_end_.
//  5. The three counts add up to the pages that exist.
//
// Not thread-safe: the heap's lock guards it. Differences from Go 1.16's pageAlloc: alignment;
// large requests are exact first fit, too; growth can fail without harm; scavenging takes aligned
// runs of 2 MiB, which is what memory files give back in one piece.

#ifndef SPANPOOL_ALLOCATOR_PAGE_ALLOC_H_
#define SPANPOOL_ALLOCATOR_PAGE_ALLOC_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

#include "absl/status/status.h"
#include "allocator/chunk_bits.h"
#include "allocator/metadata_source.h"
#include "allocator/page_summary.h"
#include "allocator/units.h"

namespace spanpool {

class PageAlloc {
 public:
  // Pages 0 … kMaxPages - 1 can be managed: 2^48 bytes.
  static constexpr uint64_t kMaxPages = uint64_t{kMaxArenas} * kPagesPerArena;

  // `metadata` outlives the allocator.
  explicit PageAlloc(MetadataSource* metadata = MetadataSource::System());
  ~PageAlloc();
  PageAlloc(const PageAlloc&) = delete;
  PageAlloc& operator=(const PageAlloc&) = delete;

  // Adds pages that did not exist before: they enter free and scavenged. `range` begins and ends on
  // a chunk border (512 pages) and lies below kMaxPages (CHECK).
  //   RESOURCE_EXHAUSTED  no memory for the index; nothing has changed, try again later
  absl::Status Grow(PageRange range);

  struct Run {
    PageId first;
    PageCount scavenged;  // how many pages of the run have no memory behind them
  };

  // Takes the lowest run of `n` >= 1 free pages whose first page is a multiple of `alignment` (a
  // power of two); its scavenged bits are cleared, for the caller will back it. Nothing if there is
  // no such run: grow and try again. An alignment above 1 may cost a look at every free run.
  std::optional<Run> Alloc(PageCount n, PageCount alignment = PageCount(1));

  // Takes exactly these pages, all of them free (CHECK); their scavenged bits stay.
  void AllocRange(PageRange range);

  // Gives back pages, all of them allocated (CHECK); their scavenged bits stay, so that what Alloc
  // gave comes back as backed.
  void Free(PageRange range);
  // The same, and they come back as scavenged.
  void FreeScavenged(PageRange range);

  // Notes that these pages, free or allocated, have no memory behind them, or that they have.
  void SetScavenged(PageRange range);
  void ClearScavenged(PageRange range);

  // The lowest run of free scavenged pages, cut off after `max` >= 1 pages. Not const: it remembers
  // where to start the next time.
  std::optional<PageRange> FindScavenged(PageCount max);

  // Takes the highest wholly free run of `run` pages (a power of two up to 512) that is aligned to
  // its length and has memory behind some page: memory worth giving back. It is now allocated, its
  // scavenged bits as they were.
  std::optional<PageRange> TakeScavengable(PageCount run);

  // 64 aligned pages, of which the free ones are taken: what a page cache holds (page_cache.h). Bit
  // i of each mask is page first + i. The masks of the allocator and of the cache are disjoint.
  struct Block {
    PageId first;
    uint64_t pages = 0;
    uint64_t scavenged = 0;  // subset of pages; cleared in the allocator
  };
  // Takes all free pages of the first 64-page block that has any.
  std::optional<Block> TakeBlock();
  // Gives back pages that TakeBlock gave (CHECK); those in `scavenged` come back as scavenged.
  void ReturnBlock(const Block& block);

  // How many of these pages are free and have no memory behind them.
  PageCount FreeScavengedIn(PageRange range) const {
    return PageCount(Count(range).free_scavenged);
  }

  bool IsFree(PageId page) const;  // false for pages that do not exist
  PageCount free_backed() const { return free_backed_; }
  PageCount free_scavenged() const { return free_scavenged_; }
  PageCount allocated() const { return allocated_; }
  // Memory of the index: OS pages committed. O(number of separate ranges grown).
  uint64_t metadata_bytes() const;

  // Aborts unless the invariants hold. O(pages that exist).
  void CheckInvariants() const;

 private:
  static constexpr size_t kLevels = 5;
  static constexpr size_t kLeaf = kLevels - 1;
  static constexpr size_t kFanOutShift = 3;
  static constexpr size_t kPageIdBits = 35;
  static constexpr uint64_t kNoPage = kMaxPages;

  struct Chunk {
    ChunkBits allocated;
    ChunkBits scavenged;
  };
  static_assert(sizeof(Chunk) == 128);

  // log2 of the pages that an entry of `level` stands for.
  static constexpr size_t PagesShift(size_t level) {
    return kChunkPagesShift + (kLeaf - level) * kFanOutShift;
  }
  static constexpr uint64_t Entries(size_t level) {
    return uint64_t{1} << (kPageIdBits - PagesShift(level));
  }
  static_assert(uint64_t{1} << kPageIdBits == kMaxPages);

  // A search in progress. Pages are plain numbers from here on: these are the innermost loops.
  struct Search {
    uint64_t from;   // look at pages from here on
    uint64_t count;  // for so many
    uint64_t alignment;
    uint64_t run = 0;  // free pages that end where the walk stands
    uint64_t result = kNoPage;
    // The first free page passed, if the walk saw exactly where it is.
    uint64_t first_free = kNoPage;
    bool passed_free = false;

    // Whether the run of `length` free pages from `first` holds what is searched; sets result.
    bool Fits(uint64_t first, uint64_t length);
    void PassedFree(uint64_t exact_or_none);
  };

  bool WalkEntry(size_t level, uint64_t index, Search& search) const;
  bool WalkChunk(uint64_t chunk, Search& search) const;
  uint64_t Find(uint64_t count, uint64_t alignment);
  void RaiseSearch(uint64_t page);

  bool Reserve();
  // Recomputes the summaries over pages [first, first + count).
  void Update(uint64_t first, uint64_t count);
  // Calls f(chunk, first index in it, count) for each chunk that [first, first + count) touches.
  template <typename F>
  void ForEachChunk(uint64_t first, uint64_t count, F f) const;
  // How many of the pages are free, and how many of those scavenged.
  struct Census {
    uint64_t free = 0;
    uint64_t free_scavenged = 0;
    uint64_t scavenged = 0;
  };
  Census Count(PageRange range) const;
  // Lowers and raises the hints for pages that have come to be free, or free and in another state.
  void HintFree(uint64_t first, uint64_t count);
  void CheckSummaries() const;

  MetadataSource* const metadata_;
  std::array<PageSummary*, kLevels> summaries_{};
  Chunk* chunks_ = nullptr;

  std::map<uint64_t, uint64_t> grown_;  // first chunk -> end chunk; neighbours are one range
  uint64_t end_ = 0;                    // end of the highest range, in pages
  uint64_t search_ = kNoPage;           // invariant 2
  uint64_t scavenged_from_ = kNoPage;   // invariant 3
  uint64_t scavengable_end_ = 0;        // invariant 4
  uint64_t scavenge_run_ = kPagesPerChunk;

  PageCount free_backed_;
  PageCount free_scavenged_;
  PageCount allocated_;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_PAGE_ALLOC_H_

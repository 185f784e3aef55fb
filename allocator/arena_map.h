// What the heap knows of each arena, found by arena index in two steps.
//
// There may be 2^22 arenas. A table of 2^11 pointers to tables of 2^11 pointers covers them and
// costs 16 KiB at first; an entry goes from null to a record once and never back, so readers need
// no lock: they follow two pointers, and any page number is a valid question.
//
// Of each arena is kept (Go's heapArena):
//   spans          for each page the span in use that owns it, or null
//   listed         a bit for the *first* page of each span in a central list: what the reclaimer
//                  walks. (Go's pageInUse, but for spans on loan, which it would only skip.)
//   specials       a bit for the first page of each span in use that has specials
//   zeroed_pages   no page from here on was ever used: its memory is zero. One watermark is enough
//                  because pages are handed out lowest first
// Left for a collector, which would add them here: marks of pages, and of blocks for checking.
//
// Invariants
//  1. A page of a span in use maps to that span; every other page maps to null.
//  2. A bit of listed or specials is set only for the first page of a span in use.
//
// Thread-safe for readers. Add needs the heap's lock; the entries of a page are written by whoever
// owns the page.

#ifndef SPANPOOL_ALLOCATOR_ARENA_MAP_H_
#define SPANPOOL_ALLOCATOR_ARENA_MAP_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "allocator/metadata_source.h"
#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool {

// One bit per page of an arena; bits of one word may be changed by different threads.
class ArenaBits {
 public:
  static constexpr size_t kWords = kPagesPerArena / 64;

  // `page` is the page's number within the arena.
  void Set(size_t page) {
    // release: pairs with the acquire in word(), so that who sees the bit sees the span's fields.
    words_[page / 64].fetch_or(uint64_t{1} << (page % 64), std::memory_order_release);
  }
  void Clear(size_t page) {
    words_[page / 64].fetch_and(~(uint64_t{1} << (page % 64)), std::memory_order_release);
  }
  bool Test(size_t page) const { return (word(page / 64) >> (page % 64) & 1) != 0; }
  uint64_t word(size_t i) const { return words_[i].load(std::memory_order_acquire); }

 private:
  std::array<std::atomic<uint64_t>, kWords> words_{};
};

struct Arena {
  std::array<std::atomic<Span*>, kPagesPerArena> spans{};
  ArenaBits listed;
  ArenaBits specials;
  std::atomic<uint64_t> zeroed_pages{0};
};

class ArenaMap {
 public:
  // `metadata` outlives the map.
  explicit ArenaMap(MetadataSource* metadata) : metadata_(metadata) {}
  ~ArenaMap();
  ArenaMap(const ArenaMap&) = delete;
  ArenaMap& operator=(const ArenaMap&) = delete;

  // Adds the record of an arena below kMaxArenas that has none (CHECK). False when there is no
  // memory for it: nothing has changed. Requires the heap's lock.
  bool Add(ArenaIndex arena);

  // Null if the arena was never added; any index is allowed.
  Arena* Find(ArenaIndex arena) const {
    const size_t i = arena.value();
    if (i >= kMaxArenas) return nullptr;
    // acquire: pairs with the release in Add; what we find was filled in before.
    const Table* table = tables_[i / kTableEntries].load(std::memory_order_acquire);
    if (table == nullptr) return nullptr;
    return (*table)[i % kTableEntries].load(std::memory_order_acquire);
  }

  // The span in use that owns `page`, or null; any page is allowed.
  Span* SpanOf(PageId page) const {
    if (page.value() >= kMaxArenas * kPagesPerArena) return nullptr;
    const Arena* arena = Find(ArenaOf(page));
    if (arena == nullptr) return nullptr;
    // acquire: pairs with the release in Enter, so that the span's fields are seen.
    return arena->spans[page.value() % kPagesPerArena].load(std::memory_order_acquire);
  }

  // Makes the span's pages, all in arenas that exist, map to it; its other fields are final. Leave
  // undoes it; by then its bits are clear.
  void Enter(Span* span);
  void Leave(Span* span);

  // The bits of a span in use.
  void SetListed(const Span& span, bool value) { Set(&Arena::listed, span, value); }
  void SetSpecials(const Span& span, bool value) { Set(&Arena::specials, span, value); }
  bool HasSpecials(const Span& span) const {
    return Find(ArenaOf(span.first_page))->specials.Test(span.first_page.value() % kPagesPerArena);
  }

  // Notes that these pages, which the caller owns, are about to be used; returns whether they may
  // have been used before.
  bool MarkUsed(PageRange pages);

  // Memory of the records.
  uint64_t metadata_bytes() const { return metadata_bytes_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kTableEntries = size_t{1} << 11;
  static constexpr size_t kTables = kMaxArenas / kTableEntries;
  using Table = std::array<std::atomic<Arena*>, kTableEntries>;

  template <typename T>
  T* New();
  template <typename F>
  void ForEachPage(const Span& span, F f);
  void Set(ArenaBits Arena::*bits, const Span& span, bool value) {
    ArenaBits& of_arena = Find(ArenaOf(span.first_page))->*bits;
    const size_t page = span.first_page.value() % kPagesPerArena;
    value ? of_arena.Set(page) : of_arena.Clear(page);
  }

  MetadataSource* const metadata_;
  std::array<std::atomic<Table*>, kTables> tables_{};
  std::atomic<uint64_t> metadata_bytes_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_ARENA_MAP_H_

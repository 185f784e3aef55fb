// The units the heap deals in, as types that cannot be mixed up.
//
// A pool is one range of offsets that starts at 0 and grows by arenas. Every quantity that names a
// place in it or a length of it has its own type, so that a page number cannot be passed for a
// count of pages, or a byte offset for either:
//
//   PoolOffset  bytes from the start of the pool
//   PageId      a page:    PoolOffset / 8 KiB          PageCount  a number of pages
//   ArenaIndex  an arena:  PoolOffset / 64 MiB
//   GranuleId   a granule: PoolOffset / 64 B
//
// All are trivially copyable values; thread-safety is that of an integer.

#ifndef SPANPOOL_ALLOCATOR_UNITS_H_
#define SPANPOOL_ALLOCATOR_UNITS_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <ostream>
#include <utility>

namespace spanpool {

inline constexpr size_t kPageShift = 13;
inline constexpr size_t kPageBytes = size_t{1} << kPageShift;  // 8 KiB

inline constexpr size_t kArenaShift = 26;
inline constexpr size_t kArenaBytes = size_t{1} << kArenaShift;  // 64 MiB
inline constexpr size_t kPagesPerArena = kArenaBytes / kPageBytes;
inline constexpr size_t kMaxArenas = size_t{1} << 22;  // 2^48 bytes of pool

inline constexpr size_t kGranuleShift = 6;
inline constexpr size_t kGranuleBytes = size_t{1} << kGranuleShift;  // 64 B
inline constexpr size_t kGranulesPerPage = kPageBytes / kGranuleBytes;
inline constexpr size_t kGranulesPerArena = kArenaBytes / kGranuleBytes;

// An integer that converts to and from others only when asked to.
template <typename Tag, typename Rep>
class Unit {
 public:
  using rep = Rep;
  constexpr Unit() = default;
  constexpr explicit Unit(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(Unit, Unit) = default;
  constexpr Unit& operator++() {
    ++value_;
    return *this;
  }
  template <typename H>
  friend H AbslHashValue(H h, Unit unit) {
    return H::combine(std::move(h), unit.value_);
  }
  friend std::ostream& operator<<(std::ostream& out, Unit unit) { return out << +unit.value_; }

 private:
  Rep value_ = 0;
};

using PageId = Unit<struct PageIdTag, uint64_t>;
using PageCount = Unit<struct PageCountTag, uint64_t>;
using ArenaIndex = Unit<struct ArenaIndexTag, uint32_t>;
using PoolOffset = Unit<struct PoolOffsetTag, uint64_t>;
using GranuleId = Unit<struct GranuleIdTag, uint64_t>;

// Lengths add to lengths and to places; the difference of two places is a length.
constexpr PageCount operator+(PageCount a, PageCount b) { return PageCount(a.value() + b.value()); }
constexpr PageCount operator-(PageCount a, PageCount b) { return PageCount(a.value() - b.value()); }
constexpr PageCount& operator+=(PageCount& a, PageCount b) { return a = a + b; }
constexpr PageCount& operator-=(PageCount& a, PageCount b) { return a = a - b; }
constexpr PageId operator+(PageId page, PageCount n) { return PageId(page.value() + n.value()); }
constexpr PageId operator-(PageId page, PageCount n) { return PageId(page.value() - n.value()); }
constexpr PageCount operator-(PageId a, PageId b) { return PageCount(a.value() - b.value()); }

constexpr uint64_t Bytes(PageCount n) { return n.value() << kPageShift; }
// The pages that `bytes` bytes need: rounded up.
constexpr PageCount PagesFor(uint64_t bytes) {
  return PageCount((bytes >> kPageShift) + ((bytes & (kPageBytes - 1)) != 0));
}

constexpr PoolOffset OffsetOf(PageId page) { return PoolOffset(page.value() << kPageShift); }
constexpr PoolOffset OffsetOf(GranuleId g) { return PoolOffset(g.value() << kGranuleShift); }
constexpr PageId PageOf(PoolOffset offset) { return PageId(offset.value() >> kPageShift); }
constexpr GranuleId GranuleOf(PoolOffset offset) {
  return GranuleId(offset.value() >> kGranuleShift);
}
constexpr GranuleId GranuleOf(PageId page) { return GranuleOf(OffsetOf(page)); }
constexpr PageId PageOf(GranuleId g) { return PageOf(OffsetOf(g)); }
constexpr ArenaIndex ArenaOf(PageId page) {
  return ArenaIndex(static_cast<uint32_t>(page.value() / kPagesPerArena));
}
constexpr ArenaIndex ArenaOf(PoolOffset offset) { return ArenaOf(PageOf(offset)); }
constexpr ArenaIndex ArenaOf(GranuleId g) { return ArenaOf(OffsetOf(g)); }
constexpr PageId FirstPageOf(ArenaIndex arena) {
  return PageId(uint64_t{arena.value()} * kPagesPerArena);
}

// A run of pages.
struct PageRange {
  PageId first;
  PageCount count;
  constexpr PageId end() const { return first + count; }
  friend constexpr bool operator==(PageRange, PageRange) = default;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_UNITS_H_

// How much is free in a stretch of pages, packed into one word.
//
// A summary says how long the free run at the start of the stretch is, how long the longest one is,
// and how long the one at its end is. From the summaries of neighbours follows the summary of both
// together (Merge), which is what makes a tree of them possible: whether a run of n pages begins in
// a stretch is known without looking inside, unless it lies wholly inside.
//
// Packing: three fields of 21 bits from bit 0: start, max, end. The one value that does not fit, a
// stretch of 2^21 pages (16 GiB) that is wholly free, has all three equal to it and is bit 63
// alone. Zero is a stretch with nothing free; so memory fresh from the system is a valid array of
// them.
//
// Values; thread-safety is that of an integer.

#ifndef SPANPOOL_ALLOCATOR_PAGE_SUMMARY_H_
#define SPANPOOL_ALLOCATOR_PAGE_SUMMARY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "allocator/check.h"
#include "allocator/units.h"

namespace spanpool {

class PageSummary {
 public:
  static constexpr size_t kFieldBits = 21;
  static constexpr uint64_t kMaxPages = uint64_t{1} << kFieldBits;

  constexpr PageSummary() = default;
  // Requires start, end <= max <= 2^21; if max is 2^21 then start and end are, too.
  constexpr PageSummary(PageCount start, PageCount max, PageCount end)
      : bits_(max.value() == kMaxPages
                  ? kAllFree
                  : start.value() | max.value() << kFieldBits | end.value() << (2 * kFieldBits)) {
    SPANPOOL_DCHECK(start <= max && end <= max && max.value() <= kMaxPages);
    SPANPOOL_DCHECK(max.value() < kMaxPages || (start == max && end == max));
  }
  static constexpr PageSummary AllFree(PageCount pages) { return {pages, pages, pages}; }

  constexpr PageCount start() const { return Field(0); }
  constexpr PageCount max() const { return Field(1); }
  constexpr PageCount end() const { return Field(2); }
  constexpr bool none_free() const { return bits_ == 0; }
  constexpr uint64_t packed() const { return bits_; }
  friend constexpr bool operator==(PageSummary, PageSummary) = default;

  // The summary of `n` neighbouring stretches of `pages_each` pages.
  static constexpr PageSummary Merge(const PageSummary* parts, size_t n, PageCount pages_each) {
    const uint64_t each = pages_each.value();
    uint64_t start = 0;
    uint64_t max = 0;
    uint64_t end = 0;
    for (size_t i = 0; i < n; ++i) {
      const PageSummary part = parts[i];
      if (part.bits_ == 0) {
        end = 0;
        continue;
      }
      const uint64_t part_start = part.start().value();
      if (start == i * each) start += part_start;  // everything before is free
      max = std::max({max, end + part_start, part.max().value()});
      const uint64_t part_end = part.end().value();
      end = part_end == each ? end + each : part_end;
    }
    return PageSummary(PageCount(start), PageCount(max), PageCount(end));
  }

 private:
  static constexpr uint64_t kAllFree = uint64_t{1} << 63;
  static constexpr uint64_t kFieldMask = kMaxPages - 1;

  constexpr PageCount Field(size_t i) const {
    if (bits_ == kAllFree) return PageCount(kMaxPages);
    return PageCount((bits_ >> (i * kFieldBits)) & kFieldMask);
  }

  uint64_t bits_ = 0;
};
static_assert(sizeof(PageSummary) == 8);

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_PAGE_SUMMARY_H_

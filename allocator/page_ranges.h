// Sets of pages, as the runs they are made of.
//
// A `PageRanges` lists its runs in ascending order; none is empty and no two overlap or touch. All
// functions take O(runs).
//
// Thread-safety is that of a vector.

#ifndef SPANPOOL_ALLOCATOR_PAGE_RANGES_H_
#define SPANPOOL_ALLOCATOR_PAGE_RANGES_H_

#include <vector>

#include "allocator/units.h"

namespace spanpool {

using PageRanges = std::vector<PageRange>;

// Adds `range` to `ranges`, none of which begins after it. An empty range adds nothing.
void Append(PageRanges* ranges, PageRange range);

// The pages that are in either, and those of `from` that are not in `what`.
PageRanges Union(const PageRanges& a, const PageRanges& b);
PageRanges Minus(const PageRanges& from, const PageRanges& what);

PageCount CountPages(const PageRanges& ranges);

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_PAGE_RANGES_H_

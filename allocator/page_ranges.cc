#include "allocator/page_ranges.h"

#include <algorithm>
#include <cstddef>

#include "allocator/check.h"

namespace spanpool {

void Append(PageRanges* ranges, PageRange range) {
  if (range.count == PageCount(0)) return;
  if (ranges->empty() || ranges->back().end() < range.first) {
    ranges->push_back(range);
    return;
  }
  PageRange& last = ranges->back();
  SPANPOOL_CHECK_LE(last.first, range.first);
  last.count = std::max(last.end(), range.end()) - last.first;
}

PageRanges Union(const PageRanges& a, const PageRanges& b) {
  PageRanges both;
  both.reserve(a.size() + b.size());
  size_t i = 0;
  size_t j = 0;
  while (i < a.size() || j < b.size()) {
    const bool from_a = j == b.size() || (i < a.size() && a[i].first < b[j].first);
    Append(&both, from_a ? a[i++] : b[j++]);
  }
  return both;
}

PageRanges Minus(const PageRanges& from, const PageRanges& what) {
  PageRanges rest;
  size_t j = 0;
  for (const PageRange& range : from) {
    PageId page = range.first;
    while (j < what.size() && what[j].end() <= page) ++j;
    // The last of these may reach into the next range as well.
    for (size_t k = j; k < what.size() && what[k].first < range.end(); ++k) {
      if (page < what[k].first) rest.push_back({page, what[k].first - page});
      page = std::max(page, what[k].end());
    }
    if (page < range.end()) rest.push_back({page, range.end() - page});
  }
  return rest;
}

PageCount CountPages(const PageRanges& ranges) {
  PageCount pages;
  for (const PageRange& range : ranges) pages += range.count;
  return pages;
}

}  // namespace spanpool

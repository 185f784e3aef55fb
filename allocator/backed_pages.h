// Which pages of a file in memory (a memfd) have memory behind them.
//
// What is to be known is which pages fallocate has put there. lseek(SEEK_DATA) does not tell: to
// it, a page that was allocated and never touched is a hole. The call that counts a file's pages,
// touched or not, is cachestat (Linux 6.5); asked of halves, and halves of halves, it finds where
// they are. Where there is no such call, lseek has to do.
//
// Thread-safe.

#ifndef SPANPOOL_ALLOCATOR_BACKED_PAGES_H_
#define SPANPOOL_ALLOCATOR_BACKED_PAGES_H_

#include "absl/status/statusor.h"
#include "allocator/page_ranges.h"
#include "allocator/units.h"

namespace spanpool {

// Of the pages `range` of the file, counted from its beginning: those with memory behind all 8 KiB
// of them, in memory or swapped out.

// Exact. One call where all or none of `range` is backed; at most 2 for each page besides.
//   UNIMPLEMENTED  the kernel has no cachestat, or a sandbox forbids it, or the file is of huge
//                  pages
absl::StatusOr<PageRanges> FindBackedByCount(int fd, PageRange range);

// Finds only those that were touched.
//   INTERNAL  the file cannot be asked: it is none in memory
absl::StatusOr<PageRanges> FindBackedByData(int fd, PageRange range);

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_BACKED_PAGES_H_

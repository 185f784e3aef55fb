#include "allocator/backed_pages.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "allocator/metadata_source.h"

// Newer than the C library's headers; one number on all architectures.
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

namespace spanpool {
namespace {

// As in linux/mman.h.
struct CachestatRange {
  uint64_t offset;
  uint64_t bytes;
};
struct Cachestat {
  uint64_t cached;  // in memory
  uint64_t dirty;
  uint64_t writeback;
  uint64_t evicted;  // swapped out
  uint64_t recently_evicted;
};

constexpr uint64_t kOsPagesPerPage = kPageBytes / kOsPageBytes;

// Appends the backed pages of `range`, which is not empty; an errno value, 0 = none.
int CountIn(int fd, PageRange range, PageRanges* backed) {
  const CachestatRange bytes{OffsetOf(range.first).value(), Bytes(range.count)};
  Cachestat stat{};
  if (syscall(SYS_cachestat, fd, &bytes, &stat, 0) != 0) return errno;
  const uint64_t there = stat.cached + stat.evicted;
  if (there == 0) return 0;
  if (there >= range.count.value() * kOsPagesPerPage) {
    Append(backed, range);
    return 0;
  }
  if (range.count == PageCount(1)) return 0;  // half a page
  const PageCount half(range.count.value() / 2);
  const int error = CountIn(fd, {range.first, half}, backed);
  if (error != 0) return error;
  return CountIn(fd, {range.first + half, range.count - half}, backed);
}

}  // namespace

absl::StatusOr<PageRanges> FindBackedByCount(int fd, PageRange range) {
  PageRanges backed;
  if (range.count == PageCount(0)) return backed;
  const int error = CountIn(fd, range, &backed);
  if (error != 0) return absl::UnimplementedError(absl::StrCat("cachestat: ", strerror(error)));
  return backed;
}

absl::StatusOr<PageRanges> FindBackedByData(int fd, PageRange range) {
  PageRanges backed;
  const uint64_t end = OffsetOf(range.end()).value();
  for (uint64_t at = OffsetOf(range.first).value(); at < end;) {
    const off_t data = lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // none until the end
    const off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
    if (hole < 0) {
      return absl::InternalError(absl::StrCat("looking for data of a file: ", strerror(errno)));
    }
    at = static_cast<uint64_t>(hole);
    // Whole pages within.
    const PageId first(PagesFor(static_cast<uint64_t>(data)).value());
    const PageId stop = PageOf(PoolOffset(std::min(at, end)));
    if (first < stop) Append(&backed, {first, stop - first});
  }
  return backed;
}

}  // namespace spanpool

#include "allocator/anonymous_arena_source.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocator/check.h"
#include "allocator/metadata_source.h"

// Newer than the C library's headers.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace spanpool {

AnonymousArenaSource::AnonymousArenaSource(uint32_t max_arenas) : max_arenas_(max_arenas) {
  void* base = mmap(nullptr, max_arenas * kArenaBytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  SPANPOOL_CHECK(base != MAP_FAILED) << strerror(errno);
  base_ = static_cast<std::byte*>(base);
}

AnonymousArenaSource::~AnonymousArenaSource() { munmap(base_, max_arenas_ * kArenaBytes); }

absl::Status AnonymousArenaSource::Create(ArenaIndex arena) {
  if (arena.value() >= max_arenas_) {
    return absl::ResourceExhaustedError(absl::StrCat("all ", max_arenas_, " arenas exist"));
  }
  {
    RankedMutexLock lock(&mu_);
    if (!created_.insert(arena).second) {
      return absl::AlreadyExistsError(absl::StrCat("arena ", arena.value(), " exists"));
    }
  }
  if (mprotect(At(OffsetOf(FirstPageOf(arena))), kArenaBytes, PROT_READ | PROT_WRITE) != 0) {
    const int error = errno;
    RankedMutexLock lock(&mu_);
    created_.erase(arena);
    return absl::ResourceExhaustedError(absl::StrCat("mprotect: ", strerror(error)));
  }
  return absl::OkStatus();
}

absl::Status AnonymousArenaSource::Populate(PageRange pages) {
  std::byte* const first = At(OffsetOf(pages.first));
  while (madvise(first, Bytes(pages.count), MADV_POPULATE_WRITE) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno != EINVAL) {
      return absl::ResourceExhaustedError(absl::StrCat("populating: ", strerror(errno)));
    }
    // Before Linux 5.14: a write that changes nothing.
    for (uint64_t at = 0; at < Bytes(pages.count); at += 4096) {
      volatile std::byte* byte = first + at;
      *byte = *byte;
    }
    break;
  }
  return absl::OkStatus();
}

absl::Status AnonymousArenaSource::Discard(PageRange pages) {
  if (madvise(At(OffsetOf(pages.first)), Bytes(pages.count), MADV_DONTNEED) != 0) {
    return absl::InternalError(absl::StrCat("discarding: ", strerror(errno)));
  }
  return absl::OkStatus();
}

absl::StatusOr<PageRanges> AnonymousArenaSource::FindBacked(PageRange pages) {
  constexpr size_t kPerPage = kPageBytes / kOsPageBytes;
  std::vector<unsigned char> resident(pages.count.value() * kPerPage);
  if (mincore(At(OffsetOf(pages.first)), Bytes(pages.count), resident.data()) != 0) {
    return absl::InternalError(absl::StrCat("mincore: ", strerror(errno)));
  }
  PageRanges backed;
  for (size_t i = 0; i < pages.count.value(); ++i) {
    const unsigned char* const page = &resident[i * kPerPage];
    if (std::all_of(page, page + kPerPage, [](unsigned char c) { return (c & 1) != 0; })) {
      Append(&backed, {pages.first + PageCount(i), PageCount(1)});
    }
  }
  return backed;
}

}  // namespace spanpool

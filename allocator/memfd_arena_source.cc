#include "allocator/memfd_arena_source.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "allocator/backed_pages.h"

// Newer than the C library's headers.
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace spanpool {
namespace {

// An interrupted fallocate undoes all it did, so a long one might never end on a busy process.
constexpr uint64_t kPopulateStepBytes = 2 << 20;

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

constexpr uint64_t RoundUp(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

absl::Status ErrorOf(int error, const std::string& what) {
  const std::string text = absl::StrCat(what, ": ", strerror(error));
  switch (error) {
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::StatusOr<int> CreateSealed(const std::string& name, uint64_t bytes, unsigned page_flags) {
  int fd =
      memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | page_flags);
  if (fd < 0 && errno == EINVAL) {  // before Linux 6.3
    fd = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | page_flags);
  }
  if (fd < 0) return ErrorOf(errno, absl::StrCat("memfd_create ", name));
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 || fchmod(fd, 0444) != 0 ||
      fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    const int error = errno;
    close(fd);
    return ErrorOf(error, absl::StrCat("sizing and sealing ", name, " to ", bytes, " bytes"));
  }
  return fd;
}

absl::Status Allocate(int fd, uint64_t offset, uint64_t bytes, const std::string& what) {
  const uint64_t end = offset + bytes;
  while (offset < end) {
    // Steps end at multiples of their size, so that huge pages are never split.
    const uint64_t step =
        std::min(end, (offset / kPopulateStepBytes + 1) * kPopulateStepBytes) - offset;
    if (fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(step)) != 0) {
      if (errno == EINTR) continue;
      return ErrorOf(errno, absl::StrCat("allocating ", step, " bytes of ", what));
    }
    offset += step;
  }
  return absl::OkStatus();
}

// The kernel says "no space left on device", which there is none.
absl::Status NoHugePage(const std::string& what) {
  return absl::ResourceExhaustedError(
      absl::StrCat("no huge page of 2 MiB is left for ", what,
                   ": all of vm.nr_hugepages are in use or promised to others, or the limit of the "
                   "cgroup (hugetlb.2MB.max) is reached"));
}

// Calls `f(arena, byte offset in it, bytes)` for each arena that `pages` touch, until it fails.
template <typename F>
absl::Status ForEachArena(PageRange pages, F f) {
  PageId page = pages.first;
  while (page < pages.end()) {
    const ArenaIndex arena = ArenaOf(page);
    const PageId next = std::min(pages.end(), FirstPageOf(arena) + PageCount(kPagesPerArena));
    absl::Status status = f(arena, Bytes(page - FirstPageOf(arena)), Bytes(next - page));
    if (!status.ok()) return status;
    page = next;
  }
  return absl::OkStatus();
}

std::string NameOf(const std::string& name, ArenaIndex arena, const char* kind) {
  return absl::StrCat(name, ".", arena.value(), ".", kind);
}

// What the kernel calls the file, without what it puts around that; empty if it does not say.
std::string MemfdNameOf(int fd) {
  char link[512];
  const ssize_t length = readlink(absl::StrCat("/proc/self/fd/", fd).c_str(), link, sizeof(link));
  absl::string_view name(link, length < 0 ? 0 : static_cast<size_t>(length));
  if (!absl::ConsumePrefix(&name, "/memfd:")) return "";
  absl::ConsumeSuffix(&name, " (deleted)");
  return std::string(name);
}

// Makes sure that `fd` is what CreateSealed would return, and makes it so where that can be done.
absl::Status CheckAdopted(int fd, const std::string& name, uint64_t bytes, bool huge) {
  const auto wrong = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(name, " (descriptor ", fd, ") ", what...));
  };
  struct stat info;
  struct statfs system;
  if (fstat(fd, &info) != 0 || fstatfs(fd, &system) != 0) {
    return wrong("cannot be examined: ", strerror(errno));
  }
  if (const std::string actual = MemfdNameOf(fd); actual != name) {
    return wrong("should be a memfd of that name and is ", actual.empty() ? "none" : actual);
  }
  if ((system.f_type == HUGETLBFS_MAGIC) != huge) {
    return wrong("should ", huge ? "" : "not ", "be of huge pages");
  }
  if (static_cast<uint64_t>(info.st_size) != bytes) {
    return wrong("should have ", bytes, " bytes and has ", info.st_size);
  }
  if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR) {
    return wrong("should be open for reading and writing");
  }
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals || (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))) {
    return wrong(
        "should be sealed against any other size, against other seals, and not against "
        "writing; its seals are ",
        seals);
  }
  if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fchmod(fd, 0444) != 0) {
    return ErrorOf(errno, absl::StrCat("taking over ", name));
  }
  return absl::OkStatus();
}

absl::StatusOr<PageRanges> FindBackedInFile(int fd, PageRange range, MemfdArenaSource::Kind kind) {
  if (kind == MemfdArenaSource::Kind::kHugePages) {
    struct stat info;
    if (fstat(fd, &info) != 0) return ErrorOf(errno, "fstat");
    if (static_cast<uint64_t>(info.st_blocks) * 512 < kArenaBytes) return PageRanges();
    return PageRanges{range};
  }
  absl::StatusOr<PageRanges> backed = FindBackedByCount(fd, range);
  if (absl::IsUnimplemented(backed.status())) backed = FindBackedByData(fd, range);
  return backed;
}

}  // namespace

MemfdArenaSource::MemfdArenaSource(std::string name, uint64_t table_bytes, Kind kind)
    : name_(std::move(name)), table_bytes_(table_bytes), kind_(kind) {}

MemfdArenaSource::~MemfdArenaSource() {
  RankedMutexLock lock(&mu_);
  for (const auto& [arena, files] : files_) {
    if (files.data >= 0) close(files.data);
    if (files.table >= 0) close(files.table);
  }
}

absl::Status MemfdArenaSource::Create(ArenaIndex arena) {
  {
    RankedMutexLock lock(&mu_);
    if (!files_.try_emplace(arena).second) {
      return absl::AlreadyExistsError(absl::StrCat("arena ", arena.value(), " exists"));
    }
  }
  Files files;
  absl::StatusOr<int> data =
      CreateSealed(NameOf(name_, arena, "data"), kArenaBytes,
                   kind_ == Kind::kHugePages ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
  absl::Status status = data.status();
  if (status.ok()) {
    files.data = *data;
    if (table_bytes_ != 0) {
      absl::StatusOr<int> table = CreateSealed(NameOf(name_, arena, "table"), table_bytes_, 0);
      status = table.status();
      if (status.ok()) {
        files.table = *table;
      } else {
        close(files.data);
      }
    }
  }
  RankedMutexLock lock(&mu_);
  if (status.ok()) {
    files_[arena] = files;
  } else {
    files_.erase(arena);
  }
  return status;
}

absl::Status MemfdArenaSource::Adopt(ArenaIndex arena, int data, int table) {
  const bool huge = kind_ == Kind::kHugePages;
  absl::Status status = CheckAdopted(data, NameOf(name_, arena, "data"), kArenaBytes, huge);
  if (status.ok() && (table_bytes_ != 0 || table >= 0)) {
    const std::string name = NameOf(name_, arena, "table");
    status = table_bytes_ != 0 ? CheckAdopted(table, name, table_bytes_, /*huge=*/false)
                               : absl::InvalidArgumentError(
                                     absl::StrCat(name, " should not be: arenas have no tables"));
  }
  if (!status.ok()) return status;
  RankedMutexLock lock(&mu_);
  if (!files_.try_emplace(arena, Files{.data = data, .table = table}).second) {
    return absl::AlreadyExistsError(absl::StrCat("arena ", arena.value(), " exists"));
  }
  return absl::OkStatus();
}

absl::StatusOr<PageRanges> MemfdArenaSource::FindBacked(PageRange pages) {
  PageRanges backed;
  const absl::Status status =
      ForEachArena(pages, [&](ArenaIndex arena, uint64_t offset, uint64_t bytes) {
        const int fd = data_fd(arena);
        if (fd < 0) return absl::NotFoundError(absl::StrCat("no arena ", arena.value()));
        const PageRange range{PageOf(PoolOffset(offset)), PagesFor(bytes)};
        absl::StatusOr<PageRanges> found = FindBackedInFile(fd, range, kind_);
        if (!found.ok()) {
          return absl::InternalError(
              absl::StrCat(NameOf(name_, arena, "data"), ": ", found.status().message()));
        }
        for (const PageRange& run : *found) {
          Append(&backed, {FirstPageOf(arena) + PageCount(run.first.value()), run.count});
        }
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return backed;
}

absl::Status MemfdArenaSource::Populate(PageRange pages) {
  return ForEachArena(pages, [this](ArenaIndex arena, uint64_t offset, uint64_t bytes) {
    const int fd = data_fd(arena);
    if (fd < 0) return absl::NotFoundError(absl::StrCat("no arena ", arena.value()));
    const std::string what = NameOf(name_, arena, "data");
    if (kind_ == Kind::kPages) return Allocate(fd, offset, bytes, what);
    const uint64_t end = RoundUp(offset + bytes, kHugePageBytes);
    const uint64_t begin = offset / kHugePageBytes * kHugePageBytes;
    const absl::Status status = Allocate(fd, begin, end - begin, what);
    return absl::IsResourceExhausted(status) ? NoHugePage(what) : status;
  });
}

absl::Status MemfdArenaSource::Discard(PageRange pages) {
  return ForEachArena(pages, [this](ArenaIndex arena, uint64_t offset, uint64_t bytes) {
    const int fd = data_fd(arena);
    if (fd < 0) return absl::NotFoundError(absl::StrCat("no arena ", arena.value()));
    if (kind_ == Kind::kHugePages &&
        (offset % kHugePageBytes != 0 || bytes % kHugePageBytes != 0)) {
      return absl::InvalidArgumentError(absl::StrCat(bytes, " bytes from ", offset, " of ",
                                                     NameOf(name_, arena, "data"),
                                                     " are not whole huge pages"));
    }
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                     static_cast<off_t>(bytes)) != 0) {
      if (errno != EINTR) {
        return ErrorOf(
            errno, absl::StrCat("discarding ", bytes, " bytes of ", NameOf(name_, arena, "data")));
      }
    }
    return absl::OkStatus();
  });
}

absl::Status MemfdArenaSource::PopulateTable(ArenaIndex arena, uint64_t offset, uint64_t bytes) {
  if (offset > table_bytes_ || bytes > table_bytes_ - offset) {
    return absl::OutOfRangeError(absl::StrCat("bytes ", offset, " to ", offset + bytes,
                                              " of a block table of ", table_bytes_));
  }
  const int fd = table_fd(arena);
  if (fd < 0) return absl::NotFoundError(absl::StrCat("no arena ", arena.value()));
  return Allocate(fd, offset, bytes, NameOf(name_, arena, "table"));
}

MemfdArenaSource::Files MemfdArenaSource::FilesOf(ArenaIndex arena) const {
  RankedMutexLock lock(&mu_);
  const auto it = files_.find(arena);
  return it == files_.end() ? Files() : it->second;
}

int MemfdArenaSource::data_fd(ArenaIndex arena) const { return FilesOf(arena).data; }

int MemfdArenaSource::table_fd(ArenaIndex arena) const { return FilesOf(arena).table; }

absl::StatusOr<int> MemfdArenaSource::OpenDataReadOnly(ArenaIndex arena) const {
  const int fd = data_fd(arena);
  if (fd < 0) return absl::NotFoundError(absl::StrCat("no arena ", arena.value()));
  // Reopening by name is the one way to a descriptor with fewer rights than the first.
  const int read_only = open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDONLY | O_CLOEXEC);
  if (read_only < 0) {
    return ErrorOf(errno, absl::StrCat("reopening ", NameOf(name_, arena, "data")));
  }
  return read_only;
}

}  // namespace spanpool

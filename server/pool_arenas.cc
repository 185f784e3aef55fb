#include "server/pool_arenas.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "allocator/check.h"
#include "proto/layout/block_word.h"
#include "server/long_step.h"

namespace spanpool {
namespace {

// How old the last look at the memory left may be. Others use memory too.
constexpr absl::Duration kMemoryLookAge = absl::Milliseconds(100);
// Words are backed in runs of this many table pages: 16 KiB, the words of 16 pages of blocks.
constexpr size_t kTableRunPages = 4;

}  // namespace

PoolArenas::PoolArenas(const std::string& name, uint32_t max_arenas, const MemoryLimit* memory,
                       MemfdArenaSource::Kind kind)
    : memory_(memory),
      kind_(kind),
      source_("spanpool." + name, layout::kBlockTableBytes, kind),
      arenas_(max_arenas) {}

PoolArenas::~PoolArenas() {
  for (std::atomic<Arena*>& entry : arenas_) {
    Arena* arena = entry.load(std::memory_order_acquire);
    if (arena == nullptr) continue;
    munmap(arena->table, layout::kBlockTableBytes);
    delete arena;
  }
}

absl::Status PoolArenas::Create(ArenaIndex index) {
  if (index.value() >= arenas_.size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("arena ", index.value(), " is beyond the pool's ", arenas_.size(), " arenas"));
  }
  AnnounceLongStep();
  constexpr uint64_t kTail = offsetof(layout::BlockTable, marks);
  if (absl::Status status = CheckMemory(layout::kBlockTableBytes - kTail); !status.ok()) {
    return status;
  }
  // Files that exist without an entry here are of an attempt that failed below: nobody has seen
  // them, so it is safe to go on with them.
  absl::Status created = source_.Create(index);
  if (!created.ok() && !(absl::IsAlreadyExists(created) && Find(index) == nullptr)) {
    return created;
  }
  if (absl::Status status = source_.PopulateTable(index, kTail, layout::kBlockTableBytes - kTail);
      !status.ok()) {
    return status;
  }
  void* table = mmap(nullptr, layout::kBlockTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                     source_.table_fd(index), 0);
  if (table == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("mapping the block table of arena ", index.value(), ": ", strerror(errno)));
  }
  // A core of the daemon must not write out gigabytes of tables, nor a child inherit them.
  madvise(table, layout::kBlockTableBytes, MADV_DONTDUMP);
  madvise(table, layout::kBlockTableBytes, MADV_DONTFORK);
  auto arena = std::make_unique<Arena>();
  arena->table = static_cast<layout::BlockTable*>(table);
  table_bytes_.fetch_add(layout::kBlockTableBytes - kTail, std::memory_order_relaxed);
  // release: pairs with Find's acquire, so that whoever sees the arena sees its table.
  arenas_[index.value()].store(arena.release(), std::memory_order_release);
  return absl::OkStatus();
}

absl::Status PoolArenas::Populate(PageRange pages) {
  // In steps, so that a stop need not wait for gigabytes.
  constexpr PageCount kStep(kArenaBytes / 4 / kPageBytes);
  for (PageId page = pages.first; page < pages.end();) {
    if (stopping_.load(std::memory_order_relaxed)) {
      return absl::CancelledError("the daemon is stopping");
    }
    const PageCount count = std::min(kStep, pages.end() - page);
    if (kind_ == MemfdArenaSource::Kind::kPages) {
      if (absl::Status status = CheckMemory(Bytes(count)); !status.ok()) return status;
    }
    AnnounceLongStep();
    if (absl::Status status = source_.Populate({page, count}); !status.ok()) return status;
    page = page + count;
  }
  return absl::OkStatus();
}

absl::Status PoolArenas::Discard(PageRange pages) {
  AnnounceLongStep();
  return source_.Discard(pages);
}

absl::Status PoolArenas::PrepareTable(const Span& span) {
  const GranuleId first = GranuleOf(span.first_page);
  // The one block of a large span is named by its first granule; a small span's blocks start
  // anywhere in it.
  const uint64_t granules = span.large() ? 1 : span.pages.value() * kGranulesPerPage;
  uint64_t granule = first.value();
  const uint64_t end = granule + granules;
  while (granule < end) {
    const ArenaIndex arena = ArenaOf(GranuleId(granule));
    const uint64_t arena_first = uint64_t{arena.value()} * kGranulesPerArena;
    const uint64_t stop = std::min(end, arena_first + kGranulesPerArena);
    const size_t first_page = (granule - arena_first) / kWordsPerTablePage;
    const size_t end_page = (stop - 1 - arena_first) / kWordsPerTablePage + 1;
    if (absl::Status status = PrepareWords(arena, first_page, end_page); !status.ok()) {
      return status;
    }
    granule = stop;
  }
  return absl::OkStatus();
}

absl::Status PoolArenas::PrepareWords(ArenaIndex index, size_t first_page, size_t end_page) {
  Arena* arena = Find(index);
  SPANPOOL_CHECK(arena != nullptr) << "a span in arena " << index << ", which does not exist";
  const auto backed = [&](size_t page) {
    return (arena->backed[page / 64].load(std::memory_order_acquire) >> (page % 64) & 1) != 0;
  };
  size_t page = first_page;
  while (page < end_page && backed(page)) ++page;
  if (page == end_page) return absl::OkStatus();

  // Neighbouring spans come next: back whole runs.
  const size_t first = page / kTableRunPages * kTableRunPages;
  const size_t end = std::min<size_t>(
      kWordPages, (end_page + kTableRunPages - 1) / kTableRunPages * kTableRunPages);
  const uint64_t bytes = (end - first) * kTablePageBytes;
  if (absl::Status status = CheckMemory(bytes); !status.ok()) return status;
  if (absl::Status status = source_.PopulateTable(index, first * kTablePageBytes, bytes);
      !status.ok()) {
    return status;
  }
  for (size_t i = first; i < end; ++i) {
    const uint64_t bit = uint64_t{1} << (i % 64);
    // release: pairs with the acquire above and in WordOf; the memory was there first.
    if ((arena->backed[i / 64].fetch_or(bit, std::memory_order_release) & bit) == 0) {
      table_bytes_.fetch_add(kTablePageBytes, std::memory_order_relaxed);
    }
  }
  return absl::OkStatus();
}

layout::BlockTable* PoolArenas::TableOf(ArenaIndex index) {
  Arena* arena = Find(index);
  return arena == nullptr ? nullptr : arena->table;
}

absl::StatusOr<uint64_t> PoolArenas::ReadData(PoolOffset offset) const {
  const uint64_t arena = offset.value() / kArenaBytes;
  uint64_t value = 0;
  // By a call rather than through a mapping: what a client does to the file costs no page here, and
  // no signal.
  if (arena >= arenas_.size() || offset.value() % sizeof(value) != 0 ||
      Find(ArenaIndex(static_cast<uint32_t>(arena))) == nullptr ||
      pread(source_.data_fd(ArenaIndex(static_cast<uint32_t>(arena))), &value, sizeof(value),
            static_cast<off_t>(offset.value() % kArenaBytes)) != sizeof(value)) {
    return absl::NotFoundError(absl::StrCat("nothing to read at offset ", offset.value()));
  }
  return value;
}

PoolArenas::Arena* PoolArenas::Find(ArenaIndex index) const {
  if (index.value() >= arenas_.size()) return nullptr;
  return arenas_[index.value()].load(std::memory_order_acquire);
}

absl::StatusOr<PoolArenas::ArenaFiles> PoolArenas::FilesOf(ArenaIndex index, bool writable) const {
  if (Find(index) == nullptr) {
    return absl::NotFoundError(absl::StrCat("there is no arena ", index.value()));
  }
  ArenaFiles files;
  files.table = source_.table_fd(index);
  files.data = source_.data_fd(index);
  if (!writable) {
    absl::StatusOr<int> fd = source_.OpenDataReadOnly(index);
    if (!fd.ok()) return fd.status();
    files.read_only_data = layout::UniqueFd(*fd);
    files.data = *fd;
  }
  return files;
}

absl::Status PoolArenas::CheckMemory(uint64_t bytes) {
  if (memory_ == nullptr) return absl::OkStatus();
  const absl::Time now = absl::Now();
  for (bool looked = false;; looked = true) {
    {
      RankedMutexLock lock(&memory_mu_);
      const bool fresh = now - looked_ < kMemoryLookAge;
      if ((fresh || looked) && available_bytes_ >= bytes + kMarginBytes) {
        available_bytes_ -= bytes;
        return absl::OkStatus();
      }
      if (looked) {
        return absl::ResourceExhaustedError(
            absl::StrCat("the machine or its memory cgroup has ", available_bytes_ >> 20,
                         " MiB left and the daemon leaves it ", kMarginBytes >> 20,
                         " MiB: lower the pool's limit, or raise the cgroup's"));
      }
    }
    // Outside the lock: reading /proc may wait.
    const absl::StatusOr<uint64_t> available = memory_->AvailableBytes();
    if (!available.ok()) return absl::OkStatus();  // not known: the kernel decides
    RankedMutexLock lock(&memory_mu_);
    available_bytes_ = *available;
    looked_ = now;
  }
}

}  // namespace spanpool

#include "client/address_range.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace spanpool::internal {
namespace {

void* ReserveBytes(size_t bytes) {
  void* start = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return start == MAP_FAILED ? nullptr : start;
}

// Maps `bytes` of the file from `offset` on.
absl::Status MapOver(uintptr_t address, size_t bytes, int protection, int fd, size_t offset,
                     const char* what) {
  struct stat file;
  // A shorter file would turn an access into SIGBUS.
  if (fstat(fd, &file) != 0 || static_cast<uint64_t>(file.st_size) < offset + bytes) {
    return absl::InternalError(absl::StrCat("the daemon sent ", what, " that is too short"));
  }
  void* const start = reinterpret_cast<void*>(address);
  // Nothing is reserved by mapping: the daemon has allocated what it grants. Of huge pages the
  // kernel would set aside a whole arena for the mapping, used or not.
  if (mmap(start, bytes, protection, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
           static_cast<off_t>(offset)) == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", what, ": ", strerror(errno), "; see vm.max_map_count"));
  }
  // A forked child must not write into the pool, and a core dump must not hold it. Neither advice
  // can fail on a mapping that was just made.
  madvise(start, bytes, MADV_DONTFORK);
  madvise(start, bytes, MADV_DONTDUMP);
  return absl::OkStatus();
}

}  // namespace

AddressRange::AddressRange(uint32_t arenas, bool writable, SpanSource* source)
    : arenas_(arenas),
      writable_(writable),
      source_(source),
      mapped_(new std::atomic<uint64_t>[arenas / 64 + 1]()) {}

AddressRange::~AddressRange() {
  if (reservation_ != nullptr) munmap(reservation_, reservation_bytes_);
  if (tables_reservation_ != nullptr) munmap(tables_reservation_, tables_bytes_);
}

absl::StatusOr<std::unique_ptr<AddressRange>> AddressRange::Reserve(uint64_t address_bytes,
                                                                    bool writable,
                                                                    SpanSource* source) {
  if (address_bytes == 0 || address_bytes > uint64_t{1} << 44) {
    return absl::InvalidArgumentError(absl::StrCat("a pool of ", address_bytes, " bytes"));
  }
  const auto arenas = static_cast<uint32_t>((address_bytes + kArenaBytes - 1) / kArenaBytes);
  std::unique_ptr<AddressRange> range(new AddressRange(arenas, writable, source));
  // One arena more, so that the base can be aligned to an arena: what is aligned in the pool is
  // then aligned in memory.
  range->reservation_bytes_ = range->bytes() + kArenaBytes;
  range->reservation_ = ReserveBytes(range->reservation_bytes_);
  range->tables_bytes_ = size_t{arenas} * layout::kBlockTableBytes;
  range->tables_reservation_ = ReserveBytes(range->tables_bytes_);
  if (range->reservation_ == nullptr || range->tables_reservation_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot reserve ", range->reservation_bytes_ + range->tables_bytes_,
                     " bytes of address space: ", strerror(errno), "; see ulimit -v"));
  }
  range->base_ =
      (reinterpret_cast<uintptr_t>(range->reservation_) + kArenaBytes - 1) & ~(kArenaBytes - 1);
  const auto words = reinterpret_cast<uintptr_t>(range->tables_reservation_);
  range->tables_ = BlockTables(words, words + size_t{arenas} * BlockTables::kWordsBytes);
  return range;
}

absl::Status AddressRange::MapMissing(PoolOffset offset, uint64_t length) {
  if (!Covers(offset, length)) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes ", offset.value(), " + ", length, " lie outside the pool"));
  }
  const uint32_t first = ArenaOf(offset).value();
  const uint32_t last = ArenaOf(PoolOffset(offset.value() + (length ? length - 1 : 0))).value();
  for (uint32_t arena = first; arena <= last; ++arena) {
    if (IsMapped(ArenaIndex(arena))) continue;
    if (absl::Status status = Map(ArenaIndex(arena)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void AddressRange::Prefault(PoolOffset offset, uint64_t length) {
  // The daemon has allocated the pages; reading them maps them for writing too, since a shared
  // mapping of a memfd needs no notice of the first write. Since Linux 5.14.
  madvise(PointerTo(offset), length, MADV_POPULATE_READ);
}

absl::Status AddressRange::Map(ArenaIndex arena) {
  {
    RankedMutexLock lock(&mu_);
    mu_.Await(absl::Condition(
        +[](bool* mapping) { return !*mapping; }, &mapping_));
    if (IsMapped(arena)) return absl::OkStatus();
    mapping_ = true;
  }
  absl::Status status;
  absl::StatusOr<ArenaFds> fds = source_->OpenArena(arena);
  if (!fds.ok()) {
    status = fds.status();
  } else {
    const uintptr_t data = base_ + (uintptr_t{arena.value()} << kArenaShift);
    status = MapOver(data, kArenaBytes, writable_ ? PROT_READ | PROT_WRITE : PROT_READ,
                     fds->data.get(), 0, "an arena");
    if (status.ok()) {
      status = MapOver(tables_.WordsAt(arena), BlockTables::kWordsBytes, PROT_READ | PROT_WRITE,
                       fds->table.get(), 0, "a block table");
    }
    if (status.ok()) {
      status = MapOver(tables_.MarksAt(arena), BlockTables::kMarksBytes, PROT_READ | PROT_WRITE,
                       fds->table.get(), BlockTables::kWordsBytes, "a block table");
    }
  }
  RankedMutexLock lock(&mu_);
  mapping_ = false;
  if (status.ok()) {
    // release: pairs with the acquire in IsMapped.
    mapped_[arena.value() / 64].fetch_or(uint64_t{1} << (arena.value() % 64),
                                         std::memory_order_release);
  }
  return status;
}

}  // namespace spanpool::internal

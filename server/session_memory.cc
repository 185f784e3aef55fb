#include "server/session_memory.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/layout/attach.h"

// Newer than the C library's headers.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace spanpool {
namespace {

constexpr size_t kBackedSlotBytes = 64 << 10;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

absl::Status ErrorOf(const char* what) {
  const std::string text = absl::StrCat("session memory: ", what, ": ", strerror(errno));
  return absl::ResourceExhaustedError(text);
}

absl::StatusOr<layout::UniqueFd> CreateSealed(const char* name, size_t bytes, size_t backed) {
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return ErrorOf("memfd_create");
  layout::UniqueFd owned(fd);
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) return ErrorOf("ftruncate");
  if (fchmod(fd, 0444) != 0) return ErrorOf("fchmod");
  if (fcntl(fd, F_ADD_SEALS, kSeals) != 0) return ErrorOf("F_ADD_SEALS");
  if (fallocate(fd, 0, 0, static_cast<off_t>(backed)) != 0) return ErrorOf("fallocate");
  return owned;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SessionMemory>> SessionMemory::Create(uint64_t daemon_epoch) {
  auto session = CreateSealed("spanpool.session", layout::kSessionSegmentBytes,
                              sizeof(layout::SessionSegment) + kBackedSlotBytes);
  if (!session.ok()) return session.status();
  auto control = CreateSealed("spanpool.control", sizeof(layout::ControlSegment),
                              sizeof(layout::ControlSegment));
  if (!control.ok()) return control.status();

  auto memory = Map(*std::move(session), *std::move(control), daemon_epoch);
  if (!memory.ok()) return memory.status();
  (*memory)->segment_->layout_version = layout::kLayoutVersion;
  (*memory)->segment_->slot_capacity = layout::kSlotCapacity;
  return memory;
}

absl::StatusOr<std::unique_ptr<SessionMemory>> SessionMemory::Adopt(layout::UniqueFd session,
                                                                    layout::UniqueFd control,
                                                                    uint64_t daemon_epoch) {
  const auto is = [](const layout::UniqueFd& fd, size_t bytes) {
    struct stat info;
    return fd.valid() && fstat(fd.get(), &info) == 0 &&
           static_cast<uint64_t>(info.st_size) == bytes &&
           (fcntl(fd.get(), F_GET_SEALS) & kSeals) == kSeals;
  };
  if (!is(session, layout::kSessionSegmentBytes) || !is(control, sizeof(layout::ControlSegment))) {
    return absl::DataLossError("session memory: what was kept is none");
  }
  return Map(std::move(session), std::move(control), daemon_epoch);
}

absl::StatusOr<std::unique_ptr<SessionMemory>> SessionMemory::Map(layout::UniqueFd session,
                                                                  layout::UniqueFd control,
                                                                  uint64_t daemon_epoch) {
  layout::ControlSegment contents{};
  contents.layout_version = layout::kLayoutVersion;
  contents.daemon_epoch.store(daemon_epoch, std::memory_order_relaxed);
  if (pwrite(control.get(), &contents, sizeof(contents), 0) != sizeof(contents)) {
    return ErrorOf("writing the control segment");
  }
  std::unique_ptr<SessionMemory> memory(new SessionMemory);
  memory->control_read_only_fd_ = layout::UniqueFd(
      open(absl::StrCat("/proc/self/fd/", control.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!memory->control_read_only_fd_.valid()) return ErrorOf("reopening the control segment");

  void* mapped = mmap(nullptr, layout::kSessionSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                      session.get(), 0);
  if (mapped == MAP_FAILED) return ErrorOf("mmap");
  madvise(mapped, layout::kSessionSegmentBytes, MADV_DONTDUMP);
  madvise(mapped, layout::kSessionSegmentBytes, MADV_DONTFORK);
  memory->segment_ = static_cast<layout::SessionSegment*>(mapped);
  memory->slots_ = layout::SlotsOf(memory->segment_);
  memory->notes_ = layout::NotesOf(memory->segment_);
  memory->session_fd_ = std::move(session);
  memory->control_fd_ = std::move(control);
  return memory;
}

SessionMemory::~SessionMemory() {
  if (segment_ != nullptr) munmap(segment_, layout::kSessionSegmentBytes);
}

SessionMemory::SlotRange SessionMemory::WrittenSlots(uint32_t from) const {
  constexpr off_t kFirst = sizeof(layout::SessionSegment);
  constexpr SlotRange kNone{layout::kSlotCapacity, layout::kSlotCapacity};
  if (from >= layout::kSlotCapacity) return kNone;
  // A page that does not exist reads as zeroes; asking first keeps the look from creating it.
  const off_t data = lseek(session_fd_.get(), kFirst + off_t{8} * from, SEEK_DATA);
  if (data < 0) return errno == ENXIO ? kNone : SlotRange{from, layout::kSlotCapacity};
  const off_t hole = lseek(session_fd_.get(), data, SEEK_HOLE);
  const auto slot_at = [](off_t offset) { return static_cast<uint32_t>((offset - kFirst) / 8); };
  const uint32_t first = std::max(from, slot_at(data));
  if (first >= layout::kSlotCapacity) return kNone;
  // By now there may be a hole at `data`.
  const uint32_t end = hole < 0 ? layout::kSlotCapacity : std::max(slot_at(hole), first + 1);
  return {first, std::min(end, layout::kSlotCapacity)};
}

}  // namespace spanpool

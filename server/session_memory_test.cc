#include "server/session_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

#include "proto/layout/attach.h"

namespace spanpool {
namespace {

uint64_t BackedBytes(int fd) {
  struct stat info;
  EXPECT_EQ(fstat(fd, &info), 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

TEST(SessionMemory, SegmentsHaveTheirVersionAndSizeAndAreSealed) {
  const auto memory = SessionMemory::Create(42);
  ASSERT_TRUE(memory.ok()) << memory.status();
  for (const int fd : {(*memory)->session_fd(), (*memory)->control_read_only_fd()}) {
    constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    EXPECT_EQ(fcntl(fd, F_GET_SEALS) & kSeals, kSeals);
    EXPECT_TRUE(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  }
  layout::ControlSegment control;
  ASSERT_EQ(pread((*memory)->control_read_only_fd(), &control, sizeof(control), 0),
            static_cast<ssize_t>(sizeof(control)));
  EXPECT_EQ(control.layout_version, layout::kLayoutVersion);
  EXPECT_EQ(control.daemon_epoch.load(), 42u);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_WRITE, MAP_SHARED, (*memory)->control_read_only_fd(), 0),
            MAP_FAILED);
}

TEST(SessionMemory, EverySlotThatWasWrittenIsFoundAndLookingBacksNothing) {
  const auto created = SessionMemory::Create(1);
  ASSERT_TRUE(created.ok());
  SessionMemory& memory = **created;
  const std::set<uint32_t> written = {0, 8191, 8192, 300'000, layout::kSlotCapacity - 1};
  for (const uint32_t slot : written) memory.slot(slot) = 1;
  const uint64_t backed = BackedBytes(memory.session_fd());
  std::set<uint32_t> found;
  uint64_t looked_at = 0;
  for (SessionMemory::SlotRange range = memory.WrittenSlots(0); range.first < layout::kSlotCapacity;
       range = memory.WrittenSlots(range.end)) {
    ASSERT_LT(range.first, range.end);
    for (uint32_t i = range.first; i < range.end; ++i, ++looked_at) {
      if (memory.slot(i) != 0) found.insert(i);
    }
  }
  EXPECT_EQ(found, written);
  EXPECT_LT(looked_at, 20'000u) << "holes are skipped";
  EXPECT_EQ(BackedBytes(memory.session_fd()), backed);
}

TEST(SessionMemory, AScanGetsOnWhileTheClientMakesHolesAndFillsThem) {
  const auto memory = SessionMemory::Create(1);
  ASSERT_TRUE(memory.ok());
  std::atomic<bool> stop{false};
  std::thread client([&, fd = (*memory)->session_fd()] {
    while (!stop) {
      fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096);
      (*memory)->slot(0) = 1;
    }
  });
  for (int scan = 0; scan < 20'000; ++scan) {
    for (SessionMemory::SlotRange range = (*memory)->WrittenSlots(0);
         range.first < layout::kSlotCapacity; range = (*memory)->WrittenSlots(range.end)) {
      ASSERT_LT(range.first, range.end);
    }
  }
  stop = true;
  client.join();
}

TEST(SessionMemory, AScanMayStartAnywhere) {
  const auto memory = SessionMemory::Create(1);
  ASSERT_TRUE(memory.ok());
  (*memory)->slot(100'000) = 1;
  const SessionMemory::SlotRange range = (*memory)->WrittenSlots(100'000);
  EXPECT_EQ(range.first, 100'000u);
  EXPECT_GT(range.end, 100'000u);
  EXPECT_EQ((*memory)->WrittenSlots(layout::kSlotCapacity).first, layout::kSlotCapacity);
  EXPECT_EQ((*memory)->WrittenSlots(UINT32_MAX).first, layout::kSlotCapacity);
}

}  // namespace
}  // namespace spanpool

#include "allocator/memfd_arena_source.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace spanpool {
namespace {

constexpr uint64_t kTableBytes = 1 << 20;
constexpr ArenaIndex kFirst(0);
constexpr ArenaIndex kSecond(1);

uint64_t AllocatedBytes(int fd) {
  struct stat info;
  EXPECT_EQ(fstat(fd, &info), 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

TEST(MemfdArenaSource, AnArenaIsSizedSealedAndNotBacked) {
  MemfdArenaSource source("test", kTableBytes);
  ASSERT_TRUE(source.Create(kFirst).ok());
  for (const auto& [fd, bytes] : {std::pair(source.data_fd(kFirst), uint64_t{kArenaBytes}),
                                  std::pair(source.table_fd(kFirst), kTableBytes)}) {
    ASSERT_GE(fd, 0);
    struct stat info;
    ASSERT_EQ(fstat(fd, &info), 0);
    EXPECT_EQ(static_cast<uint64_t>(info.st_size), bytes);
    EXPECT_EQ(info.st_mode & 07777, 0444u);
    EXPECT_EQ(info.st_blocks, 0);
    const int seals = fcntl(fd, F_GET_SEALS);
    EXPECT_EQ(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
              F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    EXPECT_NE(ftruncate(fd, 0), 0);
    EXPECT_NE(ftruncate(fd, static_cast<off_t>(bytes * 2)), 0);
    EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  }
}

TEST(MemfdArenaSource, CreatingAnArenaTwiceIsRefused) {
  MemfdArenaSource source("test", kTableBytes);
  ASSERT_TRUE(source.Create(kFirst).ok());
  EXPECT_EQ(source.Create(kFirst).code(), absl::StatusCode::kAlreadyExists);
}

TEST(MemfdArenaSource, PopulateAllocatesExactlyTheRangeAcrossArenas) {
  MemfdArenaSource source("test", 0);
  ASSERT_TRUE(source.Create(kFirst).ok());
  ASSERT_TRUE(source.Create(kSecond).ok());
  const PageRange pages{FirstPageOf(kSecond) - PageCount(3), PageCount(5)};
  ASSERT_TRUE(source.Populate(pages).ok());
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), 3 * kPageBytes);
  EXPECT_EQ(AllocatedBytes(source.data_fd(kSecond)), 2 * kPageBytes);
  ASSERT_TRUE(source.Discard(pages).ok());
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), 0u);
  EXPECT_EQ(AllocatedBytes(source.data_fd(kSecond)), 0u);
}

TEST(MemfdArenaSource, PopulateKeepsContentsAndDiscardLosesThem) {
  MemfdArenaSource source("test", 0);
  ASSERT_TRUE(source.Create(kFirst).ok());
  const PageRange pages{PageId(10), PageCount(2)};
  ASSERT_TRUE(source.Populate(pages).ok());
  const int fd = source.data_fd(kFirst);
  const off_t offset = static_cast<off_t>(OffsetOf(pages.first).value());
  char byte = 'x';
  ASSERT_EQ(pwrite(fd, &byte, 1, offset), 1);
  ASSERT_TRUE(source.Populate({PageId(9), PageCount(4)}).ok());
  ASSERT_EQ(pread(fd, &byte, 1, offset), 1);
  EXPECT_EQ(byte, 'x');
  ASSERT_TRUE(source.Discard(pages).ok());
  ASSERT_TRUE(source.Populate(pages).ok());
  ASSERT_EQ(pread(fd, &byte, 1, offset), 1);
  EXPECT_EQ(byte, 0);
}

TEST(MemfdArenaSource, ALongPopulateCrossesItsOwnSteps) {
  MemfdArenaSource source("test", 0);
  ASSERT_TRUE(source.Create(kFirst).ok());
  // From the middle of one step to the middle of the third.
  ASSERT_TRUE(source.Populate({PageId(100), PageCount(600)}).ok());
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), 600 * kPageBytes);
}

TEST(MemfdArenaSource, AnArenaThatWasNeverCreatedIsNotFound) {
  MemfdArenaSource source("test", kTableBytes);
  const PageRange page{FirstPageOf(kSecond), PageCount(1)};
  EXPECT_EQ(source.Populate(page).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(source.Discard(page).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(source.PopulateTable(kSecond, 0, 1).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(source.OpenDataReadOnly(kSecond).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(source.data_fd(kSecond), -1);
  EXPECT_EQ(source.table_fd(kSecond), -1);
}

TEST(MemfdArenaSource, TheTableIsAllocatedByRange) {
  MemfdArenaSource source("test", kTableBytes);
  ASSERT_TRUE(source.Create(kFirst).ok());
  ASSERT_TRUE(source.PopulateTable(kFirst, 4096, 8192).ok());
  EXPECT_EQ(AllocatedBytes(source.table_fd(kFirst)), 8192u);
  EXPECT_EQ(source.PopulateTable(kFirst, kTableBytes - 1, 2).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(source.PopulateTable(kFirst, UINT64_MAX, 2).code(), absl::StatusCode::kOutOfRange);
}

TEST(MemfdArenaSource, AReadOnlyDescriptorCannotWriteOrBeMappedForWriting) {
  MemfdArenaSource source("test", 0);
  ASSERT_TRUE(source.Create(kFirst).ok());
  const absl::StatusOr<int> fd = source.OpenDataReadOnly(kFirst);
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(fcntl(*fd, F_GETFL) & O_ACCMODE, O_RDONLY);
  char byte = 'x';
  EXPECT_EQ(pwrite(*fd, &byte, 1, 0), -1);
  EXPECT_EQ(mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0), MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
  close(*fd);
}

// Needs two huge pages of 2 MiB; reserves none.
TEST(MemfdArenaSource, HugePagesComeAndGoWhole) {
  MemfdArenaSource source("test", kTableBytes, MemfdArenaSource::Kind::kHugePages);
  absl::Status status = source.Create(kFirst);
  if (status.ok()) status = source.Populate({PageId(255), PageCount(2)});
  if (absl::IsResourceExhausted(status) || absl::IsInternal(status)) {
    GTEST_SKIP() << "no huge pages: " << status;
  }
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), uint64_t{4} << 20);
  EXPECT_EQ(source.Discard({PageId(0), PageCount(511)}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), uint64_t{4} << 20);
  EXPECT_TRUE(source.Discard({PageId(0), PageCount(256)}).ok());
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), uint64_t{2} << 20);
  EXPECT_TRUE(source.Discard({PageId(256), PageCount(256)}).ok());
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), 0u);
}

TEST(MemfdArenaSource, WithoutDescriptorsCreateSaysSoAndLeavesNothing) {
  MemfdArenaSource source("test", kTableBytes);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int next = dup(0);  // the lowest free descriptor
  close(next);
  // Room for the data's descriptor, none for the table's.
  rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(next) + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  EXPECT_EQ(source.Create(kFirst).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(fcntl(next, F_GETFD), -1);
  EXPECT_TRUE(source.Create(kFirst).ok());
}

}  // namespace
}  // namespace spanpool

#include "allocator/memfd_arena_source.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/page_ranges.h"
#include "allocator/units.h"

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

// The files of an arena, as a successor has them; closed at the end unless taken.
class Inherited {
 public:
  explicit Inherited(const MemfdArenaSource& source)
      : data(dup(source.data_fd(kFirst))), table(dup(source.table_fd(kFirst))) {}
  ~Inherited() {
    if (data >= 0) close(data);
    if (table >= 0) close(table);
  }
  Inherited(const Inherited&) = delete;
  Inherited& operator=(const Inherited&) = delete;
  void Taken() { data = table = -1; }

  int data;
  int table;
};

TEST(MemfdArenaSource, AnAdoptedArenaIsAsItWas) {
  auto before = std::make_unique<MemfdArenaSource>("test", kTableBytes);
  ASSERT_TRUE(before->Create(kFirst).ok());
  ASSERT_TRUE(before->Populate({PageId(10), PageCount(600)}).ok());
  ASSERT_TRUE(before->Discard({PageId(100), PageCount(256)}).ok());
  ASSERT_TRUE(before->PopulateTable(kFirst, 0, 4096).ok());
  char byte = 'x';
  ASSERT_EQ(pwrite(before->data_fd(kFirst), &byte, 1, 10 * kPageBytes), 1);
  const PageRanges backed = *before->FindBacked({PageId(0), PageCount(kPagesPerArena)});
  Inherited files(*before);
  before.reset();

  MemfdArenaSource source("test", kTableBytes);
  const absl::Status status = source.Adopt(kFirst, files.data, files.table);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(source.data_fd(kFirst), files.data);
  EXPECT_EQ(source.table_fd(kFirst), files.table);
  EXPECT_NE(fcntl(files.data, F_GETFD) & FD_CLOEXEC, 0);
  files.Taken();
  byte = 0;
  ASSERT_EQ(pread(source.data_fd(kFirst), &byte, 1, 10 * kPageBytes), 1);
  EXPECT_EQ(byte, 'x');
  EXPECT_EQ(*source.FindBacked({PageId(0), PageCount(kPagesPerArena)}), backed);
  EXPECT_EQ(AllocatedBytes(source.data_fd(kFirst)), (600 - 256) * kPageBytes);
  EXPECT_EQ(AllocatedBytes(source.table_fd(kFirst)), 4096u);
  // An arena like any other.
  EXPECT_EQ(source.Create(kFirst).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(source.Create(kSecond).ok());
  EXPECT_TRUE(source.Populate({FirstPageOf(kSecond) - PageCount(1), PageCount(2)}).ok());
  EXPECT_TRUE(source.OpenDataReadOnly(kFirst).ok());
}

TEST(MemfdArenaSource, WhatIsBackedIsFoundAcrossArenas) {
  MemfdArenaSource source("test", 0);
  ASSERT_TRUE(source.Create(kFirst).ok());
  const PageRange both{PageId(0), PageCount(2 * kPagesPerArena)};
  EXPECT_EQ(source.FindBacked(both).status().code(), absl::StatusCode::kNotFound)
      << "the second does not exist";
  ASSERT_TRUE(source.Create(kSecond).ok());
  EXPECT_EQ(*source.FindBacked(both), PageRanges());
  const PageRange range{FirstPageOf(kSecond) - PageCount(3), PageCount(5)};
  ASSERT_TRUE(source.Populate(range).ok());
  // Touched, so that every kernel tells.
  const std::vector<char> bytes(Bytes(PageCount(3)), 'x');
  ASSERT_EQ(pwrite(source.data_fd(kFirst), bytes.data(), bytes.size(),
                   static_cast<off_t>(kArenaBytes - bytes.size())),
            static_cast<ssize_t>(bytes.size()));
  ASSERT_EQ(pwrite(source.data_fd(kSecond), bytes.data(), 2 * kPageBytes, 0),
            static_cast<ssize_t>(2 * kPageBytes));
  EXPECT_EQ(*source.FindBacked(both), PageRanges{range});
}

// A memfd of the arena's name that is not quite what it should be.
int Memfd(const char* name, uint64_t bytes, int seals, unsigned flags = MFD_ALLOW_SEALING) {
  const int fd = memfd_create(name, MFD_CLOEXEC | flags);
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
  if (seals != 0) {
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seals), 0);
  }
  return fd;
}

TEST(MemfdArenaSource, WhatIsNotAnArenasFileIsRefusedAndSaysWhy) {
  constexpr int kSize = F_SEAL_SHRINK | F_SEAL_GROW;
  constexpr int kAll = kSize | F_SEAL_SEAL;
  MemfdArenaSource before("test", kTableBytes);
  ASSERT_TRUE(before.Create(kFirst).ok());
  Inherited files(before);
  const int read_only = *before.OpenDataReadOnly(kFirst);
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  const struct {
    int data;
    int table;
    const char* says;
  } refusals[] = {
      {-1, files.table, "test.0.data (descriptor -1) cannot be examined"},
      {file, files.table, "test.0.data (descriptor "},
      {file, files.table, "should be a memfd of that name and is none"},
      {Memfd("test.1.data", kArenaBytes, kAll), files.table, "and is test.1.data"},
      {files.table, files.data, "and is test.0.table"},
      {Memfd("test.0.data", kArenaBytes / 2, kAll), files.table,
       "should have 67108864 bytes and has 33554432"},
      {read_only, files.table, "should be open for reading and writing"},
      {Memfd("test.0.data", kArenaBytes, 0), files.table, "should be sealed"},
      {Memfd("test.0.data", kArenaBytes, kSize), files.table, "should be sealed"},
      {Memfd("test.0.data", kArenaBytes, 0, 0), files.table, "should be sealed"},
      {Memfd("test.0.data", kArenaBytes, kAll | F_SEAL_FUTURE_WRITE), files.table,
       "not against writing"},
      {files.data, -1, "test.0.table (descriptor -1) cannot be examined"},
      {files.data, Memfd("test.0.table", 2 * kTableBytes, kAll), "has 2097152"},
      {files.data, Memfd("test.0.table", kTableBytes, kSize), "test.0.table"},
  };
  MemfdArenaSource source("test", kTableBytes);
  for (const auto& [data, table, says] : refusals) {
    const absl::Status status = source.Adopt(kFirst, data, table);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << says;
    EXPECT_NE(status.message().find(says), std::string::npos) << status << "\n" << says;
    EXPECT_EQ(source.data_fd(kFirst), -1);
    for (const int fd : {data, table}) {
      if (fd < 0) continue;
      EXPECT_NE(fcntl(fd, F_GETFD), -1) << "it is the caller's still";
      if (fd != files.data && fd != files.table && fd != file) close(fd);
    }
  }
  close(file);
  MemfdArenaSource without_tables("test", 0);
  const absl::Status status = without_tables.Adopt(kFirst, files.data, files.table);
  EXPECT_NE(status.message().find("arenas have no tables"), std::string::npos) << status;
  MemfdArenaSource huge("test", kTableBytes, MemfdArenaSource::Kind::kHugePages);
  EXPECT_NE(huge.Adopt(kFirst, files.data, files.table).message().find("be of huge pages"),
            std::string::npos);

  ASSERT_TRUE(source.Adopt(kFirst, files.data, files.table).ok());
  EXPECT_EQ(source.Adopt(kFirst, files.data, files.table).code(), absl::StatusCode::kAlreadyExists);
  files.Taken();
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
  EXPECT_TRUE(source.FindBacked({PageId(0), PageCount(kPagesPerArena)})->empty())
      << "which ones is not known";
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

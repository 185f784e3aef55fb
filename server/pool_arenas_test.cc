#include "server/pool_arenas.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "server/block_states.h"

namespace spanpool {
namespace {

struct SpanAt : Span {
  SpanAt(uint64_t first, uint64_t count, SpanClass its_class) {
    first_page = PageId(first);
    pages = PageCount(count);
    span_class = its_class;
    blocks = its_class.large() ? 1 : BlocksPerSpan(its_class.size_class());
    block_bytes = its_class.large() ? Bytes(pages) : BlockBytes(its_class.size_class());
  }
};

constexpr SpanClass kOf64(SizeClassFor(64), true);
constexpr SpanClass kLarge(kLargeSizeClass, true);

uint64_t BackedBytes(int fd) {
  struct stat info;
  EXPECT_EQ(fstat(fd, &info), 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

TEST(PoolArenas, WordsExistOnlyWhereASpanWasEverLent) {
  PoolArenas arenas("test", 2, nullptr);
  EXPECT_EQ(arenas.WordOf(GranuleId(0)), nullptr);
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok());
  EXPECT_EQ(arenas.WordOf(GranuleId(0)), nullptr);
  ASSERT_TRUE(arenas.PrepareTable(SpanAt(0, 1, kOf64)).ok());
  ASSERT_NE(arenas.WordOf(GranuleId(0)), nullptr);
  EXPECT_NE(arenas.WordOf(GranuleId(127)), nullptr);
  for (const uint64_t granule : {uint64_t{kGranulesPerArena} - 1, uint64_t{kGranulesPerArena},
                                 2 * uint64_t{kGranulesPerArena}, UINT64_MAX}) {
    EXPECT_EQ(arenas.WordOf(GranuleId(granule)), nullptr) << granule;
  }
}

TEST(PoolArenas, TheDaemonBacksTheTableOfWhatItLendsAndLookingAddsNothing) {
  PoolArenas arenas("test", 1, nullptr);
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok());
  const int table = arenas.FilesOf(ArenaIndex(0), true)->table;
  const uint64_t empty = BackedBytes(table);
  ASSERT_TRUE(arenas.PrepareTable(SpanAt(0, 1, kOf64)).ok());
  const uint64_t prepared = BackedBytes(table);
  EXPECT_GT(prepared, empty);
  EXPECT_EQ(arenas.table_bytes(), prepared);
  ASSERT_TRUE(arenas.PrepareTable(SpanAt(0, 1, kOf64)).ok());
  for (uint64_t g = 0; g < kGranulesPerArena; g += 64) {
    layout::SharedWord* word = arenas.WordOf(GranuleId(g));
    if (word != nullptr) {
      EXPECT_EQ(word->load(), 0u);
    }
  }
  EXPECT_EQ(BackedBytes(table), prepared);
}

TEST(PoolArenas, ALargeSpanNeedsOneWordOnlyEvenAcrossArenas) {
  PoolArenas arenas("test", 3, nullptr);
  for (uint32_t i = 0; i < 3; ++i) ASSERT_TRUE(arenas.Create(ArenaIndex(i)).ok());
  const uint64_t before = arenas.table_bytes();
  const SpanAt span(kPagesPerArena - 2, kPagesPerArena + 4, kLarge);
  ASSERT_TRUE(arenas.PrepareTable(span).ok());
  EXPECT_LE(arenas.table_bytes() - before, 16u << 10);
  EXPECT_NE(arenas.WordOf(GranuleOf(span.first_page)), nullptr);
  EXPECT_EQ(arenas.WordOf(GranuleId(kGranulesPerArena)), nullptr);
}

TEST(PoolArenas, ASmallSpanThatCrossesArenasHasAllItsWords) {
  PoolArenas arenas("test", 2, nullptr);
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok() && arenas.Create(ArenaIndex(1)).ok());
  const SpanClass wide(SizeClassFor(9472), true);  // spans of several pages
  const SpanAt span(kPagesPerArena - 1, SpanPages(wide.size_class()).value(), wide);
  ASSERT_GT(span.pages.value(), 1u);
  ASSERT_TRUE(arenas.PrepareTable(span).ok());
  for (uint32_t block = 0; block < span.blocks; ++block) {
    EXPECT_NE(arenas.WordOf(GranuleOfBlock(span, block)), nullptr) << block;
  }
}

TEST(PoolArenas, AReaderGetsADescriptorThatIsOpenForReadingOnly) {
  PoolArenas arenas("test", 1, nullptr);
  EXPECT_EQ(arenas.FilesOf(ArenaIndex(0), false).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(arenas.FilesOf(ArenaIndex(UINT32_MAX), false).status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok());
  const auto reader = arenas.FilesOf(ArenaIndex(0), false);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(fcntl(reader->data, F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(fcntl(arenas.FilesOf(ArenaIndex(0), true)->data, F_GETFL) & O_ACCMODE, O_RDWR);
}

TEST(PoolArenas, MemoryThatIsNotThereIsRefusedAndAStopEndsPopulating) {
  const std::string root = testing::TempDir() + "/arenas";
  std::filesystem::create_directories(root + "/proc");
  std::ofstream(root + "/proc/meminfo")
      << "MemAvailable: " << (PoolArenas::kMarginBytes + (1 << 20)) / 1024 << " kB\n";
  const MemoryLimit memory(root);
  PoolArenas arenas("test", 1, &memory);
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok());
  EXPECT_TRUE(arenas.Populate({PageId(0), PageCount(16)}).ok());
  const absl::Status refused = arenas.Populate({PageId(0), PageCount(1024)});
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(arenas.Create(ArenaIndex(1)).code(), absl::StatusCode::kResourceExhausted);
  arenas.Stop();
  EXPECT_EQ(arenas.Populate({PageId(0), PageCount(1)}).code(), absl::StatusCode::kCancelled);
}

TEST(TableBlockStates, BlocksBelow64BytesAreNobodyElses) {
  PoolArenas arenas("test", 1, nullptr);
  const Quarantine quarantine;
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok());
  const SpanAt span(0, 1, SpanClass(SizeClassFor(8), true));
  ASSERT_TRUE(arenas.PrepareTable(span).ok());
  *arenas.WordOf(GranuleId(0)) = layout::BlockWord().Shared().bits();
  std::array<uint64_t, kMaxBlocksPerSpan / 64> in_use{};
  EXPECT_EQ(TableBlockStates(&arenas, &quarantine).Sweep(span, absl::MakeSpan(in_use)), 0u);
}

TEST(TableBlockStates, SweepingSetsWhatIsInUseAndCollectsWhatWasFreed) {
  PoolArenas arenas("test", 1, nullptr);
  Quarantine quarantine;
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok());
  const SpanClass span_class(SizeClassFor(80), true);  // blocks that start within granules
  const SpanAt span(0, 1, span_class);
  ASSERT_TRUE(arenas.PrepareTable(span).ok());
  const auto word = [&](uint32_t block) -> layout::SharedWord& {
    return *arenas.WordOf(GranuleOfBlock(span, block));
  };
  word(1) = layout::BlockWord().Shared().bits();
  word(70) = layout::BlockWord().Shared().Acquired().bits();
  word(2) = layout::BlockWord().Shared().Released().bits();
  layout::SetHint(arenas.TableOf(ArenaIndex(0))->marks, PageId(0));
  std::array<uint64_t, kMaxBlocksPerSpan / 64> in_use{};
  EXPECT_EQ(TableBlockStates(&arenas, &quarantine).Sweep(span, absl::MakeSpan(in_use)), 2u);
  EXPECT_EQ(in_use[0], uint64_t{1} << 1);
  EXPECT_EQ(in_use[1], uint64_t{1} << (70 - 64));
  EXPECT_TRUE(layout::BlockWord(word(2)).is_private());
  EXPECT_EQ(layout::BlockWord(word(2)).generation(), 1u);
  EXPECT_FALSE(layout::TakeHint(arenas.TableOf(ArenaIndex(0))->marks, PageId(0)));
  // Nothing of it is free in quarantine, whatever the words say.
  EXPECT_TRUE(quarantine.Add(GranuleOfBlock(span, 50)));
  EXPECT_FALSE(quarantine.Add(GranuleOfBlock(span, 50)));
  in_use.fill(0);
  EXPECT_EQ(TableBlockStates(&arenas, &quarantine).Sweep(span, absl::MakeSpan(in_use)),
            span.blocks);
  EXPECT_FALSE(quarantine.Touches({PageId(1), PageCount(1)}));
}

TEST(PoolArenas, DataIsReadByTheWordAndOnlyWhereThereIsSome) {
  PoolArenas arenas("test", 2, nullptr);
  ASSERT_TRUE(arenas.Create(ArenaIndex(0)).ok());
  const uint64_t value = 0x1234'5678'9abc'def0;
  ASSERT_EQ(pwrite(arenas.FilesOf(ArenaIndex(0), true)->data, &value, 8, kArenaBytes - 8), 8);
  EXPECT_EQ(*arenas.ReadData(PoolOffset(kArenaBytes - 8)), value);
  EXPECT_EQ(*arenas.ReadData(PoolOffset(0)), 0u);
  for (const uint64_t offset : {uint64_t{4}, uint64_t{kArenaBytes}, 2 * kArenaBytes, UINT64_MAX}) {
    EXPECT_EQ(arenas.ReadData(PoolOffset(offset)).status().code(), absl::StatusCode::kNotFound);
  }
}

}  // namespace
}  // namespace spanpool

#include "server/pool_state.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "allocator/size_classes.h"
#include "server/memory_fd_store.h"

namespace spanpool {
namespace {

using layout::UniqueFd;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr uint64_t kHash = 17;

class PoolStateTest : public testing::Test {
 protected:
  void SetUp() override {
    auto state = PoolState::Create({.pool = "blue",
                                    .config_hash = kHash,
                                    .limit_bytes = 1 << 30,
                                    .incarnation = 0xabcd,
                                    .max_arenas = 18,
                                    .max_sessions = 100,
                                    .max_names = 3},
                                   &store_);
    ASSERT_TRUE(state.ok()) << state.status();
    state_ = *std::move(state);
  }

  absl::StatusOr<std::unique_ptr<PoolState>> Reopen(uint64_t hash = kHash) {
    KeptFds kept = store_.Copies();
    return PoolState::Open(std::move(kept[KeptStateName("blue")]), "blue", hash, &store_);
  }
  // As a worker that was killed leaves it.
  void Restart() {
    state_.reset();
    auto state = Reopen();
    ASSERT_TRUE(state.ok()) << state.status();
    state_ = *std::move(state);
  }
  void Write(size_t offset, const void* bytes, size_t count) {
    ASSERT_EQ(pwrite(state_->fd(), bytes, count, static_cast<off_t>(offset)),
              static_cast<ssize_t>(count));
  }
  template <typename T>
  void Write(size_t offset, T value) {
    Write(offset, &value, sizeof(value));
  }
  void ExpectRefused(const std::string& why, uint64_t hash = kHash) {
    const auto state = Reopen(hash);
    EXPECT_TRUE(absl::IsDataLoss(state.status())) << state.status();
    EXPECT_THAT(std::string(state.status().message()), HasSubstr(why));
    EXPECT_THAT(std::string(state.status().message()), HasSubstr("pool blue"));
    EXPECT_THAT(std::string(state.status().message()), HasSubstr("--discard_state"));
  }

  void KeepArena(uint32_t arena) {
    const absl::Status status = state_->KeepArena(ArenaIndex(arena), state_->fd(), state_->fd());
    ASSERT_TRUE(status.ok()) << status;
  }
  uint32_t KeepSession(uint32_t id) {
    const int fd = state_->fd();
    auto record = state_->KeepSession(
        {.id = id, .token = {1, 2, 3}, .pid = 40, .uid = 50, .access = layout::AccessMode::kRead},
        fd, fd, fd, fd);
    EXPECT_TRUE(record.ok()) << record.status();
    return record.value_or(0);
  }
  struct SpanAt : Span {
    SpanAt(uint64_t first, uint64_t count, SpanClass of = SpanClass()) {
      first_page = PageId(first);
      pages = PageCount(count);
      span_class = of;
    }
  };

  // Where the entry of a page is in the file: entries are the last part of it.
  size_t OffsetOfEntry(uint64_t page) const {
    struct stat info;
    EXPECT_EQ(fstat(state_->fd(), &info), 0);
    return static_cast<size_t>(info.st_size) - (18 * kPagesPerArena - page) * sizeof(SpanEntry);
  }

  MemoryFdStore store_;
  std::unique_ptr<PoolState> state_;
};

TEST_F(PoolStateTest, ANewStateIsEmptyAndKept) {
  EXPECT_EQ(store_.size(), 1u);
  Restart();
  EXPECT_EQ(state_->incarnation(), 0xabcdu);
  EXPECT_EQ(state_->limit_bytes(), uint64_t{1} << 30);
  EXPECT_EQ(state_->max_arenas(), 18u);
  EXPECT_THAT(state_->Arenas(), IsEmpty());
  EXPECT_THAT(*state_->Spans(), IsEmpty());
  EXPECT_THAT(*state_->Sessions(), IsEmpty());
  EXPECT_THAT(*state_->Names(), IsEmpty());
  EXPECT_THAT(state_->Quarantined(), IsEmpty());
  EXPECT_THAT(state_->UnfinishedRecount(), IsEmpty());
}

TEST_F(PoolStateTest, AnotherMagicIsRefused) {
  Write(offsetof(StateHeader, magic), uint64_t{7});
  ExpectRefused("it is no heap state");
}

TEST_F(PoolStateTest, AnotherVersionIsRefused) {
  Write(offsetof(StateHeader, version), kStateVersion + 1);
  ExpectRefused(absl::StrCat("it is of version ", kStateVersion + 1));
}

TEST_F(PoolStateTest, EveryByteThatTheChecksumCoversIsCovered) {
  for (size_t at = 12; at <= offsetof(StateHeader, checksum); ++at) {
    unsigned char byte = 0;
    ASSERT_EQ(pread(state_->fd(), &byte, 1, static_cast<off_t>(at)), 1);
    Write(at, static_cast<unsigned char>(byte ^ 0x40));
    ExpectRefused("its checksum is wrong");
    Write(at, byte);
  }
  EXPECT_TRUE(Reopen().ok());
}

TEST_F(PoolStateTest, AnotherConfigurationIsRefused) {
  ExpectRefused("another configuration", kHash + 1);
}

TEST_F(PoolStateTest, AFileOfAnotherSizeIsRefused) {
  const UniqueFd cut(memfd_create("cut", MFD_CLOEXEC));
  StateHeader header;
  ASSERT_EQ(pread(state_->fd(), static_cast<void*>(&header), sizeof(header), 0),
            static_cast<ssize_t>(sizeof(header)));
  ASSERT_EQ(pwrite(cut.get(), static_cast<void*>(&header), sizeof(header), 0),
            static_cast<ssize_t>(sizeof(header)));
  ASSERT_TRUE(store_.Keep({{.name = KeptStateName("blue"), .fd = cut.get()}}).ok());
  ExpectRefused("it has 4096 bytes, and should have");
  ASSERT_EQ(ftruncate(cut.get(), 100), 0);
  ExpectRefused("it has 100 bytes");
  const UniqueFd nothing(open("/dev/null", O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(store_.Keep({{.name = KeptStateName("blue"), .fd = nothing.get()}}).ok());
  ExpectRefused("it has 0 bytes");
}

TEST_F(PoolStateTest, AnotherPoolsStateIsRefused) {
  KeptFds kept = store_.Copies();
  const auto state = PoolState::Open(std::move(kept[KeptStateName("blue")]), "red", kHash, &store_);
  EXPECT_TRUE(absl::IsDataLoss(state.status())) << state.status();
  EXPECT_THAT(std::string(state.status().message()), HasSubstr("it is that of pool blue"));
}

TEST_F(PoolStateTest, SpansAreWhereTheyWereLastSaidToBe) {
  KeepArena(0);
  KeepArena(17);
  const SpanClass small = SpanClass::FromValue(13);
  const uint64_t far = 17 * kPagesPerArena + 5;
  state_->RecordLoan(SpanAt(0, 1, small), 7, 100);
  state_->RecordLoan(SpanAt(1, 3), 8, 101);
  state_->RecordLoan(SpanAt(far, 2), 9, 102);
  state_->RecordListed(SpanAt(0, 1, small));
  state_->RecordFreed(SpanAt(1, 3));
  Restart();
  EXPECT_THAT(state_->Arenas(), ElementsAre(ArenaIndex(0), ArenaIndex(17)));
  const auto spans = state_->Spans();
  ASSERT_TRUE(spans.ok());
  ASSERT_THAT(*spans, SizeIs(2));
  EXPECT_EQ((*spans)[0].place, SpanPlace::kListed);
  EXPECT_EQ((*spans)[0].first_page, PageId(0));
  EXPECT_EQ((*spans)[0].span_class, small);
  EXPECT_EQ((*spans)[1].place, SpanPlace::kOnLoan);
  EXPECT_EQ((*spans)[1].first_page, PageId(far));
  EXPECT_EQ((*spans)[1].pages, PageCount(2));
  EXPECT_EQ((*spans)[1].session_record, 9u);
  EXPECT_EQ((*spans)[1].sequence, 102u);
}

// Whoever is killed between the two stores of a loan leaves a span that is where it was.
TEST_F(PoolStateTest, ALoanOfWhichOnlyTheNumberWasWrittenIsNone) {
  KeepArena(0);
  Write(OffsetOfEntry(3) + offsetof(SpanEntry, sequence), uint64_t{55});
  state_->RecordListed(SpanAt(4, 1, SpanClass::FromValue(13)));
  Write(OffsetOfEntry(4) + offsetof(SpanEntry, sequence), uint64_t{56});
  Restart();
  const auto spans = state_->Spans();
  ASSERT_TRUE(spans.ok());
  ASSERT_THAT(*spans, SizeIs(1));
  EXPECT_EQ((*spans)[0].first_page, PageId(4));
  EXPECT_EQ((*spans)[0].place, SpanPlace::kListed);
}

TEST_F(PoolStateTest, EntriesThatMakeNoSenseAreRefused) {
  KeepArena(17);
  const uint64_t page = 17 * kPagesPerArena;
  const SpanWord good(SpanPlace::kListed, SpanClass(), PageCount(1), 0);
  const size_t offset = OffsetOfEntry(page) + offsetof(SpanEntry, state);
  for (const uint64_t bits : {
           good.bits() | uint64_t{3} << 62,    // no place
           good.bits() | uint64_t{200} << 32,  // no span class
           good.bits() & ~uint64_t{1},         // no pages
           good.bits() + kPagesPerArena,       // past the end
       }) {
    Write(offset, bits);
    const auto spans = state_->Spans();
    EXPECT_TRUE(absl::IsDataLoss(spans.status())) << std::hex << bits;
    EXPECT_THAT(std::string(spans.status().message()), HasSubstr(absl::StrCat("page ", page)));
  }
  Write(offset, good.bits());
  EXPECT_TRUE(state_->Spans().ok());
}

TEST_F(PoolStateTest, ASessionIsOnRecordUntilItEnds) {
  const uint32_t first = KeepSession(5);
  const uint32_t second = KeepSession(6);
  EXPECT_EQ(store_.size(), 1u + 2 * 4);
  state_->SetSession(second, RecordedSession::kDetached);
  state_->ForgetLifeline(6);
  Restart();
  auto sessions = state_->Sessions();
  ASSERT_TRUE(sessions.ok());
  ASSERT_THAT(*sessions, SizeIs(2));
  EXPECT_EQ((*sessions)[0].state, RecordedSession::kAttached);
  EXPECT_EQ((*sessions)[0].id, 5u);
  EXPECT_EQ((*sessions)[0].token[2], 3);
  EXPECT_EQ((*sessions)[0].pid, 40);
  EXPECT_EQ((*sessions)[0].uid, 50u);
  EXPECT_EQ((*sessions)[0].access, layout::AccessMode::kRead);
  EXPECT_EQ((*sessions)[1].state, RecordedSession::kDetached);
  EXPECT_EQ(state_->session_end(), 7u);

  state_->SetSession(first, RecordedSession::kNone);
  state_->ForgetSession(5);
  EXPECT_EQ(store_.size(), 1u + 3);
  Restart();
  sessions = state_->Sessions();
  ASSERT_TRUE(sessions.ok());
  ASSERT_THAT(*sessions, SizeIs(1));
  EXPECT_EQ(KeepSession(9), first);  // the record is used again
  EXPECT_EQ(state_->session_end(), 10u);
}

TEST_F(PoolStateTest, ThereAreAsManySessionRecordsAsSessions) {
  for (uint32_t i = 1; i <= 100; ++i) KeepSession(i);
  const int fd = state_->fd();
  EXPECT_TRUE(absl::IsResourceExhausted(state_->KeepSession({.id = 101}, fd, fd, fd, fd).status()));
  EXPECT_EQ(store_.size(), 1u + 100 * 4);
  Restart();
  EXPECT_THAT(*state_->Sessions(), SizeIs(100));
}

TEST_F(PoolStateTest, ASessionThatMakesNoSenseIsRefused) {
  KeepSession(1);
  state_->SetSession(0, static_cast<RecordedSession>(4));
  EXPECT_TRUE(absl::IsDataLoss(state_->Sessions().status()));
}

TEST_F(PoolStateTest, AFullStoreRefusesASessionAndKeepsNothingOfIt) {
  MemoryFdStore small(3);
  auto state = PoolState::Create({.pool = "red", .max_arenas = 2, .max_sessions = 2}, &small);
  ASSERT_TRUE(state.ok());
  const int fd = (*state)->fd();
  EXPECT_TRUE(absl::IsResourceExhausted((*state)->KeepSession({.id = 1}, fd, fd, fd, fd).status()));
  EXPECT_EQ(small.size(), 1u);
  EXPECT_THAT(*(*state)->Sessions(), IsEmpty());
}

TEST_F(PoolStateTest, NumbersOfGrantsAreNeverGivenAgain) {
  const uint64_t first = state_->NewSequences(3);
  EXPECT_EQ(first, 1u);
  EXPECT_EQ(state_->NewSequences(1), 4u);
  Restart();
  const uint64_t next = state_->NewSequences(1);
  EXPECT_GT(next, 4u);
  uint64_t last = next;
  for (int i = 0; i < 100; ++i) last = state_->NewSequences(5000) + 4999;
  Restart();
  EXPECT_GT(state_->NewSequences(1), last);
}

TEST_F(PoolStateTest, ANameThatWasBeingReplacedStandsOnce) {
  const PoolState::NameOnRecord old_name{.name = "x", .slot = 1, .version = 10, .session = 2};
  const PoolState::NameOnRecord new_name{
      .name = "x", .slot = 2, .version = 11, .session = 3, .outlives_session = true};
  ASSERT_TRUE(state_->RecordName(old_name).ok());
  ASSERT_TRUE(state_->RecordName(new_name).ok());
  for (int i = 0; i < 2; ++i) {
    Restart();
    const auto names = state_->Names();
    ASSERT_TRUE(names.ok());
    ASSERT_THAT(*names, SizeIs(1));
    EXPECT_EQ((*names)[0].name, "x");
    EXPECT_EQ((*names)[0].slot, 2u);
    EXPECT_EQ((*names)[0].version, 11u);
    EXPECT_EQ((*names)[0].session, 3u);
    EXPECT_TRUE((*names)[0].outlives_session);
  }
}

TEST_F(PoolStateTest, NamesAreOnRecordUntilTheyGo) {
  const std::string longest(kMaxNameBytes, 'n');
  const layout::HandleBits handle{
      .incarnation = 0xabcd, .granule = GranuleId(77), .start = 16, .length = 9, .generation = 4};
  auto record = state_->RecordName(
      {.name = longest, .handle = handle, .slot = 8, .version = 1, .pid = 3, .uid = 4});
  ASSERT_TRUE(record.ok());
  state_->SetNameVersion(12);
  Restart();
  auto names = state_->Names();
  ASSERT_TRUE(names.ok());
  ASSERT_THAT(*names, SizeIs(1));
  EXPECT_EQ((*names)[0].name, longest);
  EXPECT_EQ((*names)[0].handle, handle);
  EXPECT_EQ((*names)[0].pid, 3);
  EXPECT_EQ(state_->name_version(), 12u);
  state_->DropName((*names)[0].record);
  Restart();
  EXPECT_THAT(*state_->Names(), IsEmpty());
  // One more than there may be names, for one that replaces another.
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(state_->RecordName({.name = absl::StrCat(i)}).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(state_->RecordName({.name = "more"}).status()));
}

TEST_F(PoolStateTest, QuarantineAndUnfinishedRecountsAreRemembered) {
  KeepArena(0);
  KeepArena(2);
  const PageId far(2 * kPagesPerArena + 64);
  state_->RecordQuarantine(PageId(3));
  state_->RecordQuarantine(far);
  state_->BeginRecount({GranuleId(5), GranuleId(1 << 20)});
  Restart();
  EXPECT_THAT(state_->Quarantined(), ElementsAre(PageId(3), far));
  EXPECT_THAT(state_->UnfinishedRecount(), ElementsAre(GranuleId(5), GranuleId(1 << 20)));
  state_->EndRecount();
  Restart();
  EXPECT_THAT(state_->UnfinishedRecount(), IsEmpty());
}

TEST_F(PoolStateTest, WorkersAreCountedAndAStopIsSeenOnce) {
  EXPECT_EQ(state_->worker(), 1u);
  state_->SetWorker(6);
  Restart();
  EXPECT_EQ(state_->worker(), 6u);
  EXPECT_FALSE(state_->TakeStopped());
  state_->SetStopped();
  Restart();
  EXPECT_TRUE(state_->TakeStopped());
  Restart();
  EXPECT_FALSE(state_->TakeStopped());
}

TEST_F(PoolStateTest, ItIsSparse) {
  auto state = PoolState::Create({.pool = "vast",
                                  .limit_bytes = uint64_t{1} << 44,
                                  .max_arenas = 1 << 18,
                                  .max_sessions = 65536,
                                  .max_names = 65536},
                                 &store_);
  ASSERT_TRUE(state.ok()) << state.status();
  struct stat info;
  ASSERT_EQ(fstat((*state)->fd(), &info), 0);
  EXPECT_GT(info.st_size, int64_t{1} << 35);
  EXPECT_LT(info.st_blocks * 512, 1 << 20);
  const int fd = (*state)->fd();
  ASSERT_TRUE((*state)->KeepArena(ArenaIndex((1 << 18) - 1), fd, fd).ok());
  ASSERT_EQ(fstat((*state)->fd(), &info), 0);
  EXPECT_LT(info.st_blocks * 512, 1 << 20);
}

}  // namespace
}  // namespace spanpool

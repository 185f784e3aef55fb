// What a session asks of the daemon, message by message: how much, when, and what rides along.

#include "client/session_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocator/size_classes.h"
#include "allocator/units.h"
#include "client/address_range.h"
#include "client/cache_class.h"
#include "client/fake_pool.h"
#include "client/misuse.h"
#include "client/page_map.h"
#include "client/span_source.h"
#include "proto/layout/packet.h"

namespace spanpool::internal {
namespace {

constexpr uint64_t kLimitBytes = uint64_t{1} << 30;

// Writes down each message on its way to the pool.
class RecordingSource : public SpanSource {
 public:
  struct Message {
    size_t returns;
    std::vector<SpanWish> wishes;
  };

  explicit RecordingSource(std::unique_ptr<SpanSource> source) : source_(std::move(source)) {}

  absl::StatusOr<ExchangeResult> Exchange(absl::Span<const GrantSequence> returns,
                                          absl::Span<const SpanWish> wishes) override {
    messages.push_back({returns.size(), {wishes.begin(), wishes.end()}});
    absl::StatusOr<ExchangeResult> result = source_->Exchange(returns, wishes);
    if (result.ok() && on_answer != nullptr) std::exchange(on_answer, nullptr)(*result);
    return result;
  }
  absl::StatusOr<ArenaFds> OpenArena(ArenaIndex arena) override {
    return source_->OpenArena(arena);
  }
  absl::Status Detach() override { return source_->Detach(); }
  std::vector<GrantSequence> TakeUnknown() override { return source_->TakeUnknown(); }

  std::vector<Message> messages;
  // Called once, with the next answer before anybody has seen it.
  std::function<void(const ExchangeResult&)> on_answer;

 private:
  const std::unique_ptr<SpanSource> source_;
};

// Whether touching `block`, which starts a page, would be without a fault.
bool HasPage(const void* block) {
  // https://docs.kernel.org/admin-guide/mm/pagemap.html: 8 bytes for each page, the top bit says
  // so.
  const layout::UniqueFd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  uint64_t entry = 0;
  const off_t offset =
      static_cast<off_t>(reinterpret_cast<uintptr_t>(block) / 4096 * sizeof(entry));
  EXPECT_EQ(pread(pagemap.get(), &entry, sizeof(entry), offset), ssize_t{sizeof(entry)});
  return entry >> 63 != 0;
}

// The cache alone: no thread's stacks before it, and a housekeeper that works when the test says.
class SessionCacheTest : public testing::Test {
 protected:
  SessionCacheTest() {
    absl::StatusOr<std::unique_ptr<AddressRange>> range =
        AddressRange::Reserve(pool_.NewFacts().address_bytes, /*writable=*/true, &source_);
    EXPECT_TRUE(range.ok()) << range.status();
    range_ = *std::move(range);
    absl::StatusOr<std::unique_ptr<PageMap>> pages =
        PageMap::Create(PageCount(range_->bytes() / kPageBytes));
    EXPECT_TRUE(pages.ok()) << pages.status();
    pages_ = *std::move(pages);
    cache_ = std::make_unique<SessionCache>(kLimitBytes, &source_, range_.get(), pages_.get(),
                                            &misuse_, [this] { return housekeeper_; });
  }
  void TearDown() override {
    cache_->CheckInvariants();
    EXPECT_TRUE(cache_->ReturnAll().ok());
    EXPECT_TRUE(forgotten_ || pool_.Empty());
  }

  static CacheClass SmallClass(size_t bytes) {
    return CacheClassOf(SpanClass(SizeClassFor(bytes), /*noscan=*/true));
  }
  static CacheClass LargeClass(size_t bytes) {
    return CacheClassOf(StepFor(PagesFor(bytes)), /*noscan=*/true);
  }
  void* TakeOne(CacheClass c) {
    void* block = nullptr;
    const absl::StatusOr<SessionCache::Taken> taken = cache_->Take(c, {&block, 1});
    EXPECT_TRUE(taken.ok()) << taken.status();
    return block;
  }
  // Takes blocks until `count` more messages have been sent. Returns the blocks.
  std::vector<void*> TakeUntilMessages(CacheClass c, size_t count) {
    std::vector<void*> blocks;
    const size_t end = source_.messages.size() + count;
    while (source_.messages.size() < end && !HasFailure()) blocks.push_back(TakeOne(c));
    return blocks;
  }
  // How many spans of `c` the messages from the `first` on asked for.
  std::vector<uint32_t> Batches(CacheClass c, size_t first) const {
    std::vector<uint32_t> batches;
    for (size_t i = first; i < source_.messages.size(); ++i) {
      for (const SpanWish& wish : source_.messages[i].wishes) {
        if (wish.span_class == SpanClassOf(c)) batches.push_back(wish.spans);
      }
    }
    return batches;
  }

  bool forgotten_ = false;  // the pool has lost grants, which it never has back
  std::vector<PageRange> lost_pages_;
  FakePool pool_{kLimitBytes};
  RecordingSource source_{pool_.NewSource()};
  MisuseReporter misuse_;
  std::unique_ptr<AddressRange> range_;
  std::unique_ptr<PageMap> pages_;
  bool housekeeper_ = false;
  std::unique_ptr<SessionCache> cache_;
};

TEST_F(SessionCacheTest, TheFirstMessageBringsASpanOfEverySmallClass) {
  TakeOne(SmallClass(64));
  ASSERT_EQ(source_.messages.size(), 1u);
  EXPECT_EQ(source_.messages[0].wishes.size(), kNumSizeClasses - 1);
  for (uint8_t i = 1; i < kNumSizeClasses; ++i) {
    TakeOne(CacheClassOf(SpanClass(SizeClass(i), /*noscan=*/true)));
  }
  EXPECT_EQ(source_.messages.size(), 1u);
}

TEST_F(SessionCacheTest, BatchesDoubleUpToAMebibyteOfASmallClass) {
  const CacheClass c = SmallClass(8192);  // one block a span of 8 KiB
  TakeUntilMessages(c, 10);
  EXPECT_EQ(Batches(c, 0), (std::vector<uint32_t>{1, 2, 4, 8, 16, 32, 64, 128, 128, 128}));
}

TEST_F(SessionCacheTest, BatchesDoubleUpToEightMebibytesOfALargeClass) {
  const CacheClass c = LargeClass(1 << 20);
  TakeUntilMessages(c, 6);
  EXPECT_EQ(Batches(c, 0), (std::vector<uint32_t>{1, 2, 4, 8, 8, 8}));
}

TEST_F(SessionCacheTest, ABatchIsHalfAsLargeAfterSpansWentBackUnused) {
  const CacheClass c = LargeClass(1 << 20);
  std::vector<void*> blocks = TakeUntilMessages(c, 4);  // the next batch is of 8
  cache_->Give(c, blocks, nullptr);
  cache_->GiveBackHalf();
  cache_->GiveBackHalf();
  const size_t first = source_.messages.size();
  TakeUntilMessages(c, 1);
  EXPECT_EQ(Batches(c, first), std::vector<uint32_t>{2});
}

TEST_F(SessionCacheTest, FreshSpansAreUsedInTheOrderInWhichTheyCame) {
  const CacheClass c = SmallClass(8192);
  TakeUntilMessages(c, 5);  // the last brings 16 spans
  std::vector<void*> blocks(15);
  for (void*& block : blocks) block = TakeOne(c);
  ASSERT_EQ(source_.messages.size(), 5u);
  EXPECT_TRUE(std::ranges::is_sorted(blocks));
  // What was used last is used next, all the same.
  void* const last = blocks[3];
  cache_->Give(c, {&last, 1}, nullptr);
  EXPECT_EQ(TakeOne(c), last);
}

TEST_F(SessionCacheTest, SpansThatNobodyWaitsForAreMappedInTheBackground) {
  const CacheClass c = SmallClass(8192);
  housekeeper_ = true;
  const std::vector<void*> blocks = TakeUntilMessages(c, 5);
  EXPECT_TRUE(HasPage(blocks.back())) << "somebody waited for it";
  EXPECT_FALSE(HasPage(TakeOne(c)));
  cache_->KeepHouse();
  for (int i = 0; i < 14; ++i) EXPECT_TRUE(HasPage(TakeOne(c)));
}

TEST_F(SessionCacheTest, EachCallGivesBackHalfOfWhatIsIdle) {
  const CacheClass c = LargeClass(65536);
  std::vector<void*> blocks = TakeUntilMessages(c, 5);
  ASSERT_TRUE(cache_->Reclaim().ok());  // all but those
  const size_t count = blocks.size();
  ASSERT_GE(count, 16u);
  cache_->Give(c, blocks, nullptr);
  for (size_t idle = count; idle > 0;) {
    ASSERT_EQ(cache_->idle_bytes(), idle * 65536);
    cache_->GiveBackHalf();
    idle -= (idle + 1) / 2;
    EXPECT_EQ(cache_->bytes_on_loan(), idle * 65536);
  }
}

TEST_F(SessionCacheTest, AGrantThatIsLostBeforeItIsEnteredIsNotUsed) {
  TakeOne(SmallClass(64));  // the first message of all
  const auto forget = [this](const ExchangeResult& answer) {
    ASSERT_FALSE(answer.grants.empty());
    for (const SpanGrant& grant : answer.grants) {
      lost_pages_.push_back(grant.pages);
      pool_.Forget(grant.sequence);
    }
    forgotten_ = true;
  };
  const uint64_t before = cache_->bytes_on_loan();
  for (const bool exact : {false, true}) {
    source_.on_answer = forget;
    const size_t lost = lost_pages_.size();
    void* block = nullptr;
    if (exact) {
      const absl::StatusOr<void*> taken =
          cache_->TakeExact(PageCount(17), /*noscan=*/true, PageCount(1));
      ASSERT_TRUE(taken.ok()) << taken.status();
      block = *taken;
    } else {
      block = TakeOne(LargeClass(1 << 20));
      ASSERT_NE(block, nullptr);
    }
    ASSERT_GT(lost_pages_.size(), lost);
    EXPECT_EQ(cache_->spans_disowned(), lost_pages_.size());
    for (const PageRange& pages : lost_pages_) {
      EXPECT_EQ(pages_->SpanOf(pages.first), nullptr);
    }
  }
  EXPECT_GT(cache_->bytes_on_loan(), before);
}

TEST_F(SessionCacheTest, ReturnsRideAlongWithTheNextWish) {
  const CacheClass c = LargeClass(1 << 20);
  housekeeper_ = true;  // and so Give leaves the returns to it
  const std::vector<void*> blocks = TakeUntilMessages(c, 4);
  // More than the session keeps: half of the class goes.
  std::vector<void*> more;
  while (cache_->bytes_on_loan() <= uint64_t{70} << 20) more.push_back(TakeOne(c));
  const size_t before = source_.messages.size();
  cache_->Give(c, blocks, nullptr);
  for (void* block : more) cache_->Give(c, {&block, 1}, nullptr);
  EXPECT_EQ(source_.messages.size(), before) << "nothing is sent for returns alone";
  EXPECT_LT(cache_->bytes_on_loan(), (blocks.size() + more.size()) << 20);
  TakeOne(LargeClass(3 << 20));
  ASSERT_EQ(source_.messages.size(), before + 1);
  EXPECT_EQ(source_.messages.back().wishes.size(), 1u);
  EXPECT_GT(source_.messages.back().returns, 16u);
}

TEST_F(SessionCacheTest, AFewReturnsWaitForAMessageAndManyAreSent) {
  housekeeper_ = true;
  // Of a length that is no step's: each goes back when it is given.
  constexpr PageCount kPages(17);
  const CacheClass c = CacheClassOf(StepFor(kPages), /*noscan=*/true);
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) {
    const absl::StatusOr<void*> block = cache_->TakeExact(kPages, /*noscan=*/true, PageCount(1));
    ASSERT_TRUE(block.ok()) << block.status();
    blocks.push_back(*block);
  }
  const size_t before = source_.messages.size();
  cache_->Give(c, absl::MakeSpan(blocks).subspan(0, 63), nullptr);
  cache_->KeepHouse();
  EXPECT_EQ(source_.messages.size(), before);
  cache_->Give(c, absl::MakeSpan(blocks).subspan(63), nullptr);
  cache_->KeepHouse();
  ASSERT_EQ(source_.messages.size(), before + 1);
  EXPECT_EQ(source_.messages.back().returns, 64u);
}

TEST_F(SessionCacheTest, IdleSpansAreCappedInBytesAndTheOldestHalfGoes) {
  constexpr uint64_t kIdleCap = uint64_t{64} << 20;
  const CacheClass c = LargeClass(1 << 20);
  std::vector<void*> blocks;
  for (int i = 0; i < 100; ++i) blocks.push_back(TakeOne(c));
  for (void* block : blocks) {
    cache_->Give(c, {&block, 1}, nullptr);
    ASSERT_LE(cache_->idle_bytes(), kIdleCap);
  }
  // What was given first is gone, what was given last is here.
  EXPECT_EQ(pages_->SpanOf(PageOf(range_->OffsetOf(blocks.front()))), nullptr);
  EXPECT_NE(pages_->SpanOf(PageOf(range_->OffsetOf(blocks.back()))), nullptr);
  EXPECT_GE(cache_->idle_bytes(), kIdleCap / 4);
}

TEST_F(SessionCacheTest, ClassesThatRunLowAreAskedForInOneMessage) {
  housekeeper_ = true;
  TakeOne(SmallClass(64));  // the first message of all
  cache_->KeepHouse();
  const size_t before = source_.messages.size();
  // The last span of each holds less than a batch.
  for (const size_t bytes : {2048u, 4096u, 8192u, 32768u}) TakeOne(SmallClass(bytes));
  ASSERT_EQ(source_.messages.size(), before) << "nobody waited";
  cache_->KeepHouse();
  ASSERT_EQ(source_.messages.size(), before + 1);
  EXPECT_EQ(source_.messages.back().wishes.size(), 4u);
  cache_->KeepHouse();
  EXPECT_EQ(source_.messages.size(), before + 1) << "there is enough now";
}

TEST_F(SessionCacheTest, AClassThatGrowsHasTwoBatchesToSpareAndAfterwardsOne) {
  housekeeper_ = true;
  const CacheClass c = SmallClass(64);  // 128 blocks a span, batches of 32
  const auto taken_until_asked = [&] {
    const size_t before = source_.messages.size();
    int taken = 0;
    for (; source_.messages.size() == before && taken < 128; ++taken) {
      TakeOne(c);
      cache_->KeepHouse();
    }
    return taken;
  };
  TakeOne(c);
  cache_->KeepHouse();
  EXPECT_EQ(taken_until_asked(), 64) << "127 were left";
  while (cache_->idle_bytes() > 0) cache_->GiveBackHalf();
  for (int second = 0; second < 2; ++second) cache_->NoteSecond();
  EXPECT_EQ(taken_until_asked(), 32) << "63 were left";
}

TEST_F(SessionCacheTest, AClassThatStopsGrowingAsksForLess) {
  const CacheClass c = SmallClass(8192);
  TakeUntilMessages(c, 8);  // the next batch is of 128
  for (int second = 0; second < 2; ++second) cache_->NoteSecond();
  size_t first = source_.messages.size();
  TakeUntilMessages(c, 1);
  EXPECT_EQ(Batches(c, first), std::vector<uint32_t>{64});
  for (int second = 0; second < 20; ++second) cache_->NoteSecond();
  first = source_.messages.size();
  TakeUntilMessages(c, 1);
  EXPECT_EQ(Batches(c, first), std::vector<uint32_t>{17}) << "two batches of 8, and one";
}

}  // namespace
}  // namespace spanpool::internal

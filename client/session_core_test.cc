// The core of the client against a heap in this process: every tier but the daemon's.

#include "client/session_core.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "allocator/size_classes.h"
#include "client/cache_class.h"
#include "client/fake_pool.h"
#include "proto/layout/block_word.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/session_segment.h"
#include "spanpool/session.h"

namespace spanpool::internal {
namespace {

using layout::BlockWord;
using layout::HandleBits;

constexpr uint64_t kMiB = 1 << 20;

// Drops its reference at the end of the scope.
class Attached {
 public:
  explicit Attached(SessionCore* core) : core_(core) {}
  ~Attached() { Reset(); }
  void Reset() {
    if (core_ != nullptr) std::exchange(core_, nullptr)->Close();
  }
  SessionCore* operator->() const { return core_; }
  SessionCore* get() const { return core_; }

 private:
  SessionCore* core_;
};

Buffer MustAllocate(const Attached& core, size_t bytes, const AllocateOptions& options = {}) {
  absl::StatusOr<Buffer> buffer = core->Allocate(bytes, options);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? *std::move(buffer) : Buffer();
}

Buffer MustOpen(const Attached& core, const Handle& handle) {
  absl::StatusOr<Buffer> buffer = core->Open(handle);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? *std::move(buffer) : Buffer();
}

class SessionCoreTest : public testing::Test {
 protected:
  FakePool pool_{1024 * kMiB};
};

// --- Private blocks ------------------------------------------------------------------------------

TEST_F(SessionCoreTest, BlocksOfEverySizeClassAreDistinctAlignedAndComeBack) {
  Attached core(pool_.Attach());
  for (uint8_t i = 1; i < kNumSizeClasses; ++i) {
    const SizeClass size_class(i);
    SCOPED_TRACE(testing::Message() << "size class " << +i);
    const size_t bytes = BlockBytes(size_class);
    std::vector<std::byte*> blocks;
    for (uint32_t n = 0; n < 2 * BlocksPerSpan(size_class) + 1; ++n) {
      auto* block = static_cast<std::byte*>(core->Malloc(bytes, 8));
      ASSERT_NE(block, nullptr);
      EXPECT_EQ(core->UsableSize(block), bytes);
      std::memset(block, i, bytes);
      blocks.push_back(block);
    }
    std::vector<std::byte*> sorted = blocks;
    std::sort(sorted.begin(), sorted.end());
    for (size_t n = 1; n < sorted.size(); ++n) {
      ASSERT_GE(static_cast<size_t>(sorted[n] - sorted[n - 1]), bytes);
    }
    for (std::byte* block : blocks) {
      ASSERT_TRUE(
          std::all_of(block, block + bytes, [&](std::byte b) { return b == std::byte{i}; }));
      core->Free(block, nullptr);
    }
    core->DrainMyStacks();
    core->cache().CheckInvariants();
  }
  EXPECT_EQ(core->stats().misuses, 0u);
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
  EXPECT_EQ(pool_.detached(), 1u);
}

TEST_F(SessionCoreTest, LargeBlocksOfEveryStepHoldWhatWasAskedFor) {
  Attached core(pool_.Attach());
  for (uint64_t bytes : {32769ul, 40960ul, 65536ul, 65537ul, 500000ul, 4194304ul, 4194305ul,
                         67108864ul, 67108865ul, 200000000ul}) {
    void* block = core->Malloc(bytes, 16);
    ASSERT_NE(block, nullptr) << bytes;
    const size_t usable = core->UsableSize(block);
    EXPECT_GE(usable, bytes);
    EXPECT_LE(usable, bytes + bytes / 8 + kPageBytes);
    std::memset(block, 1, 4096);
    std::memset(static_cast<std::byte*>(block) + bytes - 4096, 1, 4096);
    core->Free(block, nullptr);
    core->cache().CheckInvariants();
  }
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionCoreTest, AlignmentIsKeptUpTo2MiB) {
  Attached core(pool_.Attach());
  for (size_t alignment = 1; alignment <= 2 * kMiB; alignment *= 2) {
    for (size_t bytes : {1ul, 100ul, 5000ul, 40000ul, 1ul << 20}) {
      Buffer buffer = MustAllocate(core, bytes, {.alignment = alignment});
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % alignment, 0u);
      EXPECT_EQ(buffer.size(), bytes);
    }
  }
  EXPECT_EQ(core->Allocate(1, {.alignment = 4 * kMiB}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(core->Allocate(1, {.alignment = 24}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(core->Allocate(1, {.alignment = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SessionCoreTest, ZeroedBlocksAreZeroEvenWhenReused) {
  Attached core(pool_.Attach());
  for (size_t bytes : {64ul, 1000ul, 100000ul}) {
    for (int round = 0; round < 3; ++round) {
      Buffer buffer = MustAllocate(core, bytes, {.zeroed = true});
      EXPECT_TRUE(std::all_of(buffer.data(), buffer.data() + bytes,
                              [](std::byte b) { return b == std::byte{0}; }));
      std::memset(buffer.data(), 0xff, bytes);
    }
  }
}

TEST_F(SessionCoreTest, SizesThatCannotBeAreInvalidAndNameTheLimit) {
  Attached core(pool_.Attach());
  EXPECT_EQ(core->Allocate(0, {}).status().code(), absl::StatusCode::kInvalidArgument);
  for (size_t bytes : {1024 * kMiB + 1, uint64_t{1} << 50, UINT64_MAX}) {
    const absl::Status status = core->Allocate(bytes, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("1073741824"), absl::string_view::npos) << status;
    EXPECT_EQ(core->Malloc(bytes, 16), nullptr);
  }
}

TEST_F(SessionCoreTest, ScanAndNoscanBlocksComeFromDifferentSpans) {
  Attached core(pool_.Attach());
  for (size_t bytes : {64ul, 100000ul}) {
    Buffer scan = MustAllocate(core, bytes, {.kind = BlockKind::kScan});
    Buffer noscan = MustAllocate(core, bytes);
    EXPECT_NE(core->OffsetOf(scan.data()).value() / kPageBytes,
              core->OffsetOf(noscan.data()).value() / kPageBytes);
  }
}

TEST_F(SessionCoreTest, OneMessageServesManyAllocations) {
  Attached core(pool_.Attach());
  for (int i = 0; i < 10000; ++i) ASSERT_NE(core->Malloc(64, 16), nullptr);
  EXPECT_LE(pool_.exchanges(), 12u);  // doubling batches
  const SessionStats stats = core->stats();
  EXPECT_EQ(stats.allocations, 10000u);
  EXPECT_LE(stats.refills, 12u);
  EXPECT_GE(stats.refills, 1u);
}

TEST_F(SessionCoreTest, AllocatingAndFreeingInTurnSendsNothing) {
  Attached core(pool_.Attach());
  std::mt19937 random(1);
  std::vector<void*> live(256);
  const auto churn = [&](int operations) {
    for (int i = 0; i < operations; ++i) {
      void*& slot = live[random() % live.size()];
      core->Free(slot, nullptr);
      slot = core->Malloc(64 << (random() % 10), 16);
    }
  };
  churn(100000);
  const uint64_t before = pool_.exchanges();
  churn(100000);
  EXPECT_LE(pool_.exchanges() - before, 2u);
}

// --- A full pool ---------------------------------------------------------------------------------

TEST(FullPool, SaysSoAndServesAnySizeOnceMemoryIsBack) {
  FakePool pool(16 * kMiB);
  Attached core(pool.Attach());
  std::vector<Buffer> buffers;
  absl::Status status;
  while (status.ok()) {
    absl::StatusOr<Buffer> buffer = core->Allocate(1000, {});
    status = buffer.status();
    if (buffer.ok()) buffers.push_back(*std::move(buffer));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GE(buffers.size(), 15 * kMiB / 1024);
  EXPECT_EQ(core->Malloc(1000, 16), nullptr);
  buffers.clear();
  // What is idle in stacks and spans of one class serves another.
  Buffer large = MustAllocate(core, 12 * kMiB);
  core->cache().CheckInvariants();
}

TEST(FullPool, TheWholeLimitCanBeOneBlock) {
  FakePool pool(20 * kMiB);
  Attached core(pool.Attach());
  { Buffer all = MustAllocate(core, 20 * kMiB); }
  { Buffer all = MustAllocate(core, 20 * kMiB - 5000); }
  core.Reset();
  EXPECT_TRUE(pool.Empty());
}

TEST(FullPool, AnAllocationWithATimeoutWaitsForAnotherThreadToFree) {
  FakePool pool(16 * kMiB);
  Attached core(pool.Attach());
  Buffer first = MustAllocate(core, 12 * kMiB);
  std::atomic<bool> failed_once{false};
  std::thread waiter([&] {
    EXPECT_EQ(core->Allocate(12 * kMiB, {}).status().code(), absl::StatusCode::kResourceExhausted);
    failed_once = true;
    absl::StatusOr<Buffer> buffer = core->Allocate(12 * kMiB, {.timeout = absl::Minutes(1)});
    EXPECT_TRUE(buffer.ok()) << buffer.status();
  });
  while (!failed_once) std::this_thread::yield();
  first = Buffer();
  waiter.join();
}

TEST(FullPool, ATimeoutThatPassesIsResourceExhausted) {
  FakePool pool(16 * kMiB);
  Attached core(pool.Attach());
  Buffer first = MustAllocate(core, 12 * kMiB);
  EXPECT_EQ(core->Allocate(12 * kMiB, {.timeout = absl::Milliseconds(5)}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(SessionCoreTest, WithoutADaemonWhatIsOnLoanGoesOn) {
  Attached core(pool_.Attach());
  Buffer first = MustAllocate(core, 1000);
  Handle handle = *first.Share();
  pool_.SetDown(true);
  std::vector<void*> blocks;
  for (int i = 0; i < 4; ++i) {
    blocks.push_back(core->Malloc(1000, 16));
    EXPECT_NE(blocks.back(), nullptr);
  }
  Buffer again = MustOpen(core, handle);
  EXPECT_EQ(core->Allocate(50 * kMiB, {}).status().code(), absl::StatusCode::kUnavailable);
  for (void* block : blocks) core->Free(block, nullptr);
  first = Buffer();
  again = Buffer();
  pool_.SetDown(false);
  Buffer large = MustAllocate(core, 50 * kMiB);
  large = Buffer();
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionCoreTest, WhileTheDaemonIsAwayWhatIsIdleIsKeptAndNothingIsSent) {
  Attached core(pool_.Attach());
  { Buffer buffer = MustAllocate(core, 1000); }
  core->DrainMyStacks();
  const uint64_t idle = core->stats().idle_bytes;
  EXPECT_GT(idle, 0u);
  EXPECT_EQ(core->stats().daemon, DaemonState::kConnected);
  pool_.SetDown(true);
  EXPECT_EQ(core->stats().daemon, DaemonState::kOffline);
  // Somebody needs it in vain; or the housekeeper would come to know.
  EXPECT_EQ(core->Malloc(50 * kMiB, 16), nullptr);
  const uint64_t sent = core->stats().exchanges;
  absl::Time now = absl::Now();
  for (int second = 0; second < 10; ++second) core->KeepHouse(now += absl::Seconds(1.5));
  EXPECT_EQ(core->stats().idle_bytes, idle);
  EXPECT_EQ(core->stats().exchanges, sent);
  // It says that it is back, and is told what is on loan.
  pool_.SetDown(false);
  pool_.SayResumed();
  core->KeepHouse(now);
  EXPECT_EQ(core->stats().exchanges, sent + 1);
  for (int second = 0; second < 20; ++second) core->KeepHouse(now += absl::Seconds(1.5));
  EXPECT_EQ(core->stats().idle_bytes, 0u);
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionCoreTest, AnAllocationWithATimeoutWaitsForADaemonThatIsAway) {
  Attached core(pool_.Attach());
  pool_.SetDown(true);
  std::thread later([&] { pool_.SetDown(false); });
  EXPECT_TRUE(core->Allocate(kMiB, {.timeout = absl::Minutes(1)}).ok());
  later.join();
  pool_.SetDown(true);
  EXPECT_EQ(core->Allocate(50 * kMiB, {.timeout = absl::Milliseconds(5)}).status().code(),
            absl::StatusCode::kUnavailable);
  pool_.SetDown(false);
}

// --- Misuse --------------------------------------------------------------------------------------

class MisuseTest : public SessionCoreTest {
 protected:
  MisuseTest() {
    core_->misuse().SetHandler([this](const Misuse& misuse) { seen_.push_back(misuse.kind); });
  }
  Attached core_{pool_.Attach()};
  std::vector<Misuse::Kind> seen_;
};

TEST_F(MisuseTest, ForeignPointersAreReportedAndNothingHappens) {
  int local = 0;
  core_->Free(nullptr, nullptr);
  EXPECT_TRUE(seen_.empty());
  core_->Free(&local, nullptr);
  core_->Free(reinterpret_cast<void*>(0x1000), nullptr);
  core_->Free(reinterpret_cast<void*>(UINTPTR_MAX), nullptr);
  void* block = core_->Malloc(64, 16);
  // A place in the pool that is nobody's block.
  core_->Free(static_cast<std::byte*>(block) + 512 * kMiB, nullptr);
  EXPECT_EQ(seen_, std::vector<Misuse::Kind>(4, Misuse::Kind::kForeignPointer));
  EXPECT_EQ(core_->UsableSize(&local), 0u);
  EXPECT_EQ(core_->stats().misuses, 4u);
}

TEST_F(MisuseTest, PointersIntoBlocksOfEveryClassAreReported) {
  size_t expected = 0;
  for (uint8_t i = 1; i < kNumSizeClasses; ++i) {
    const size_t bytes = BlockBytes(SizeClass(i));
    std::vector<void*> blocks;
    for (uint32_t n = 0; n < BlocksPerSpan(SizeClass(i)); ++n) {
      blocks.push_back(core_->Malloc(bytes, 8));
      for (size_t inside : {size_t{1}, bytes / 2, bytes - 1}) {
        core_->Free(static_cast<std::byte*>(blocks.back()) + inside, nullptr);
        ++expected;
      }
      ASSERT_EQ(seen_.size(), expected);
    }
    for (void* block : blocks) core_->Free(block, nullptr);
  }
  void* large = core_->Malloc(1 * kMiB, 16);
  for (size_t inside : {size_t{1}, size_t{8192}, size_t{500000}}) {
    core_->Free(static_cast<std::byte*>(large) + inside, nullptr);
    ++expected;
  }
  core_->Free(large, nullptr);
  EXPECT_EQ(seen_, std::vector<Misuse::Kind>(expected, Misuse::Kind::kInteriorPointer));
}

TEST_F(MisuseTest, ADoubleFreeIsReportedWhenTheStacksAreDrained) {
  for (size_t bytes : {16ul, 64ul, 4096ul, 100000ul}) {
    void* keep = core_->Malloc(bytes, 16);
    void* twice = core_->Malloc(bytes, 16);
    core_->Free(twice, nullptr);
    core_->Free(twice, nullptr);
    core_->DrainMyStacks();
    EXPECT_EQ(seen_, std::vector<Misuse::Kind>(1, Misuse::Kind::kDoubleFree)) << bytes;
    seen_.clear();
    core_->Free(keep, nullptr);
    core_->DrainMyStacks();
    core_->cache().CheckInvariants();
  }
  EXPECT_TRUE(seen_.empty());
}

// --- Threads -------------------------------------------------------------------------------------

TEST_F(SessionCoreTest, BlocksFreedByOtherThreadsAreReused) {
  Attached core(pool_.Attach());
  for (int round = 0; round < 50; ++round) {
    std::vector<void*> blocks;
    for (int i = 0; i < 1000; ++i) blocks.push_back(core->Malloc(256, 16));
    std::thread([&] {
      for (void* block : blocks) core->Free(block, nullptr);
    }).join();
  }
  // 50 rounds of 250 KiB live in what two or three need.
  EXPECT_LE(core->cache().bytes_on_loan(), 4 * kMiB);
  core->cache().CheckInvariants();
}

TEST_F(SessionCoreTest, ManyShortThreadsLeakNothing) {
  Attached core(pool_.Attach());
  for (int i = 0; i < 10000; ++i) {
    std::thread([&] {
      void* small = core->Malloc(64, 16);
      void* large = core->Malloc(100000, 16);
      core->Free(small, nullptr);
      core->Free(large, nullptr);
    }).join();
  }
  EXPECT_EQ(core->stats().allocations, 20000u);
  EXPECT_LE(core->cache().bytes_on_loan(), 4 * kMiB);
  core->cache().CheckInvariants();
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionCoreTest, ASessionMayEndWhileThreadsHaveStacksForIt) {
  Attached other(pool_.Attach());
  auto core = std::make_unique<Attached>(pool_.Attach());
  std::atomic<int> step{0};
  std::thread thread([&] {
    (*core)->Free((*core)->Malloc(64, 16), nullptr);
    step = 1;
    while (step != 2) std::this_thread::yield();
    // The thread's stacks of the ended session are gone; it goes on with another.
    other->Free(other->Malloc(64, 16), nullptr);
  });
  while (step != 1) std::this_thread::yield();
  core.reset();
  step = 2;
  thread.join();
  other.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionCoreTest, AThreadUsesSeveralSessionsInTurn) {
  FakePool second_pool(64 * kMiB, 8);
  Attached first(pool_.Attach());
  Attached second(second_pool.Attach());
  std::vector<void*> from_first;
  std::vector<void*> from_second;
  for (int i = 0; i < 1000; ++i) {
    from_first.push_back(first->Malloc(64, 16));
    from_second.push_back(second->Malloc(64, 16));
  }
  int misuses = 0;
  second->misuse().SetHandler([&](const Misuse&) { ++misuses; });
  second->Free(from_first[0], nullptr);  // another session's block
  EXPECT_EQ(misuses, 1);
  for (void* block : from_first) first->Free(block, nullptr);
  for (void* block : from_second) second->Free(block, nullptr);
  EXPECT_EQ(misuses, 1);
  EXPECT_EQ(first->stats().allocations, 1000u);
  first.Reset();
  second.Reset();
  EXPECT_TRUE(pool_.Empty());
  EXPECT_TRUE(second_pool.Empty());
}

struct Exit {
  SessionCore* core;
  void* block;
  ~Exit() {
    core->Free(block, nullptr);
    core->Free(core->Malloc(64, 16), nullptr);
  }
};

TEST_F(SessionCoreTest, ThreadLocalObjectsMayFreeWhenTheirThreadEnds) {
  Attached core(pool_.Attach());
  for (int i = 0; i < 20; ++i) {
    std::thread([&] {
      // Made before the thread has stacks, so destroyed after they are gone.
      thread_local Exit exit{core.get(), nullptr};
      exit.block = core->Malloc(64, 16);
    }).join();
  }
  EXPECT_EQ(core->stats().allocations, 40u);
  core->cache().CheckInvariants();
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionCoreTest, ThreadsAllocateAndFreeEachOthersBlocksAgainstAModel) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Attached core(pool_.Attach());
  struct Block {
    uint8_t* data;
    size_t bytes;
    uint8_t fill;
  };
  std::mutex mu;
  std::vector<Block> live;  // any thread frees any block
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      for (int i = 0; i < 20000; ++i) {
        if (random() % 2 == 0) {
          const size_t bytes = size_t{1} << (random() % 18);
          Block block{static_cast<uint8_t*>(core->Malloc(bytes, 16)), bytes,
                      static_cast<uint8_t>(random())};
          ASSERT_NE(block.data, nullptr);
          std::memset(block.data, block.fill, std::min<size_t>(bytes, 64));
          block.data[bytes - 1] = block.fill;
          std::lock_guard<std::mutex> lock(mu);
          live.push_back(block);
        } else {
          Block block;
          {
            std::lock_guard<std::mutex> lock(mu);
            if (live.empty()) continue;
            std::swap(live[random() % live.size()], live.back());
            block = live.back();
            live.pop_back();
          }
          // Nobody else was given any of it meanwhile.
          ASSERT_EQ(block.data[0], block.fill);
          ASSERT_EQ(block.data[std::min<size_t>(block.bytes, 64) - 1], block.fill);
          ASSERT_EQ(block.data[block.bytes - 1], block.fill);
          core->Free(block.data, nullptr);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  core->cache().CheckInvariants();
  for (const Block& block : live) core->Free(block.data, nullptr);
  core->DrainMyStacks();
  core->cache().CheckInvariants();
  EXPECT_EQ(core->stats().misuses, 0u);
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

// What is in the stacks of the calling thread.
uint64_t BytesInStacks() {
  uint64_t bytes = 0;
  for (size_t i = 2; i < kStacks; ++i) {
    const Stack& stack = hot_cache->stacks[i];
    bytes +=
        static_cast<uint64_t>(stack.top.load() - stack.floor) * BlockBytesOf(CacheClassOfStack(i));
  }
  return bytes;
}

TEST(ThreadStacks, AreCappedInBytesAndInASmallPoolBelowThat) {
  for (const auto& [pool_bytes, cap_bytes] :
       {std::pair{1024 * kMiB, 4 * kMiB}, std::pair{64 * kMiB, kMiB}}) {
    FakePool pool(pool_bytes);
    Attached core(pool.Attach());
    std::vector<void*> blocks;
    uint64_t freed_bytes = 0;
    for (const size_t bytes :
         {64u, 1024u, 4096u, 8192u, 16384u, 32768u, 65536u, 131072u, 262144u}) {
      for (uint64_t i = 0; i < 2 * kMiB / bytes; ++i) {
        blocks.push_back(core->Malloc(bytes, 16));
        ASSERT_NE(blocks.back(), nullptr);
        freed_bytes += bytes;
      }
    }
    ASSERT_GT(freed_bytes, 2 * cap_bytes);
    for (void* block : blocks) {
      core->Free(block, nullptr);
      ASSERT_LE(BytesInStacks(), cap_bytes);
    }
    EXPECT_GT(BytesInStacks(), cap_bytes / 4);
  }
}

TEST(ThreadStacks, OfManyThreadsAreCappedTogether) {
  constexpr int kThreads = 32;
  FakePool pool(64 * kMiB);  // of which an eighth may be in stacks
  Attached core(pool.Attach());
  std::atomic<int> here{0};
  std::atomic<int> done{0};
  std::atomic<uint64_t> in_stacks{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      void* const first = core->Malloc(64, 16);
      ++here;
      while (here != kThreads) std::this_thread::yield();
      core->Free(first, nullptr);
      std::vector<void*> blocks;
      for (const size_t bytes : {1024u, 4096u, 16384u, 65536u}) {
        for (uint64_t i = 0; i < kMiB / 4 / bytes; ++i) blocks.push_back(core->Malloc(bytes, 16));
      }
      for (void* block : blocks) core->Free(block, nullptr);
      in_stacks += BytesInStacks();
      ++done;
      while (done != kThreads) std::this_thread::yield();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(in_stacks, 8 * kMiB);
  EXPECT_GT(in_stacks, kMiB);
  core->cache().CheckInvariants();
}

TEST_F(SessionCoreTest, AThreadThatHoldsAllItMayMakesRoomForAnotherClass) {
  Attached core(pool_.Attach());
  std::vector<void*> blocks;
  for (const size_t bytes : {32768u, 65536u, 131072u, 262144u}) {
    for (size_t kept = 0; kept < 4 * kMiB; kept += bytes) blocks.push_back(core->Malloc(bytes, 16));
  }
  for (uint64_t bytes = 8192; bytes <= 512 * 1024; bytes += 8192) {
    for (int i = 0; i < 8; ++i) blocks.push_back(core->Malloc(bytes, 16));
  }
  for (void* block : blocks) core->Free(block, nullptr);
  ASSERT_GT(BytesInStacks(), 3 * kMiB);
  const CacheClass c = CacheClassOf(SpanClass(SizeClassFor(1024), /*noscan=*/true));
  void* const block = core->Malloc(1024, 16);
  const Stack& stack = hot_cache->stacks[StackIndexOf(c)];
  EXPECT_GT(stack.top.load(), stack.floor);  // not only the one asked for
  EXPECT_LE(BytesInStacks(), 4 * kMiB);
  core->Free(block, nullptr);
  core->DrainMyStacks();
  core->cache().CheckInvariants();
  EXPECT_EQ(core->cache().idle_bytes(), core->cache().bytes_on_loan());
}

TEST_F(SessionCoreTest, AStackGrowsByABatchEachTimeItOverflowsUpToItsCapacity) {
  Attached core(pool_.Attach());
  const CacheClass c = CacheClassOf(SpanClass(SizeClassFor(1024), /*noscan=*/true));
  std::vector<void*> blocks;
  for (size_t i = 0; i < 2 * StackCapacityOf(c); ++i) blocks.push_back(core->Malloc(1024, 16));
  core->DrainMyStacks();
  const Stack& stack = hot_cache->stacks[StackIndexOf(c)];
  size_t room = 0;
  for (void* block : blocks) {
    core->Free(block, nullptr);
    const auto now = static_cast<size_t>(stack.limit - stack.floor);
    ASSERT_TRUE(now == room || now == std::min(room + BatchOf(c), StackCapacityOf(c)));
    room = now;
  }
  EXPECT_EQ(room, StackCapacityOf(c));
}

TEST_F(SessionCoreTest, AThreadThatRunsDryTakesTwiceAsMuchTheNextTime) {
  Attached core(pool_.Attach());
  const CacheClass c = CacheClassOf(SpanClass(SizeClassFor(64), /*noscan=*/true));
  const auto left = [&] {
    const Stack& stack = hot_cache->stacks[StackIndexOf(c)];
    return static_cast<size_t>(stack.top.load() - stack.floor);
  };
  ASSERT_NE(core->Malloc(64, 16), nullptr);
  EXPECT_EQ(left(), BatchOf(c) - 1);
  while (left() > 0) ASSERT_NE(core->Malloc(64, 16), nullptr);
  ASSERT_NE(core->Malloc(64, 16), nullptr);
  EXPECT_EQ(left(), 2 * BatchOf(c) - 1);
}

TEST_F(SessionCoreTest, StacksOfIdleThreadsAreDrainedByOthers) {
  Attached core(pool_.Attach());
  std::atomic<int> step{0};
  std::thread idle([&] {
    std::vector<void*> blocks;
    for (int i = 0; i < 300; ++i) blocks.push_back(core->Malloc(4096, 16));
    for (void* block : blocks) core->Free(block, nullptr);
    step = 1;
    while (step != 2) std::this_thread::yield();
    // Its stacks are empty, and it goes on as before.
    for (int i = 0; i < 300; ++i) core->Free(core->Malloc(4096, 16), nullptr);
  });
  while (step != 1) std::this_thread::yield();
  const uint64_t idle_before = core->cache().idle_bytes();
  core->DrainOtherStacks();
  EXPECT_GT(core->cache().idle_bytes(), idle_before);
  EXPECT_EQ(core->cache().idle_bytes(), core->cache().bytes_on_loan());
  step = 2;
  idle.join();
  EXPECT_EQ(core->stats().misuses, 0u);
  core->cache().CheckInvariants();
}

TEST(FullPool, WhatIdleThreadsKeepInTheirStacksServesOthers) {
  FakePool pool(16 * kMiB);
  Attached core(pool.Attach());
  std::atomic<int> step{0};
  std::thread idle([&] {
    std::vector<void*> blocks;
    for (int i = 0; i < 2000; ++i) blocks.push_back(core->Malloc(4096, 16));
    for (void* block : blocks) core->Free(block, nullptr);
    step = 1;
    while (step != 2) std::this_thread::yield();
  });
  while (step != 1) std::this_thread::yield();
  { Buffer all = MustAllocate(core, 16 * kMiB); }
  step = 2;
  idle.join();
}

TEST_F(SessionCoreTest, DrainingThreadsThatWorkHarmsNeither) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::unique_ptr<Session> session = SessionCore::NewSession(pool_.Attach());
  SessionCore* const core = internal::SessionCore::CoreOf(*session);
  std::atomic<int> working{3};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      std::array<std::pair<uint8_t*, uint8_t>, 64> live{};
      for (int i = 0; i < 50000; ++i) {
        auto& [data, fill] = live[random() % live.size()];
        if (data != nullptr) {
          ASSERT_EQ(data[0], fill);
          ASSERT_EQ(data[63], fill);
        }
        session->Free(data);
        data = static_cast<uint8_t*>(session->Malloc(64 << (random() % 3)));
        ASSERT_NE(data, nullptr);
        fill = static_cast<uint8_t>(random());
        std::memset(data, fill, 64);
      }
      for (auto& [data, fill] : live) session->Free(data);
      --working;
    });
  }
  while (working != 0) {
    core->DrainOtherStacks();
    core->cache().GiveBackHalf();
    (void)session->stats();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(session->stats().allocations, 150000u);
  EXPECT_EQ(session->stats().misuses, 0u);
  core->cache().CheckInvariants();
  session.reset();
  EXPECT_TRUE(pool_.Empty());
}

// A thread that was stopped in the middle of an operation, before or after it moved its stack's
// top, while another drained its stacks.
class StoppedThreadTest : public SessionCoreTest {
 protected:
  void SetUp() override {
    std::vector<void*> blocks;
    for (int i = 0; i < 10; ++i) blocks.push_back(session_->Malloc(64));
    for (void* block : blocks) session_->Free(block);
    cache_ = hot_cache;
    offset_ = cache_->stack_of[IndexOfSize(64)];
    stack_ = reinterpret_cast<Stack*>(reinterpret_cast<char*>(cache_->stacks) + offset_);
    top_ = stack_->top.load();
    ASSERT_GT(top_ - stack_->floor, 2);
  }
  void TearDown() override {
    EXPECT_EQ(ReadKey(&cache_->session), session_.get());
    EXPECT_EQ(session_->stats().misuses, 0u);
    SessionCore* const core = SessionCore::CoreOf(*session_);
    core->DrainMyStacks();
    core->cache().CheckInvariants();
    EXPECT_EQ(core->cache().idle_bytes(), core->cache().bytes_on_loan());  // every block is back
    session_.reset();
    EXPECT_TRUE(pool_.Empty());
  }
  void DrainByAnotherThread() {
    std::thread([&] { SessionCore::CoreOf(*session_)->DrainOtherStacks(); }).join();
    EXPECT_EQ(ReadKey(&cache_->session), nullptr);
  }

  std::unique_ptr<Session> session_ = SessionCore::NewSession(pool_.Attach());
  ThreadCache* cache_ = nullptr;
  size_t offset_ = 0;
  Stack* stack_ = nullptr;
  void** top_ = nullptr;
};

TEST_F(StoppedThreadTest, APopThatComesTooLateGetsNothing) {
  DrainByAnotherThread();
  stack_->top = top_ - 1;
  UndoPop(cache_, offset_, top_);
  EXPECT_EQ(stack_->top.load(), stack_->floor);
}

TEST_F(StoppedThreadTest, APopThatWasInTimeLeavesItsBlockInTheStack) {
  void* const block = top_[-1];
  stack_->top = top_ - 1;
  DrainByAnotherThread();
  UndoPop(cache_, offset_, top_);
  EXPECT_EQ(stack_->top.load(), stack_->floor + 1);
  void* const again = session_->Malloc(64);
  EXPECT_EQ(again, block);
  session_->Free(again);
}

TEST_F(StoppedThreadTest, APushThatComesTooLateIsDoneAgain) {
  void* const block = session_->Malloc(64);
  DrainByAnotherThread();
  top_[-1] = block;
  stack_->top = top_;
  EXPECT_FALSE(UndoPush(cache_, offset_, top_ - 1, session_.get()));
  EXPECT_EQ(stack_->top.load(), stack_->floor);
  session_->Free(block);
}

TEST_F(StoppedThreadTest, APushThatWasInTimeIsDrainedWithTheOthers) {
  void* const block = session_->Malloc(64);
  top_[-1] = block;
  stack_->top = top_;
  DrainByAnotherThread();
  EXPECT_TRUE(UndoPush(cache_, offset_, top_ - 1, session_.get()));
  EXPECT_EQ(stack_->top.load(), stack_->floor);
}

TEST_F(StoppedThreadTest, ItIsNotDrainedAgainBeforeItKnows) {
  DrainByAnotherThread();
  DrainByAnotherThread();
  void* const block = session_->Malloc(64);
  EXPECT_NE(block, nullptr);
  session_->Free(block);
}

TEST_F(StoppedThreadTest, ItMayGoOnInTheMiddleOfADrainButOnlyTheSlowWay) {
  DrainByAnotherThread();
  void* block = nullptr;
  absl::Notification halfway, settled;
  std::thread drainer([&] {
    SessionCore::CoreOf(*session_)->DrainOtherStacks([&] {
      halfway.Notify();
      settled.WaitForNotification();
    });
  });
  halfway.WaitForNotification();
  block = session_->Malloc(64);  // it learns of the first drain, and fills its stack again
  EXPECT_EQ(ReadKey(&cache_->session), nullptr);
  EXPECT_NE(stack_->top.load(), stack_->floor);
  settled.Notify();
  drainer.join();
  // What was drained is not to be had from the stack any more.
  EXPECT_EQ(Pop(cache_, &ThreadCache::session, session_.get(), offset_), nullptr);
  session_->Free(block);
}

TEST_F(SessionCoreTest, OneSessionsKeyMovesNoBlockOfAnother) {
  std::unique_ptr<Session> first = SessionCore::NewSession(pool_.Attach());
  std::unique_ptr<Session> second = SessionCore::NewSession(pool_.Attach());
  void* const block = first->Malloc(64);
  void* const other = first->Malloc(64);
  first->Free(other);
  ThreadCache* const cache = hot_cache;
  Stack& stack = *reinterpret_cast<Stack*>(reinterpret_cast<char*>(cache->stacks) +
                                           cache->stack_of[IndexOfSize(64)]);
  void** const top = stack.top;
  EXPECT_EQ(Pop(cache, &ThreadCache::session, second.get(), cache->stack_of[IndexOfSize(64)]),
            nullptr);
  EXPECT_EQ(stack.top.load(), top);
  EXPECT_FALSE(Push(cache, &ThreadCache::session, second.get(), block));
  EXPECT_EQ(stack.top.load(), top);
  first->Free(block);
}

TEST_F(SessionCoreTest, AQuietSessionGivesBackHalfOfWhatIsIdleEachSecond) {
  Attached core(pool_.Attach());
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) blocks.push_back(core->Malloc(65536, 16));
  for (void* block : blocks) core->Free(block, nullptr);
  absl::Time now = absl::UnixEpoch();
  EXPECT_EQ(core->KeepHouse(now), now + absl::Seconds(1));  // it was active
  const uint64_t peak = core->cache().bytes_on_loan();
  now += absl::Milliseconds(500);
  core->KeepHouse(now);
  EXPECT_EQ(core->cache().bytes_on_loan(), peak);
  core->DrainMyStacks();
  uint64_t before = peak;
  int seconds = 0;
  for (absl::Time next = now; next != absl::InfiniteFuture(); ++seconds) {
    now += absl::Seconds(1);
    next = core->KeepHouse(now);
    EXPECT_LE(core->cache().bytes_on_loan(), before / 2 + kMiB);  // rounded up in each class
    before = core->cache().bytes_on_loan();
    ASSERT_LT(seconds, 20);
  }
  EXPECT_EQ(before, 0u);
  EXPECT_TRUE(pool_.Empty());
  EXPECT_GE(seconds, 3);
  // Activity starts the wait anew.
  core->Free(core->Malloc(65536, 16), nullptr);
  EXPECT_EQ(core->KeepHouse(now), now + absl::Seconds(1));
}

TEST_F(SessionCoreTest, AClassThatRunsLowIsPrefetchedInTheBackground) {
  Attached core(pool_.AttachWithHousekeeper());
  void* const block = core->Malloc(4096, 16);
  EXPECT_EQ(core->stats().refills, 1u);
  // One of the span's two blocks was handed out, the other is in the stack: the class is low, and
  // more comes without anybody waiting.
  while (core->stats().exchanges < 2) std::this_thread::yield();
  EXPECT_EQ(core->stats().refills, 1u);
  core->Free(block, nullptr);
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionCoreTest, ThreadsAndTheHousekeeperWorkTogether) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Attached core(pool_.AttachWithHousekeeper());
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      std::array<Buffer, 100> live;
      for (int i = 0; i < 10000; ++i) {
        Buffer& buffer = live[random() % live.size()];
        buffer = Buffer();
        buffer = MustAllocate(core, size_t{64} << (random() % 16));
        if (random() % 4 == 0) {
          ASSERT_TRUE(buffer.Share().ok());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(core->stats().allocations, 30000u);
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

// A thread that allocates and frees `blocks` blocks of `bytes`, and then is idle with full stacks
// until the object goes.
class IdleThread {
 public:
  IdleThread(const Attached& core, int blocks, size_t bytes)
      : thread_([this, core = core.get(), blocks, bytes] {
          std::vector<void*> mine;
          for (int i = 0; i < blocks; ++i) mine.push_back(core->Malloc(bytes, 16));
          for (void* block : mine) core->Free(block, nullptr);
          step_ = 1;
          while (step_ != 2) std::this_thread::yield();
        }) {
    while (step_ != 1) std::this_thread::yield();
  }
  ~IdleThread() {
    step_ = 2;
    thread_.join();
  }

 private:
  std::atomic<int> step_{0};
  std::thread thread_;
};

TEST_F(SessionCoreTest, AQuietSessionGivesBackWhatIdleThreadsKeepInTheirStacks) {
  Attached core(pool_.Attach());
  IdleThread small(core, 300, 4096);
  IdleThread large(core, 8, 65536);
  absl::Time now = absl::UnixEpoch();
  core->KeepHouse(now);
  EXPECT_LT(core->cache().idle_bytes(), core->cache().bytes_on_loan());  // blocks are in stacks
  int seconds = 0;
  for (absl::Time next = now; next != absl::InfiniteFuture(); ++seconds) {
    now += absl::Seconds(1);
    next = core->KeepHouse(now);
    // Nothing is in a stack any more, so all that is on loan is idle.
    EXPECT_EQ(core->cache().idle_bytes(), core->cache().bytes_on_loan());
    ASSERT_LT(seconds, 20);
  }
  EXPECT_GE(seconds, 3);
  EXPECT_EQ(core->cache().bytes_on_loan(), 0u);
}

TEST_F(SessionCoreTest, WhatIsFreedLongAfterTheLastAllocationIsGivenBackToo) {
  Attached core(pool_.Attach());
  absl::Time now = absl::UnixEpoch();
  const auto await_rest = [&] {
    for (absl::Time next = now; next != absl::InfiniteFuture();) {
      now += absl::Seconds(1);
      next = core->KeepHouse(now);
    }
  };
  std::atomic<int> step{0};
  const auto await = [&](int there) {
    while (step != there) std::this_thread::yield();
  };
  std::thread thread([&] {
    std::vector<Buffer> buffers;
    for (const size_t bytes : {64u, 4096u, 65536u}) buffers.push_back(MustAllocate(core, bytes));
    for (size_t i = 0; i < buffers.size(); ++i) {
      step = static_cast<int>(2 * i + 1);
      await(static_cast<int>(2 * i + 2));
      buffers[i] = Buffer();  // into a stack that was emptied
    }
    step = 7;
    await(8);
  });
  for (int i = 0; i < 3; ++i) {
    await(2 * i + 1);
    await_rest();
    EXPECT_TRUE(core->cache().resting());
    const uint64_t before = core->cache().bytes_on_loan();
    step = 2 * i + 2;
    await(2 * i + 3);
    EXPECT_FALSE(core->cache().resting()) << "the housekeeper is told";
    await_rest();
    EXPECT_LT(core->cache().bytes_on_loan(), before);
  }
  EXPECT_EQ(core->cache().bytes_on_loan(), 0u);
  step = 8;
  thread.join();
  core->cache().CheckInvariants();
}

// --- Recall --------------------------------------------------------------------------------------

TEST_F(SessionCoreTest, ARecallBringsBackAllThatIsIdleAndNothingInUse) {
  Attached core(pool_.Attach());
  IdleThread idle(core, 300, 4096);
  Buffer small = MustAllocate(core, 1000);
  Buffer large = MustAllocate(core, 10 * kMiB);
  Buffer shared = MustAllocate(core, 1000);
  ASSERT_TRUE(shared.Share().ok());
  std::memset(small.data(), 3, 1000);
  core->Free(core->Malloc(20 * kMiB, 16), nullptr);
  core->DrainMyStacks();  // this thread keeps house: its stacks are its own
  EXPECT_GT(pool_.stats().on_loan_bytes, 31 * kMiB);
  pool_.Recall();
  core->KeepHouse(absl::UnixEpoch());
  pool_.AwaitAnswers();
  // What holds the buffers: a span of 8 KiB for the two small ones, and the large one.
  EXPECT_EQ(pool_.stats().on_loan_bytes, 10 * kMiB + kPageBytes);
  EXPECT_EQ(core->cache().idle_bytes(), 0u);
  EXPECT_EQ(small.data()[999], std::byte{3});
  core->cache().CheckInvariants();
  // The session goes on as before.
  Buffer another = MustAllocate(core, 5000);
}

TEST_F(SessionCoreTest, ARecallForLessTakesIdleSpansFirstAndLeavesTheStacks) {
  Attached core(pool_.Attach());
  IdleThread idle(core, 8, 65536);
  void* const large = core->Malloc(20 * kMiB, 16);
  core->Free(large, nullptr);
  const uint64_t before = pool_.stats().on_loan_bytes;
  pool_.Recall(10 * kMiB);
  core->KeepHouse(absl::UnixEpoch());
  pool_.AwaitAnswers();
  EXPECT_LE(pool_.stats().on_loan_bytes, before - 10 * kMiB);
  EXPECT_GT(pool_.stats().on_loan_bytes, 0u);
  // More than is idle in spans: now the stacks, too.
  pool_.Recall(10 * kMiB);
  core->KeepHouse(absl::UnixEpoch());
  pool_.AwaitAnswers();
  EXPECT_EQ(pool_.stats().on_loan_bytes, 0u);
}

TEST_F(SessionCoreTest, ARecallFindsBlocksThatOthersFreed) {
  Attached core(pool_.Attach());
  Attached other(pool_.Attach());
  Buffer shared = MustAllocate(core, 10 * kMiB);
  Buffer opened = MustOpen(other, *shared.Share());
  shared = Buffer();  // lives on elsewhere
  opened = Buffer();
  pool_.Recall();
  core->KeepHouse(absl::UnixEpoch());
  other->KeepHouse(absl::UnixEpoch());
  pool_.AwaitAnswers();
  EXPECT_EQ(pool_.stats().on_loan_bytes, 0u);
}

TEST_F(SessionCoreTest, AnIdleSessionAnswersARecallByItself) {
  Attached core(pool_.AttachWithHousekeeper());
  IdleThread idle(core, 300, 4096);
  for (int round = 0; round < 3; ++round) {
    core->Free(core->Malloc(20 * kMiB, 16), nullptr);
    pool_.Recall();
    pool_.AwaitAnswers();
    EXPECT_EQ(pool_.stats().on_loan_bytes, 0u);
  }
}

TEST_F(SessionCoreTest, ABusySessionAnswersRecallsAndLosesNoBlock) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Attached core(pool_.AttachWithHousekeeper());
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      std::array<std::pair<Buffer, std::byte>, 50> live;
      while (!stop) {
        auto& [buffer, fill] = live[random() % live.size()];
        if (buffer.size() != 0) {
          ASSERT_EQ(buffer.data()[0], fill);
          ASSERT_EQ(buffer.data()[buffer.size() - 1], fill);
        }
        buffer = Buffer();
        buffer = MustAllocate(core, size_t{64} << (random() % 16));
        fill = static_cast<std::byte>(random());
        buffer.data()[0] = buffer.data()[buffer.size() - 1] = fill;
      }
    });
  }
  for (int round = 0; round < 100; ++round) {
    pool_.Recall(round % 2 == 0 ? UINT64_MAX : kMiB);
    pool_.AwaitAnswers();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  core->cache().CheckInvariants();
  EXPECT_EQ(core->stats().misuses, 0u);
  core.Reset();
  EXPECT_TRUE(pool_.Empty());
}

// --- Sharing: two sessions, as two processes -----------------------------------------------------

class SharingTest : public SessionCoreTest {
 protected:
  HandleBits Bits(const Handle& handle) {
    return HandleBits::Unpack(handle.bits[0], handle.bits[1]);
  }
  BlockWord Word(const Handle& handle) {
    return BlockWord(pool_.WordOf(Bits(handle).granule).load());
  }
  void ExpectEmptyAfterDetaching(uint32_t sessions = 2) {
    a_.Reset();
    b_.Reset();
    EXPECT_TRUE(pool_.Empty());
    EXPECT_EQ(pool_.detached(), sessions);
  }

  Attached a_{pool_.Attach()};
  Attached b_{pool_.Attach()};
};

TEST_F(SharingTest, BlocksOfEveryShareableClassAndLargeOnesAreSeenByTheOther) {
  std::vector<size_t> sizes = {32769, 100000, 1 * kMiB, 70 * kMiB};
  for (uint8_t i = 1; i < kNumSizeClasses; ++i) {
    if (BlockBytes(SizeClass(i)) >= 64) sizes.push_back(BlockBytes(SizeClass(i)));
  }
  for (size_t bytes : sizes) {
    SCOPED_TRACE(testing::Message() << bytes << " bytes");
    std::vector<std::pair<Buffer, Handle>> shared;
    for (int i = 0; i < 3; ++i) {  // starts within a granule at 0, 16, 32, 48
      Buffer buffer = MustAllocate(a_, bytes - static_cast<size_t>(i), {.alignment = 8});
      std::memset(buffer.data(), i + 1, buffer.size());
      absl::StatusOr<Handle> handle = buffer.Share();
      ASSERT_TRUE(handle.ok()) << handle.status();
      EXPECT_EQ(*buffer.Share(), *handle);
      shared.emplace_back(std::move(buffer), *handle);
    }
    for (int i = 0; i < 3; ++i) {
      auto& [buffer, handle] = shared[static_cast<size_t>(i)];
      Buffer opened = MustOpen(b_, handle);
      ASSERT_EQ(opened.size(), buffer.size());
      EXPECT_NE(opened.data(), buffer.data());  // mapped twice
      EXPECT_EQ(std::memcmp(opened.data(), buffer.data(), buffer.size()), 0);
      EXPECT_EQ(Word(handle).refs(), 2u);
      buffer = Buffer();
      EXPECT_EQ(opened.data()[0], std::byte(i + 1));  // b keeps it
      opened = Buffer();
      EXPECT_TRUE(Word(handle).freed());
      EXPECT_EQ(b_->Open(handle).status().code(), absl::StatusCode::kNotFound);
      EXPECT_EQ(a_->Open(handle).status().code(), absl::StatusCode::kNotFound);
    }
    a_->cache().CheckInvariants();
  }
  EXPECT_EQ(a_->references().slots_in_use(), 0u);
  EXPECT_EQ(b_->references().slots_in_use(), 0u);
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, ABlockBelow64BytesIsPrivateAndShareSaysSo) {
  Buffer buffer = MustAllocate(a_, 48, {.alignment = 8});
  const absl::Status status = buffer.Share().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("64"), absl::string_view::npos);
  // The default alignment makes any size shareable.
  EXPECT_TRUE(MustAllocate(a_, 1).Share().ok());
}

TEST_F(SharingTest, EachOpenIsAReferenceOfItsOwnAndRefNeedsNone) {
  Buffer buffer = MustAllocate(a_, 1000);
  const Handle handle = *buffer.Share();
  Buffer ref = buffer.Ref();
  EXPECT_EQ(Word(handle).refs(), 1u);
  EXPECT_EQ(*ref.Share(), handle);
  Buffer opened_here = MustOpen(a_, handle);
  EXPECT_EQ(opened_here.data(), buffer.data());
  EXPECT_EQ(*opened_here.Share(), handle);
  Buffer opened_there = MustOpen(b_, handle);
  Buffer opened_twice = MustOpen(b_, handle);
  EXPECT_EQ(Word(handle).refs(), 4u);
  EXPECT_EQ(a_->references().slots_in_use(), 2u);
  EXPECT_EQ(b_->references().slots_in_use(), 2u);
  buffer = Buffer();
  EXPECT_EQ(Word(handle).refs(), 4u);
  ref = Buffer();
  EXPECT_EQ(Word(handle).refs(), 3u);
  opened_there = Buffer();
  opened_twice = Buffer();
  EXPECT_EQ(Word(handle).refs(), 1u);
  opened_here = Buffer();
  EXPECT_TRUE(Word(handle).freed());
  EXPECT_EQ(a_->references().slots_in_use() + b_->references().slots_in_use(), 0u);
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, AReferenceThatIsOwnedTogetherMayBeSharedByAnyOfItsOwners) {
  Buffer first = MustAllocate(a_, 100000);
  Buffer second = first.Ref();
  Buffer third = second.Ref();
  ASSERT_TRUE(second.Trim(90000).ok());
  const Handle handle = *second.Share();
  EXPECT_EQ(*first.Share(), handle);
  EXPECT_EQ(first.Trim(10).code(), absl::StatusCode::kFailedPrecondition);
  second = Buffer();
  first = Buffer();
  EXPECT_EQ(Word(handle).refs(), 1u);
  EXPECT_EQ(MustOpen(b_, handle).size(), 90000u);
  third = Buffer();
  EXPECT_TRUE(Word(handle).is_private());
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, ABlockTheOtherFreedIsCollectedAndReusedUnderANewGeneration) {
  // 64 blocks to a span: all of it is shared away, and comes back by sweeping.
  std::set<uint64_t> granules;
  std::vector<Buffer> opened;
  for (int i = 0; i < 64; ++i) {
    Buffer buffer = MustAllocate(a_, 128);
    const Handle handle = *buffer.Share();
    granules.insert(Bits(handle).granule.value());
    opened.push_back(MustOpen(b_, handle));
  }
  const uint64_t on_loan = a_->cache().bytes_on_loan();
  opened.clear();
  int reused = 0;
  std::vector<Buffer> again;
  for (int i = 0; i < 2000 && reused < 60; ++i) {
    again.push_back(MustAllocate(a_, 128));
    const Handle handle = *again.back().Share();
    if (granules.contains(Bits(handle).granule.value())) {
      ++reused;
      EXPECT_EQ(Bits(handle).generation, 1u);
    }
  }
  EXPECT_EQ(reused, 60);
  EXPECT_LE(a_->cache().bytes_on_loan(), on_loan + 2 * kMiB);
  again.clear();
  a_->cache().CheckInvariants();
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, AStreamOfSharedBlocksRunsInConstantMemoryAndWithoutMessages) {
  std::vector<Buffer> in_flight(64);
  const auto pass = [&](int count) {
    for (int i = 0; i < count; ++i) {
      Buffer buffer = MustAllocate(a_, 4096);
      const Handle handle = *buffer.Share();
      in_flight[static_cast<size_t>(i) % in_flight.size()] = MustOpen(b_, handle);
    }
  };
  pass(5000);
  const uint64_t on_loan = a_->cache().bytes_on_loan();
  const uint64_t messages = pool_.exchanges();
  pass(20000);
  EXPECT_EQ(a_->cache().bytes_on_loan(), on_loan);
  EXPECT_EQ(pool_.exchanges(), messages);
  in_flight.clear();
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, SharedBlocksOutliveTheSessionThatMadeThem) {
  Buffer buffer = MustAllocate(a_, 5000);
  std::memset(buffer.data(), 5, 5000);
  Buffer opened = MustOpen(b_, *buffer.Share());
  buffer = Buffer();
  a_.Reset();
  EXPECT_EQ(pool_.detached(), 1u);
  EXPECT_GT(pool_.stats().in_lists_bytes, 0u);
  // Another session is granted the span, with the block that lives on marked.
  Attached c(pool_.Attach());
  std::vector<Buffer> others;
  for (int i = 0; i < 200; ++i) {
    others.push_back(MustAllocate(c, 5000));
    std::memset(others.back().data(), 9, 5000);
  }
  EXPECT_TRUE(std::all_of(opened.data(), opened.data() + 5000,
                          [](std::byte b) { return b == std::byte{5}; }));
  opened = Buffer();
  others.clear();
  c->cache().CheckInvariants();
  c.Reset();
  b_.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SharingTest, BuffersOutliveTheSessionAndTheLastOneEndsIt) {
  Buffer buffer = MustAllocate(a_, 3000);
  Buffer ref = buffer.Ref();
  a_.Reset();
  EXPECT_EQ(pool_.detached(), 0u);
  std::memset(buffer.data(), 1, 3000);
  Buffer opened = MustOpen(b_, *buffer.Share());
  buffer = Buffer();
  EXPECT_EQ(pool_.detached(), 0u);
  ref = Buffer();
  EXPECT_EQ(pool_.detached(), 1u);
  EXPECT_EQ(opened.data()[2999], std::byte{1});
  opened = Buffer();
  b_.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SharingTest, ASessionMayEndWhileThreadsDropItsBuffers) {
  for (int round = 0; round < 50; ++round) {
    Attached core(pool_.Attach());
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t) {
      threads.emplace_back([&] {
        std::vector<Buffer> buffers;
        for (int i = 0; i < 2000; ++i) buffers.push_back(MustAllocate(core, 64));
        ready.fetch_add(1);
        while (!go.load()) {
        }
        // One after the other: some before the session's end, some while it counts, some after.
        while (!buffers.empty()) buffers.pop_back();
      });
    }
    while (ready.load() != 2) std::this_thread::yield();
    const uint32_t detached = pool_.detached();
    go.store(true);
    core.Reset();
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(pool_.detached(), detached + 1) << "round " << round;
  }
  ExpectEmptyAfterDetaching(52);
}

TEST_F(SharingTest, TrimSetsTheLengthThatOthersSee) {
  for (size_t bytes : {1000ul, 100000ul}) {
    Buffer buffer = MustAllocate(a_, bytes);
    EXPECT_EQ(buffer.Trim(0).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(buffer.Trim(bytes + 1).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(buffer.Trim(bytes - 123).ok());
    EXPECT_EQ(buffer.size(), bytes - 123);
    const Handle handle = *buffer.Share();
    EXPECT_EQ(MustOpen(b_, handle).size(), bytes - 123);
    EXPECT_EQ(buffer.Trim(10).code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST_F(SharingTest, AHandleThatWasSentIsGoodUntilItsReceiverOpenedIt) {
  for (const bool shared_first : {false, true}) {
    Buffer buffer = MustAllocate(a_, 1000);
    std::memset(buffer.data(), 3, 1000);
    if (shared_first) {
      ASSERT_TRUE(buffer.Share().ok());
    }
    const Handle handle = *std::move(buffer).Send();
    EXPECT_TRUE(Word(handle).sent());
    EXPECT_EQ(Word(handle).refs(), 1u);
    // While it is under way it stays, whatever else the sender does.
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(MustAllocate(a_, 1000).Share().ok());
    EXPECT_EQ(Word(handle).refs(), 1u);
    Buffer received = MustOpen(b_, handle);
    EXPECT_EQ(received.data()[999], std::byte{3});
    EXPECT_FALSE(Word(handle).sent());
    EXPECT_EQ(Word(handle).refs(), 2u);
    // The sender's own reference goes when it next looks.
    ASSERT_TRUE(MustAllocate(a_, 1000).Share().ok());
    EXPECT_EQ(Word(handle).refs(), 1u);
    received = Buffer();
    EXPECT_TRUE(Word(handle).freed());
    EXPECT_EQ(b_->Open(handle).status().code(), absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(a_->references().slots_in_use(), 0u);
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, AReceiverThatDropsTheBlockAtOnceIsNoticed) {
  const Handle handle = *std::move(MustAllocate(a_, 1000)).Send();
  MustOpen(b_, handle) = Buffer();
  EXPECT_EQ(Word(handle).refs(), 1u);
  const uint64_t generation = Word(handle).generation();
  EXPECT_EQ(a_->references().Settle().size(), 1u) << "it is the sender's to free";
  EXPECT_TRUE(Word(handle).is_private());
  EXPECT_EQ(Word(handle).generation(), generation + 1);
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, ABlockIsSentAgainOnlyWhenTheFirstHandleWasOpened) {
  Buffer buffer = MustAllocate(a_, 1000);
  Buffer kept = buffer.Ref();
  const Handle handle = *std::move(buffer).Send();
  EXPECT_EQ(Word(handle).refs(), 2u);
  Buffer other = kept.Ref();
  EXPECT_EQ(std::move(other).Send().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(other.size(), 1000u) << "unchanged";
  EXPECT_EQ(Word(handle).refs(), 2u);
  Buffer received = MustOpen(b_, handle);
  EXPECT_EQ(Word(handle).refs(), 3u);
  EXPECT_EQ(*std::move(other).Send(), handle);
  EXPECT_EQ(Word(handle).send_number(), 2u);
  Buffer again = MustOpen(b_, handle);
  a_->references().Settle();
  EXPECT_EQ(Word(handle).refs(), 3u);
  // And on by its receiver.
  EXPECT_EQ(*std::move(received).Send(), handle);
  Buffer back = MustOpen(a_, handle);
  b_->references().Settle();
  EXPECT_EQ(Word(handle).refs(), 3u);
  kept = Buffer();
  again = Buffer();
  EXPECT_EQ(Word(handle).refs(), 1u);
  back = Buffer();
  EXPECT_TRUE(Word(handle).freed());
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, ABufferWithOwnersIsSentAsAReferenceOfItsOwn) {
  for (const bool shared_first : {false, true}) {
    Buffer buffer = MustAllocate(a_, 1000);
    if (shared_first) {
      ASSERT_TRUE(buffer.Share().ok());
    }
    { Buffer gone = buffer.Ref(); }
    // It is the only owner left, and still needs one of its own.
    const Handle handle = *std::move(buffer).Send();
    EXPECT_EQ(buffer.size(), 0u);
    EXPECT_EQ(Word(handle).refs(), 1u);
    Buffer received = MustOpen(b_, handle);
    a_->references().Settle();
    EXPECT_EQ(Word(handle).refs(), 1u);
  }
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, WhatNobodyOpenedCanBeTakenBack) {
  Buffer buffer = MustAllocate(a_, 100000);
  std::memset(buffer.data(), 7, 100000);
  const Handle handle = *std::move(buffer).Send();
  EXPECT_EQ(b_->TakeBack(handle).status().code(), absl::StatusCode::kNotFound) << "b sent nothing";
  absl::StatusOr<Buffer> back = a_->TakeBack(handle);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->size(), 100000u);
  EXPECT_EQ(back->data()[99999], std::byte{7});
  EXPECT_FALSE(Word(handle).sent());
  EXPECT_EQ(a_->TakeBack(handle).status().code(), absl::StatusCode::kNotFound);
  a_->references().Settle();
  EXPECT_EQ(Word(handle).refs(), 1u);
  // Sent again, and opened: too late.
  ASSERT_EQ(*std::move(*back).Send(), handle);
  Buffer received = MustOpen(b_, handle);
  EXPECT_EQ(a_->TakeBack(handle).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(a_->TakeBack(Handle{{1, 2}}).status().code(), absl::StatusCode::kFailedPrecondition);
  received = Buffer();
  a_->references().Settle();
  EXPECT_EQ(a_->TakeBack(handle).status().code(), absl::StatusCode::kNotFound);
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, AHandleSentAndOpenedInTheSameProcessIsLetGo) {
  const Handle handle = *std::move(MustAllocate(a_, 1000)).Send();
  Buffer again = MustOpen(a_, handle);
  a_->references().Settle();
  EXPECT_EQ(Word(handle).refs(), 1u);
  again = Buffer();
  EXPECT_EQ(a_->Open(handle).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(a_->references().slots_in_use(), 0u);
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, WhatIsUnderWayDoesNotKeepASessionFromReturningItsSpans) {
  const Handle handle = *std::move(MustAllocate(a_, 1000)).Send();
  EXPECT_TRUE(a_->references().Settle().empty()) << "nobody has opened it";
  a_->DrainMyStacks();
  ASSERT_TRUE(a_->cache().Reclaim().ok());
  EXPECT_EQ(a_->cache().bytes_on_loan(), 0u);
  Buffer received = MustOpen(b_, handle);
  a_.Reset();
  received.data()[999] = std::byte{1};
  received = Buffer();
  b_.Reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SharingTest, AQuietSessionGivesBackWhatOnlyOthersReferToAndWhatTheyFreed) {
  std::vector<Buffer> read;  // by the other
  for (int i = 0; i < 16; ++i) {
    Buffer mine = MustAllocate(a_, kMiB);
    read.push_back(MustOpen(b_, *mine.Share()));
  }
  Buffer kept = MustAllocate(a_, 2 * kMiB);
  read.push_back(MustOpen(b_, *kept.Share()));
  a_->DrainMyStacks();  // this thread keeps house: its stacks are its own
  for (int i = 0; i < 8; ++i) read[static_cast<size_t>(i)] = Buffer();
  absl::Time now = absl::UnixEpoch();
  a_->KeepHouse(now);
  EXPECT_GE(a_->cache().bytes_on_loan(), 18 * kMiB);
  now += absl::Seconds(1);
  EXPECT_EQ(a_->KeepHouse(now), now + absl::Seconds(1));
  EXPECT_GE(a_->cache().bytes_on_loan(), 10 * kMiB) << "not all at once";
  a_->cache().CheckInvariants();
  for (absl::Time next = now; next != absl::InfiniteFuture();) {
    now += absl::Seconds(1);
    next = a_->KeepHouse(now);
  }
  EXPECT_EQ(a_->cache().bytes_on_loan(), 2 * kMiB);
  EXPECT_TRUE(a_->cache().resting());
  kept = Buffer();
  EXPECT_FALSE(a_->cache().resting());
  for (absl::Time next = now; next != absl::InfiniteFuture();) {
    now += absl::Seconds(1);
    next = a_->KeepHouse(now);
  }
  EXPECT_EQ(a_->cache().bytes_on_loan(), 0u);
  read.back().data()[2 * kMiB - 1] = std::byte{1};  // it lives on
  read.clear();
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, HandlesNobodyOpenedGoWithTheSession) {
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(std::move(MustAllocate(a_, 1000)).Send().ok());
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, TheHousekeeperLetsGoOfWhatArrived) {
  Attached sender(pool_.AttachWithHousekeeper());
  const Handle handle = *std::move(MustAllocate(sender, 1000)).Send();
  Buffer received = MustOpen(b_, handle);
  while (Word(handle).refs() != 1) std::this_thread::yield();
  received = Buffer();
  // And again, when it has had nothing to do meanwhile.
  while (sender->references().any_waiting()) std::this_thread::yield();
  const Handle second = *std::move(MustAllocate(sender, 1000)).Send();
  received = MustOpen(b_, second);
  while (Word(second).refs() != 1) std::this_thread::yield();
  received = Buffer();
  sender.Reset();
  ExpectEmptyAfterDetaching(3);
}

TEST_F(SharingTest, AnEntryOfAChannelKeepsTheSendersReferenceAsLongAsItStands) {
  Buffer queue = MustAllocate(a_, 4096);
  auto* const entry = reinterpret_cast<uint64_t*>(queue.data());
  *entry = 0;
  const TransitNote note{a_->OffsetOf(entry), 17};

  Buffer buffer = MustAllocate(a_, 1000);
  absl::StatusOr<SessionCore::Outgoing> outgoing = a_->BeginTransit(&buffer);
  ASSERT_TRUE(outgoing.ok()) << outgoing.status();
  EXPECT_EQ(buffer.size(), 0u);
  const Handle handle = outgoing->handle;
  // Somebody else was faster: the buffer is as it was.
  a_->Retarget(*outgoing, note);
  buffer = a_->CancelTransit(*outgoing);
  EXPECT_EQ(buffer.size(), 1000u);
  EXPECT_EQ(*buffer.Share(), handle);

  Buffer kept = buffer.Ref();  // another owner: a reference of its own travels
  outgoing = a_->BeginTransit(&buffer);
  ASSERT_TRUE(outgoing.ok()) << outgoing.status();
  a_->Retarget(*outgoing, {a_->OffsetOf(entry + 1), 18});
  a_->Retarget(*outgoing, note);
  std::atomic_ref(*entry).store(note.value);
  a_->EndTransit(*outgoing);
  kept = Buffer();
  a_->references().Settle();
  EXPECT_EQ(Word(handle).refs(), 1u);
  EXPECT_FALSE(Word(handle).sent());

  Buffer received = MustOpen(b_, handle);
  EXPECT_EQ(Word(handle).refs(), 2u);
  std::atomic_ref(*entry).store(0);
  a_->references().Settle();
  EXPECT_EQ(Word(handle).refs(), 1u);
  received = Buffer();
  EXPECT_TRUE(Word(handle).freed());
  queue = Buffer();
  EXPECT_EQ(a_->references().slots_in_use(), 0u);
  ExpectEmptyAfterDetaching();
}

TEST_F(SharingTest, WrongHandlesAreRefusedEachInItsWay) {
  Buffer buffer = MustAllocate(a_, 1000);
  const HandleBits good = Bits(*buffer.Share());
  const auto open = [&](const HandleBits& bits) {
    return b_->Open(Handle{{bits.low(), bits.high()}}).status().code();
  };
  EXPECT_EQ(open(good), absl::StatusCode::kOk);
  HandleBits bits = good;
  bits.incarnation += 1;
  EXPECT_EQ(open(bits), absl::StatusCode::kFailedPrecondition);
  bits = good;
  bits.generation += 1;
  EXPECT_EQ(open(bits), absl::StatusCode::kNotFound);
  bits = good;
  bits.granule = GranuleId(good.granule.value() + 1);
  EXPECT_EQ(open(bits), absl::StatusCode::kNotFound);
  bits = good;
  bits.granule = GranuleId(layout::kMaxHandleGranules - 1);
  EXPECT_EQ(open(bits), absl::StatusCode::kInvalidArgument);
  bits = good;
  bits.granule = GranuleId(900 * kMiB / 64);  // an arena that was never made
  EXPECT_EQ(open(bits), absl::StatusCode::kNotFound);
  bits = good;
  bits.length = layout::kMaxHandleLength + 1;
  EXPECT_EQ(open(bits), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(b_->references().slots_in_use(), 0u);
}

TEST_F(SharingTest, LiesInTheTableAreErrorsAndHarmNothing) {
  Buffer large = MustAllocate(a_, 100000);
  const Handle handle = *large.Share();
  const HandleBits bits = Bits(handle);
  layout::BlockTable& table = pool_.TableOf(ArenaOf(bits.granule));
  layout::SharedWord& length = layout::LengthOf(table.marks, PageOf(bits.granule));
  for (uint64_t lie : {uint64_t{0}, UINT64_MAX, uint64_t{1} << 43}) {
    length.store(lie);
    EXPECT_EQ(b_->Open(handle).status().code(), absl::StatusCode::kDataLoss);
  }
  length.store(100000);
  EXPECT_EQ(b_->references().slots_in_use(), 0u);

  layout::SharedWord& word = pool_.WordOf(bits.granule);
  const uint64_t truth = word.load();
  for (uint64_t lie : {uint64_t{0}, UINT64_MAX & ~(uint64_t{1} << 63), uint64_t{1} << 62}) {
    word.store(lie);
    EXPECT_FALSE(b_->Open(handle).ok());
  }
  // The largest count there can be.
  word.store(BlockWord(truth).bits() | uint64_t{layout::kMaxRefs} << 40);
  EXPECT_EQ(b_->Open(handle).status().code(), absl::StatusCode::kResourceExhausted);
  // A word that somebody cleared while a holds the block: nothing is dropped, nothing breaks.
  word.store(0);
  large = Buffer();
  EXPECT_EQ(a_->references().slots_in_use(), 0u);
  // A private block whose word is not.
  Buffer mine = MustAllocate(a_, 200);
  pool_.WordOf(GranuleOf(a_->OffsetOf(mine.data()))).store(truth);
  EXPECT_EQ(mine.Share().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(a_->references().slots_in_use(), 0u);
}

TEST_F(SharingTest, AFrozenWordIsWaitedForByOpenAndReleasedLater) {
  Buffer buffer = MustAllocate(a_, 1000);
  const Handle handle = *buffer.Share();
  Buffer opened = MustOpen(b_, handle);
  layout::SharedWord& word = pool_.WordOf(Bits(handle).granule);
  constexpr uint64_t kFrozen = uint64_t{1} << 63;
  word.fetch_or(kFrozen);
  EXPECT_EQ(Attached(pool_.Attach())->Open(handle).status().code(), absl::StatusCode::kUnavailable);
  opened = Buffer();  // does not wait
  EXPECT_EQ(Word(handle).refs(), 2u);
  EXPECT_EQ(b_->references().slots_in_use(), 1u);
  word.fetch_and(~kFrozen);
  EXPECT_TRUE(b_->references().Settle().empty());
  EXPECT_EQ(Word(handle).refs(), 1u);
  EXPECT_EQ(b_->references().slots_in_use(), 0u);

  // The owner's last release, frozen too: the block comes back to it.
  word.fetch_or(kFrozen);
  buffer = Buffer();
  word.fetch_and(~kFrozen);
  EXPECT_EQ(a_->references().Settle().size(), 1u);
  EXPECT_TRUE(Word(handle).is_private());
}

TEST_F(SharingTest, TheHousekeeperFinishesAReleaseThatMetARecount) {
  Buffer buffer = MustAllocate(a_, 1000);
  const Handle handle = *buffer.Share();
  Attached idle(pool_.AttachWithHousekeeper());
  Buffer opened = MustOpen(idle, handle);
  layout::SharedWord& word = pool_.WordOf(Bits(handle).granule);
  constexpr uint64_t kFrozen = uint64_t{1} << 63;
  word.fetch_or(kFrozen);
  opened = Buffer();
  word.fetch_and(~kFrozen);
  // And the session does nothing more.
  while (Word(handle).refs() != 1) std::this_thread::yield();
  buffer = Buffer();
  idle.Reset();
  ExpectEmptyAfterDetaching(3);
}

TEST_F(SharingTest, AtTheLargestGenerationABlockIsRetired) {
  Buffer buffer = MustAllocate(a_, 1000);
  layout::SharedWord& word = pool_.WordOf(GranuleOf(a_->OffsetOf(buffer.data())));
  word.store(BlockWord(layout::kMaxGeneration).bits());
  const Handle handle = *buffer.Share();
  buffer = Buffer();
  EXPECT_TRUE(Word(handle).freed());
  for (int i = 0; i < 1000; ++i) {
    Buffer other = MustAllocate(a_, 1000);
    ASSERT_NE(GranuleOf(a_->OffsetOf(other.data())), Bits(handle).granule);
    ASSERT_TRUE(other.Share().ok());
  }
}

TEST_F(SharingTest, AReadOnlySessionOpensAndAllocatesNothing) {
  Attached reader(pool_.AttachReadOnly());
  EXPECT_EQ(reader->Allocate(100, {}).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(reader->Malloc(100, 16), nullptr);
  Buffer buffer = MustAllocate(a_, 100);
  std::memset(buffer.data(), 4, 100);
  Buffer opened = MustOpen(reader, *buffer.Share());
  EXPECT_EQ(std::as_const(opened).data()[99], std::byte{4});
  EXPECT_DEATH(opened.data()[0] = std::byte{1}, "");
}

TEST_F(SharingTest, ThreadsOfTwoSessionsShareOpenAndDropAgainstAModel) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  struct Item {
    Buffer buffer;
    uint64_t value;
  };
  std::mutex mu;
  std::vector<std::pair<Handle, uint64_t>> published;  // some of them stale
  const auto work = [&](const Attached& core, uint64_t thread) {
    std::mt19937_64 random(seed + thread);
    std::vector<Item> mine;
    for (int i = 0; i < 10000; ++i) {
      const uint64_t action = random() % 8;
      if (action < 3 && mine.size() < 200) {
        const size_t bytes = size_t{64} << (random() % 12);
        Item item{MustAllocate(core, bytes), random()};
        std::memcpy(item.buffer.data(), &item.value, sizeof(item.value));
        std::memcpy(item.buffer.data() + bytes - 8, &item.value, sizeof(item.value));
        if (random() % 4 != 0) {
          absl::StatusOr<Handle> handle = item.buffer.Share();
          ASSERT_TRUE(handle.ok()) << handle.status();
          std::lock_guard<std::mutex> lock(mu);
          published.emplace_back(*handle, item.value);
          if (published.size() > 400) published.erase(published.begin());
        }
        mine.push_back(std::move(item));
      } else if (action < 5) {
        std::pair<Handle, uint64_t> pick;
        {
          std::lock_guard<std::mutex> lock(mu);
          if (published.empty()) continue;
          pick = published[random() % published.size()];
        }
        absl::StatusOr<Buffer> buffer = core->Open(pick.first);
        if (!buffer.ok()) {
          ASSERT_EQ(buffer.status().code(), absl::StatusCode::kNotFound) << buffer.status();
          continue;
        }
        mine.push_back(Item{*std::move(buffer), pick.second});
      } else if (!mine.empty()) {
        std::swap(mine[random() % mine.size()], mine.back());
        Item& item = mine.back();
        uint64_t first = 0;
        uint64_t last = 0;
        std::memcpy(&first, item.buffer.data(), 8);
        std::memcpy(&last, item.buffer.data() + item.buffer.size() - 8, 8);
        ASSERT_EQ(first, item.value);
        ASSERT_EQ(last, item.value);
        if (action == 7) {
          Buffer ref = item.buffer.Ref();
          item.buffer = std::move(ref);
        } else {
          mine.pop_back();
        }
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] { work(a_, t); });
    threads.emplace_back([&, t] { work(b_, t + 100); });
  }
  for (std::thread& thread : threads) thread.join();
  a_->cache().CheckInvariants();
  b_->cache().CheckInvariants();
  EXPECT_EQ(a_->references().slots_in_use(), 0u);
  EXPECT_EQ(b_->references().slots_in_use(), 0u);
  EXPECT_EQ(a_->stats().misuses, 0u);
  // No reference is left on any block ever shared.
  for (const auto& [handle, value] : published) EXPECT_EQ(Word(handle).refs(), 0u);
  ExpectEmptyAfterDetaching();
}

// --- fork ----------------------------------------------------------------------------------------

TEST_F(SharingTest, AForkedChildIsToldToAttachAndTheParentGoesOn) {
  Buffer buffer = MustAllocate(a_, 1000);
  std::memset(buffer.data(), 6, 1000);
  const Handle handle = *buffer.Share();
  const pid_t child = fork();
  if (child == 0) {
    bool good = a_->Allocate(64, {}).status().code() == absl::StatusCode::kFailedPrecondition &&
                a_->Open(handle).status().code() == absl::StatusCode::kFailedPrecondition &&
                a_->Malloc(64, 16) == nullptr;
    a_->Free(buffer.data(), nullptr);
    buffer = Buffer();
    _exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(Word(handle).refs(), 1u);
  EXPECT_EQ(buffer.data()[999], std::byte{6});
  Buffer another = MustAllocate(a_, 1000);
  buffer = Buffer();
  another = Buffer();
  EXPECT_EQ(a_->stats().misuses, 0u);
  ExpectEmptyAfterDetaching();
}

}  // namespace
}  // namespace spanpool::internal

// The public class, over a pool in this process.

#include "spanpool/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <memory>
#include <memory_resource>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/fake_pool.h"
#include "client/session_core.h"

namespace spanpool {
namespace {

using internal::FakePool;
using internal::SessionCore;

class SessionTest : public testing::Test {
 protected:
  FakePool pool_{256 << 20};
  std::unique_ptr<Session> session_ = SessionCore::NewSession(pool_.Attach());
};

TEST_F(SessionTest, MallocServesEverySizeAlignedAsMallocDoes) {
  std::vector<std::pair<uint8_t*, size_t>> blocks;
  for (size_t bytes = 0; bytes <= 40000; bytes += bytes < 2100 ? 1 : 61) {
    auto* block = static_cast<uint8_t*>(session_->Malloc(bytes));
    ASSERT_NE(block, nullptr) << bytes;
    ASSERT_EQ(reinterpret_cast<uintptr_t>(block) % (bytes <= 8 ? 8 : 16), 0u) << bytes;
    ASSERT_GE(session_->UsableSize(block), bytes);
    std::fill_n(block, bytes, static_cast<uint8_t>(bytes));
    blocks.emplace_back(block, bytes);
  }
  for (const auto& [block, bytes] : blocks) {
    ASSERT_TRUE(std::all_of(block, block + bytes,
                            [&](uint8_t b) { return b == static_cast<uint8_t>(bytes); }));
    session_->Free(block);
  }
  EXPECT_EQ(session_->stats().misuses, 0u);
  EXPECT_EQ(session_->stats().allocations, blocks.size());
  session_.reset();
  EXPECT_TRUE(pool_.Empty());
}

TEST_F(SessionTest, ABlockThatWasFreedIsTheNextOneHandedOut) {
  for (size_t bytes : {1ul, 64ul, 1000ul, 5000ul, 32768ul, 65536ul, 1ul << 20}) {
    void* block = session_->Malloc(bytes);
    session_->Free(block);
    EXPECT_EQ(session_->Malloc(bytes), block) << bytes;
    session_->Free(block);
  }
}

TEST_F(SessionTest, EveryMisuseReachesTheHandlerAndTheCallDoesNothing) {
  std::vector<Misuse::Kind> seen;
  session_->SetMisuseHandler([&](const Misuse& misuse) {
    EXPECT_NE(misuse.call_site, nullptr);
    EXPECT_FALSE(misuse.message.empty());
    seen.push_back(misuse.kind);
  });
  session_->Free(nullptr);
  int local = 0;
  session_->Free(&local);
  auto* block = static_cast<std::byte*>(session_->Malloc(100));
  session_->Free(block + 8);
  EXPECT_EQ(seen, (std::vector<Misuse::Kind>{Misuse::Kind::kForeignPointer,
                                             Misuse::Kind::kInteriorPointer}));
  session_->Free(block);
  EXPECT_EQ(session_->stats().misuses, 2u);
  EXPECT_EQ(session_->UsableSize(&local), 0u);
  EXPECT_EQ(session_->UsableSize(nullptr), 0u);
}

#ifdef SPANPOOL_DEBUG
TEST_F(SessionTest, ADoubleFreeIsCaughtAtOnceInDebugBuilds) {
  int misuses = 0;
  session_->SetMisuseHandler([&](const Misuse& misuse) {
    EXPECT_EQ(misuse.kind, Misuse::Kind::kDoubleFree);
    ++misuses;
  });
  void* block = session_->Malloc(64);
  session_->Free(block);
  session_->Free(block);
  EXPECT_EQ(misuses, 1);
}
#endif

TEST_F(SessionTest, WithoutAHandlerACallSiteIsLoggedOnce) {
  testing::internal::CaptureStderr();
  int local = 0;
  for (int i = 0; i < 10; ++i) session_->Free(&local);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
  EXPECT_NE(log.find("spanpool:"), std::string::npos);
  EXPECT_EQ(session_->stats().misuses, 10u);
}

TEST_F(SessionTest, ContainersLiveInThePool) {
  {
    std::pmr::unordered_map<int, std::pmr::string> map(session_->resource());
    std::pmr::list<std::pmr::vector<int>> list(session_->resource());
    for (int i = 0; i < 1000; ++i) {
      map.emplace(i, std::string(static_cast<size_t>(i), 'x'));
      list.emplace_back(static_cast<size_t>(i), i);
    }
    for (int i = 0; i < 1000; ++i) {
      ASSERT_EQ(map.at(i).size(), static_cast<size_t>(i));
    }
    EXPECT_GT(session_->UsableSize(map.at(999).data()), 999u);
  }
  EXPECT_EQ(session_->stats().misuses, 0u);
}

TEST_F(SessionTest, TheResourceAlignsAsAskedAndThrowsWhenThePoolIsFull) {
  std::pmr::memory_resource* const resource = session_->resource();
  for (size_t alignment = 1; alignment <= 2 << 20; alignment *= 2) {
    void* block = resource->allocate(100, alignment);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % alignment, 0u);
    resource->deallocate(block, 100, alignment);
  }
  EXPECT_THROW((void)resource->allocate(size_t{1} << 40), std::bad_alloc);
  EXPECT_THROW((void)resource->allocate(1, 4 << 20), std::bad_alloc);
  EXPECT_TRUE(resource->is_equal(*resource));
  const std::unique_ptr<Session> other = SessionCore::NewSession(pool_.Attach());
  EXPECT_FALSE(resource->is_equal(*other->resource()));
}

TEST_F(SessionTest, BlocksOfASessionThatEndedAreGoneAndTheNextOneStartsAnew) {
  for (int i = 0; i < 100; ++i) {
    for (int n = 0; n < 50; ++n) EXPECT_NE(session_->Malloc(100), nullptr);
    session_.reset();
    EXPECT_TRUE(pool_.Empty());
    // Most likely at the same address: this thread's stacks must not be taken for its own.
    session_ = SessionCore::NewSession(pool_.Attach());
  }
}

TEST_F(SessionTest, BlocksMoveBetweenThreadsThroughTheInlinePath) {
  for (int round = 0; round < 20; ++round) {
    std::vector<void*> blocks(2000);
    for (void*& block : blocks) block = session_->Malloc(64);
    std::thread([&] {
      for (void* block : blocks) session_->Free(block);
      for (void*& block : blocks) block = session_->Malloc(64);
    }).join();
    for (void* block : blocks) session_->Free(block);
  }
  EXPECT_EQ(session_->stats().allocations, 80000u);
  EXPECT_EQ(session_->stats().misuses, 0u);
}

// Constructed before, and so destroyed after, everything a thread keeps.
std::unique_ptr<FakePool> static_pool;
std::unique_ptr<Session> static_session;

TEST_F(SessionTest, AStaticSessionMayOutliveMain) {
  static_pool = std::make_unique<FakePool>(64 << 20);
  static_session = SessionCore::NewSession(static_pool->Attach());
  static_session->Free(static_session->Malloc(64));  // the rest happens at exit
}

}  // namespace
}  // namespace spanpool

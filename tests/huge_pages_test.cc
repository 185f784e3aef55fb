// Pools whose arenas are made of huge pages. All but the first test set some aside, and are skipped
// where they may not.

#include "tests/support/huge_pages.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kHugePageBytes = 2 * kMiB;
constexpr uint64_t kLimit = 64 * kMiB;
constexpr uint64_t kLimitPages = kLimit / kHugePageBytes;

std::string ConfigWith(uint64_t limit_bytes, const std::string& more = "") {
  return absl::StrCat("pool { name: \"default\" arena_kind: HUGETLB limit_bytes: ", limit_bytes,
                      " ", more, " }\n");
}

TEST(HugePagesRefused, WithoutEnoughOfThemTheDaemonSaysHowManyItNeedsAndHow) {
  const std::string run_dir = TemporaryDirectory();
  const std::string config = run_dir + "/config.textproto";
  std::ofstream(config) << ConfigWith(uint64_t{1} << 44);
  Process daemon({Runfile("server/spanpoold"), "--run_dir", run_dir, "--config", config});
  EXPECT_EQ(daemon.Wait(), 1);
  EXPECT_THAT(daemon.standard_error(), HasSubstr("pool default needs 8388608 huge pages of 2 MiB"));
  EXPECT_THAT(daemon.standard_error(), HasSubstr("sysctl vm.nr_hugepages="));
}

class HugePagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pages = HugePages::SetAside(kLimitPages + kSparePages);
    if (!pages.ok()) GTEST_SKIP() << pages.status();
    pages_ = *std::move(pages);
    free_before_ = HugePages::Free();
  }
  // Those of the machine that were free before and are not now, but for this process's own.
  uint64_t Taken() const { return free_before_ - HugePages::Free() - hoarded_; }
  // Leaves others `free` of them until Release.
  void Hoard(uint64_t free) {
    hoarded_ = HugePages::Free() - free;
    const auto bytes = static_cast<off_t>(hoarded_ * kHugePageBytes);
    hoard_ = memfd_create("hoard", MFD_CLOEXEC | MFD_HUGETLB);
    if (hoarded_ == 0) return;
    ASSERT_EQ(ftruncate(hoard_, bytes), 0);
    ASSERT_EQ(fallocate(hoard_, 0, 0, bytes), 0);
  }
  void Release() {
    close(hoard_);
    hoard_ = -1;
    hoarded_ = 0;
  }
  ~HugePagesTest() override { Release(); }

  // Every page with memory behind it is on the books, and the kernel's books say the same.
  void ExpectBooksToBalance(Daemon& daemon) {
    const auto backed = [&] {
      const v1::PoolStatus status = daemon.PoolStatus();
      return status.on_loan_bytes() + status.in_lists_bytes() + status.free_bytes();
    };
    uint64_t before;
    uint64_t memory;
    uint64_t taken;
    do {  // the daemon gives free memory back by itself, too
      before = backed();
      memory = daemon.MemoryBytes();
      taken = Taken();
    } while (backed() != before);
    EXPECT_EQ(memory, before);
    EXPECT_EQ(taken * kHugePageBytes, before);
  }
  static void Trim(Daemon& daemon) {
    Process command({Runfile("cli/spanpool"), "--target", daemon.run_dir(), "trim"});
    EXPECT_EQ(command.Wait(), 0) << command.standard_error();
  }

  static constexpr uint64_t kSparePages = 8;

 private:
  std::unique_ptr<HugePages> pages_;
  uint64_t free_before_ = 0;
  int hoard_ = -1;
  uint64_t hoarded_ = 0;
};

TEST_F(HugePagesTest, APoolOfThemServesAsAnyOther) {
  {
    Daemon daemon({.config = ConfigWith(kLimit), .flags = {}});
    // The whole limit is there when the daemon serves.
    EXPECT_EQ(Taken(), kLimitPages);
    EXPECT_EQ(daemon.PoolStatus().free_bytes(), kLimit);
    Actor writer;
    writer.Must("attach " + daemon.run_dir());
    writer.Must(absl::StrCat("allocate large ", 48 * kMiB));
    writer.Must("fill large 7");
    writer.Must("allocate small 1000");
    writer.Must("fill small 8");
    const std::string large = writer.Must("share large");
    const std::string small = writer.Must("share small");
    for (const char* access : {"", " read"}) {
      Actor other;
      other.Must(absl::StrCat("attach ", daemon.run_dir(), " default", access));
      other.Must("open large " + large);
      other.Must("check large 7");
      other.Must("open small " + small);
      other.Must("check small 8");
    }
    // A forked child has none of it.
    EXPECT_EQ(writer.Must("fork_read large"), absl::StrCat(-SIGSEGV));
    writer.Must("check large 7");
    // Mapping arenas takes none from others.
    EXPECT_EQ(Taken(), kLimitPages);
    ExpectBooksToBalance(daemon);
    writer.Must("drop large");
    writer.Must("drop small");
    writer.Must("leave");
    EXPECT_TRUE(daemon.EventuallyEmpty());
    EXPECT_EQ(Taken(), kLimitPages);
  }
  EXPECT_EQ(Taken(), 0u);
}

TEST_F(HugePagesTest, WithoutAReserveTheyAreTakenAsNeededAndTrimGivesThemBack) {
  Daemon daemon({.config = ConfigWith(kLimit, "reserve_bytes: 0"), .flags = {}});
  EXPECT_EQ(Taken(), 0u);
  Actor client;
  client.Must("attach " + daemon.run_dir());
  client.Must("allocate keep 1000");
  client.Must("fill keep 1");
  ExpectBooksToBalance(daemon);
  EXPECT_GE(Taken(), 1u);
  client.Must(absl::StrCat("allocate large ", 40 * kMiB));
  client.Must("fill large 2");
  EXPECT_GE(Taken(), 40 * kMiB / kHugePageBytes);
  ExpectBooksToBalance(daemon);
  client.Must("drop large");
  Trim(daemon);
  // Where the block is, and the daemon's own records.
  EXPECT_LE(Taken(), 2u);
  ExpectBooksToBalance(daemon);
  client.Must("check keep 1");
  // What comes again is zero where it was written before, or the client is told to clear it.
  client.Must(absl::StrCat("allocate again ", 40 * kMiB));
  client.Must("fill again 3");
  client.Must("check again 3");
  client.Must("drop again");
  client.Must("drop keep");
  client.Must("leave");
  EXPECT_TRUE(daemon.EventuallyEmpty());
  Trim(daemon);
  EXPECT_EQ(Taken(), 0u);
  ExpectBooksToBalance(daemon);
}

TEST_F(HugePagesTest, WhatAKilledClientHeldComesBack) {
  Daemon daemon({.config = ConfigWith(kLimit, "reserve_bytes: 0"), .flags = {}});
  Actor reader;
  reader.Must("attach " + daemon.run_dir());
  {
    Actor victim;
    victim.Must("attach " + daemon.run_dir());
    victim.Must(absl::StrCat("allocate own ", 30 * kMiB));
    victim.Must("fill own 1");
    victim.Must("allocate shared 100000");
    victim.Must("fill shared 2");
    reader.Must("open copy " + victim.Must("share shared"));
    victim.process().Signal(SIGKILL);
  }
  EXPECT_TRUE(daemon.EventuallyReaped(1));
  reader.Must("check copy 2");
  ExpectBooksToBalance(daemon);
  reader.Must("drop copy");
  reader.Must("leave");
  EXPECT_TRUE(daemon.EventuallyEmpty());
  Trim(daemon);
  EXPECT_EQ(Taken(), 0u);
}

TEST_F(HugePagesTest, WhenOthersTakeThemAllocationsAreRefusedWithTheReasonAndNobodyDies) {
  Daemon daemon({.config = ConfigWith(kLimit, "reserve_bytes: 0"), .flags = {}});
  Actor client;
  client.Must("attach " + daemon.run_dir());
  client.Must("allocate first 1000000");
  client.Must("fill first 1");
  Hoard(/*free=*/4);
  const absl::Status refused = client.Do(absl::StrCat("allocate large ", 40 * kMiB)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("no huge page of 2 MiB is left"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("vm.nr_hugepages"));
  EXPECT_GE(daemon.PoolStatus().refusals_total(), 1u);
  // What was got for it is given up again.
  EXPECT_EQ(HugePages::Free(), 4u);
  ExpectBooksToBalance(daemon);
  client.Must(absl::StrCat("allocate little ", 2 * kMiB));
  client.Must("fill little 2");
  client.Must("check little 2");
  client.Must("check first 1");
  Release();
  client.Must(absl::StrCat("allocate large ", 40 * kMiB));
  client.Must("fill large 3");
  client.Must("check large 3");
  client.Must("check little 2");
}

TEST_F(HugePagesTest, AScatteredPoolGivesUpFreeOnesBeforeItRefuses) {
  Daemon daemon({.config = ConfigWith(kLimit), .flags = {}});
  Hoard(/*free=*/0);
  Actor client;
  client.Must("attach " + daemon.run_dir());
  // Of each 4 MiB half is free then, so that a long run needs addresses, and so memory, beyond.
  for (int i = 0; i < 8; ++i) {
    client.Must(absl::StrCat("allocate a", i, " ", 2 * kMiB, " ", kHugePageBytes));
    client.Must(absl::StrCat("allocate b", i, " ", 2 * kMiB, " ", kHugePageBytes));
  }
  for (int i = 0; i < 8; ++i) client.Must(absl::StrCat("drop a", i));
  for (int i = 0; i < 8; ++i) client.Must(absl::StrCat("fill b", i, " ", i));
  client.Must(absl::StrCat("allocate large ", 40 * kMiB));
  client.Must("fill large 9");
  client.Must("check large 9");
  for (int i = 0; i < 8; ++i) client.Must(absl::StrCat("check b", i, " ", i));
  EXPECT_LE(daemon.MemoryBytes(), kLimit);
}

TEST_F(HugePagesTest, AnotherDaemonStartsWhenThePagesOfTheLastAreFree) {
  const std::string run_dir = TemporaryDirectory();
  const std::string config = run_dir + "/config.textproto";
  std::ofstream(config) << ConfigWith(kLimit);
  const auto start = [&] {
    return std::make_unique<Process>(std::vector<std::string>{
        Runfile("server/spanpoold"), "--run_dir", run_dir, "--config", config, "--fd_store=none"});
  };
  Actor client;
  {
    const auto first = start();
    ASSERT_EQ(first->ReadLine(), "READY") << first->standard_error();
    client.Must("attach " + run_dir);
    client.Must("allocate block 1000000");
    client.Must("fill block 1");
    first->Signal(SIGKILL);
    first->Wait();
  }
  // The client has its arena mapped still, and so all that is in it.
  client.Must("check block 1");
  EXPECT_EQ(Taken(), kLimitPages);
  Hoard(/*free=*/kLimitPages - 1 < HugePages::Free() ? kLimitPages - 1 : HugePages::Free());
  {
    const auto second = start();
    EXPECT_EQ(second->Wait(), 1);
    EXPECT_THAT(second->standard_error(), HasSubstr("Pages that an earlier daemon lent"));
  }
  Release();
  client.Must("drop block");
  client.Must("leave");
  const auto second = start();
  ASSERT_EQ(second->ReadLine(), "READY") << second->standard_error();
  EXPECT_EQ(Taken(), kLimitPages);
  client.Must("attach " + run_dir);
}

}  // namespace
}  // namespace spanpool::testing

// Two real processes share blocks of every size the pool knows.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocator/size_classes.h"
#include "tests/support/actor.h"
#include "tests/support/daemon.h"

namespace spanpool::testing {
namespace {

// Allocates in `producer`, opens and checks in `consumer`, and lets both go.
void PassOne(Actor& producer, Actor& consumer, uint64_t bytes, uint64_t alignment) {
  SCOPED_TRACE(absl::StrCat(bytes, " bytes, alignment ", alignment));
  producer.Must(absl::StrCat("allocate b ", bytes, " ", alignment));
  producer.Must(absl::StrCat("fill b ", bytes));
  const std::string handle = producer.Must("share b");
  EXPECT_EQ(consumer.Must("open b " + handle), absl::StrCat(bytes));
  consumer.Must(absl::StrCat("check b ", bytes));
  producer.Must("drop b");
  // The reader's reference keeps the block; its contents stay.
  consumer.Must(absl::StrCat("check b ", bytes));
  consumer.Must("drop b");
  EXPECT_EQ(consumer.Do("open b " + handle).status().code(), absl::StatusCode::kNotFound);
}

class SharingTest : public ::testing::Test {
 protected:
  SharingTest() {
    producer_.Must("attach " + daemon_.run_dir());
    consumer_.Must("attach " + daemon_.run_dir());
  }
  Daemon daemon_;
  Actor producer_;
  Actor consumer_;
};

TEST_F(SharingTest, BlocksOfEverySizeClassFrom64BytesReachAnotherProcess) {
  for (uint8_t i = 1; i < kNumSizeClasses; ++i) {
    const uint64_t bytes = BlockBytes(SizeClass(i));
    if (bytes < 64) continue;
    PassOne(producer_, consumer_, bytes, 8);      // exactly this class
    PassOne(producer_, consumer_, bytes - 7, 8);  // and an odd length in it
    if (HasFailure()) return;
  }
  producer_.Must("leave");
  consumer_.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(SharingTest, LargeBlocksUpTo256MiBReachAnotherProcess) {
  for (uint64_t bytes : {32769ull, 65536ull, 1048577ull, 67108864ull, 67108865ull, 268435456ull}) {
    PassOne(producer_, consumer_, bytes, 64);
    if (HasFailure()) return;
  }
  producer_.Must("leave");
  consumer_.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(SharingTest, AlignmentIsKeptUpTo2MiB) {
  for (uint64_t alignment = 64; alignment <= 2 << 20; alignment *= 2) {
    producer_.Must(absl::StrCat("allocate b 100 ", alignment));
    const uint64_t address = std::stoull(producer_.Must("address b"), nullptr, 16);
    EXPECT_EQ(address % alignment, 0u) << alignment;
    producer_.Must("drop b");
  }
  EXPECT_EQ(producer_.Do("allocate b 100 4194304").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(producer_.Do("allocate b 100 96").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SharingTest, MallocServesEverySizeClassAndLargeSizes) {
  std::vector<uint64_t> sizes = {1, 7, 40000, 1 << 20, 70 << 20};
  for (uint8_t i = 1; i < kNumSizeClasses; ++i) sizes.push_back(BlockBytes(SizeClass(i)));
  for (uint64_t bytes : sizes) {
    const std::string usable = producer_.Must(absl::StrCat("malloc m", bytes, " ", bytes));
    EXPECT_GE(std::stoull(usable), bytes);
  }
  for (uint64_t bytes : sizes) producer_.Must(absl::StrCat("free m", bytes));
  EXPECT_EQ(producer_.Must("misuses"), "0");
  producer_.Must("leave");
  consumer_.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(SharingTest, ABlockBelow64BytesIsPrivateAndShareSaysSo) {
  producer_.Must("allocate b 40 8");
  const absl::Status status = producer_.Do("share b").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("64"), std::string::npos) << status;
}

TEST_F(SharingTest, AnOldHandleDoesNotOpenTheNextBlockInItsPlace) {
  // Blocks of one size come back last in, first out, so that the place is soon used again.
  for (const char* bytes : {"64", "5000", "100000"}) {
    SCOPED_TRACE(bytes);
    producer_.Must(absl::StrCat("allocate b ", bytes));
    const std::string old_address = producer_.Must("address b");
    const std::string old_handle = producer_.Must("share b");
    producer_.Must("drop b");
    bool reused = false;
    for (int i = 0; i < 1000 && !reused; ++i) {
      producer_.Must(absl::StrCat("allocate n", i, " ", bytes));
      reused = producer_.Must(absl::StrCat("address n", i)) == old_address;
      if (reused) {
        const std::string handle = producer_.Must(absl::StrCat("share n", i));
        EXPECT_NE(handle, old_handle);
        consumer_.Must("open c " + handle);
        EXPECT_EQ(consumer_.Do("open d " + old_handle).status().code(),
                  absl::StatusCode::kNotFound);
      }
    }
    EXPECT_TRUE(reused);
  }
}

TEST_F(SharingTest, ManyProcessesReadOneBlockAndTheLastFreesIt) {
  producer_.Must("allocate b 5000");
  producer_.Must("fill b 9");
  const std::string handle = producer_.Must("share b");
  std::vector<std::unique_ptr<Actor>> readers;
  for (int i = 0; i < 6; ++i) {
    readers.push_back(std::make_unique<Actor>());
    readers.back()->Must("attach " + daemon_.run_dir());
    readers.back()->Must("open b " + handle);
  }
  producer_.Must("drop b");
  for (auto& reader : readers) {
    reader->Must("check b 9");
    reader->Must("drop b");
  }
  EXPECT_EQ(consumer_.Do("open b " + handle).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SharingTest, ASharedBlockOutlivesTheSessionThatMadeIt) {
  producer_.Must("allocate b 100000");
  producer_.Must("fill b 3");
  consumer_.Must("open b " + producer_.Must("share b"));
  producer_.Must("drop b");
  producer_.Must("leave");
  EXPECT_TRUE(daemon_.Eventually([](const auto& pool) { return pool.sessions() == 1; }));
  consumer_.Must("check b 3");
  consumer_.Must("drop b");
  consumer_.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(SharingTest, BuffersThatOutliveTheirSessionStayValid) {
  producer_.Must("allocate b 3000");
  producer_.Must("fill b 5");
  producer_.Must("leave");
  producer_.Must("check b 5");
  consumer_.Must("open b " + producer_.Must("share b"));
  consumer_.Must("check b 5");
  producer_.Must("drop b");
  consumer_.Must("drop b");
  consumer_.Must("leave");
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

}  // namespace
}  // namespace spanpool::testing

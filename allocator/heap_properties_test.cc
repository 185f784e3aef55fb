// Properties of the heap under any sequence of operations; a failing one is shrunk to a short one.
// RC_PARAMS="seed=..." repeats a run, as the output of a failure says.

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "allocator/heap_driver.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

constexpr PageCount kHugePage(256);

RC_GTEST_PROP(HeapProperties, AnySequenceOfOperationsMatchesTheModel,
              (const std::vector<uint32_t>& operations)) {
  std::vector<uint8_t> bytes;
  for (const uint32_t operation : operations) {
    for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<uint8_t>(operation >> (8 * i)));
  }
  for (const PageCount unit : {PageCount(1), kHugePage}) {
    HeapDriver driver(unit);
    RC_ASSERT(driver.Run(bytes, 8) == "");
    RC_ASSERT(driver.Finish() == "");
  }
}

// Found once: free pages of a unit whose memory a span's kept, taken for zero after a restart.
TEST(HeapProperties, FreePagesOfARestoredSpansUnitAreNotTakenForZero) {
  const std::vector<uint8_t> operations = {
      3,  7, 0, 0,  // a large span of 8 pages, written to
      3,  7, 0, 0,  // another
      12, 1, 0, 0,  // the second comes back
      16, 7, 0, 1,  // a restart, and the source does not know of the first unit
      3,  7, 0, 0,  // the same pages again
  };
  HeapDriver driver(kHugePage);
  EXPECT_EQ(driver.Run(operations, 1), "");
  EXPECT_EQ(driver.Finish(), "");
}

// Operations that leave the source alone.
std::vector<uint8_t> WithoutFaults(std::vector<uint8_t> bytes) {
  for (size_t i = 0; i < bytes.size(); i += HeapDriver::kOperationBytes) {
    if (bytes[i] % 20 == 17) bytes[i] = 0;
  }
  return bytes;
}

TEST(HeapProperties, LongRandomSequencesMatchTheModel) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 4; ++round) {
    std::vector<uint8_t> bytes(HeapDriver::kOperationBytes * 3000);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    for (const PageCount unit : {PageCount(1), kHugePage}) {
      for (const std::vector<uint8_t>& operations : {bytes, WithoutFaults(bytes)}) {
        HeapDriver driver(unit);
        ASSERT_EQ(driver.Run(operations, 200), "");
        ASSERT_EQ(driver.Finish(), "");
      }
    }
  }
}

}  // namespace
}  // namespace spanpool

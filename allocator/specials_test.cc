#include "allocator/specials.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "allocator/failing_metadata_source.h"

namespace spanpool {
namespace {

class Recorder : public FreedBlockListener {
 public:
  void OnFreed(absl::Span<const FreedBlock> blocks) override {
    freed.insert(freed.end(), blocks.begin(), blocks.end());
  }
  std::vector<FreedBlock> freed;
};

// A span of 100 blocks at page 7, all of them in use.
class SpecialsTest : public testing::Test {
 protected:
  SpecialsTest() {
    EXPECT_TRUE(map_.Add(ArenaIndex(0)));
    span_.first_page = PageId(7);
    span_.pages = PageCount(1);
    span_.blocks = 100;
    span_.bitmap = bits_;
    map_.Enter(&span_);
  }
  void FreeBlock(uint32_t block) { bits_[block / 64] &= ~(uint64_t{1} << (block % 64)); }

  uint64_t bits_[2] = {UINT64_MAX, UINT64_MAX};
  Span span_;
  ArenaMap map_{MetadataSource::System()};
  Recorder recorder_;
  Specials specials_{&map_, MetadataSource::System(), &recorder_};
};

TEST_F(SpecialsTest, DueOnesAreTakenInOrderOfBlocksAndKinds) {
  using enum SpecialKind;
  ASSERT_TRUE(specials_.Add(&span_, 70, kProfile, 1).ok());
  ASSERT_TRUE(specials_.Add(&span_, 3, kProfile, 2).ok());
  ASSERT_TRUE(specials_.Add(&span_, 70, kNotification, 3).ok());
  ASSERT_TRUE(specials_.Add(&span_, 50, kNotification, 4).ok());
  specials_.CheckInvariants(span_);
  EXPECT_TRUE(specials_.TakeDue(&span_).empty());
  FreeBlock(70);
  FreeBlock(3);
  const std::vector<FreedBlock> due = specials_.TakeDue(&span_);
  const std::vector<FreedBlock> expected = {
      {PageId(7), 3, kProfile, 2}, {PageId(7), 70, kNotification, 3}, {PageId(7), 70, kProfile, 1}};
  EXPECT_EQ(due, expected);
  EXPECT_TRUE(recorder_.freed.empty());
  specials_.Report(due);
  EXPECT_EQ(recorder_.freed, expected);
  EXPECT_TRUE(specials_.TakeDue(&span_).empty()) << "each is due once";
  specials_.CheckInvariants(span_);
  EXPECT_TRUE(specials_.Remove(&span_, 50, kNotification));
  EXPECT_EQ(specials_.size(), 0u);
}

TEST_F(SpecialsTest, TheBitFollowsTheFirstAndTheLast) {
  EXPECT_FALSE(map_.HasSpecials(span_));
  ASSERT_TRUE(specials_.Add(&span_, 1, SpecialKind::kProfile, 0).ok());
  EXPECT_TRUE(map_.HasSpecials(span_));
  ASSERT_TRUE(specials_.Add(&span_, 2, SpecialKind::kProfile, 0).ok());
  EXPECT_TRUE(specials_.Remove(&span_, 1, SpecialKind::kProfile));
  EXPECT_TRUE(map_.HasSpecials(span_));
  FreeBlock(2);
  EXPECT_EQ(specials_.TakeDue(&span_).size(), 1u);
  EXPECT_FALSE(map_.HasSpecials(span_));
}

TEST_F(SpecialsTest, DuplicatesAndBlocksThatDoNotExistAreRefused) {
  using enum SpecialKind;
  ASSERT_TRUE(specials_.Add(&span_, 9, kNotification, 1).ok());
  EXPECT_EQ(specials_.Add(&span_, 9, kNotification, 2).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(specials_.Add(&span_, 9, kProfile, 2).ok());
  EXPECT_EQ(specials_.Add(&span_, 100, kProfile, 2).code(), absl::StatusCode::kOutOfRange);
  EXPECT_FALSE(specials_.Remove(&span_, 10, kProfile));
  EXPECT_FALSE(specials_.Remove(&span_, 99, kNotification));
  EXPECT_EQ(specials_.size(), 2u);
}

TEST_F(SpecialsTest, RandomOperationsMatchASortedMap) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::map<std::pair<uint32_t, SpecialKind>, uint64_t> model;
  for (int i = 0; i < 20000; ++i) {
    const uint32_t block = static_cast<uint32_t>(random() % 100);
    const SpecialKind kind = static_cast<SpecialKind>(1 + random() % 2);
    switch (random() % 4) {
      case 0:
      case 1: {
        const uint64_t value = random();
        EXPECT_EQ(specials_.Add(&span_, block, kind, value).ok(),
                  model.insert({{block, kind}, value}).second);
        break;
      }
      case 2:
        EXPECT_EQ(specials_.Remove(&span_, block, kind), model.erase({block, kind}) != 0);
        break;
      case 3: {
        bits_[0] = random() | random();
        bits_[1] = random() | random();
        std::vector<FreedBlock> expected;
        for (auto it = model.begin(); it != model.end();) {
          const uint32_t b = it->first.first;
          if ((bits_[b / 64] >> (b % 64) & 1) == 0) {
            expected.push_back({PageId(7), b, it->first.second, it->second});
            it = model.erase(it);
          } else {
            ++it;
          }
        }
        EXPECT_EQ(specials_.TakeDue(&span_), expected);
        break;
      }
    }
    ASSERT_EQ(specials_.size(), model.size());
    if (i % 100 == 0) specials_.CheckInvariants(span_);
  }
}

TEST_F(SpecialsTest, WithoutMemoryNothingIsAttached) {
  FailingMetadataSource metadata(0);
  Specials specials(&map_, &metadata, nullptr);
  EXPECT_EQ(specials.Add(&span_, 0, SpecialKind::kProfile, 0).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(map_.HasSpecials(span_));
  metadata.Heal();
  EXPECT_TRUE(specials.Add(&span_, 0, SpecialKind::kProfile, 0).ok());
  EXPECT_TRUE(specials.Remove(&span_, 0, SpecialKind::kProfile));
}

}  // namespace
}  // namespace spanpool

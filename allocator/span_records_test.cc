#include "allocator/span_records.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "allocator/failing_metadata_source.h"

namespace spanpool {
namespace {

TEST(SpanRecords, ARecordHasAZeroedBitmapForItsBlocks) {
  SpanRecords records(MetadataSource::System());
  for (int round = 0; round < 2; ++round) {
    std::vector<Span*> spans;
    for (const uint32_t blocks : {1, 64, 65, 512, 513, 1024}) {
      Span* const span = records.New(blocks);
      ASSERT_NE(span, nullptr);
      EXPECT_EQ(span->blocks, blocks);
      ASSERT_EQ(span->in_use().size(), (blocks + 63) / 64);
      for (uint64_t& word : absl::Span<uint64_t>(span->bits(), span->bitmap_words())) {
        EXPECT_EQ(word, 0u);
        word = UINT64_MAX;
      }
      spans.push_back(span);
    }
    for (Span* span : spans) records.Delete(span);
  }
}

TEST(SpanRecords, AReusedRecordKeepsItsSweepGeneration) {
  SpanRecords records(MetadataSource::System());
  Span* const span = records.New(1);
  span->sweep_generation.store(42);
  records.Delete(span);
  Span* const again = records.New(100);
  EXPECT_EQ(again, span);
  EXPECT_EQ(again->sweep_generation.load(), 42u);
}

TEST(SpanRecords, ARecordThatWentThroughACacheKeepsItsSweepGeneration) {
  SpanRecords records(MetadataSource::System());
  SpanRecords::Cache cache;
  Span* const span = records.New(1, &cache);
  span->sweep_generation.store(42);
  records.Delete(span, &cache);
  EXPECT_EQ(records.New(1, &cache), span);
  EXPECT_EQ(span->sweep_generation.load(), 42u);
}

TEST(SpanRecords, EveryRecordThereEverWasIsVisitedOnce) {
  SpanRecords records(MetadataSource::System());
  std::multiset<const Span*> expected;
  for (int i = 0; i < 1000; ++i) expected.insert(records.New(1));
  for (const Span* span : expected) records.Delete(const_cast<Span*>(span));
  records.New(1);
  std::multiset<const Span*> seen;
  records.ForEach([&](const Span* span) { seen.insert(span); });
  EXPECT_EQ(seen, expected);
}

TEST(SpanRecords, ACacheGivesRecordsAsTheyAreWithoutIt) {
  SpanRecords records(MetadataSource::System());
  SpanRecords::Cache cache;
  std::vector<Span*> spans;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 100; ++i) {
      for (const uint32_t blocks : {3, 100, 1000}) {
        Span* const span = records.New(blocks, &cache);
        ASSERT_NE(span, nullptr);
        ASSERT_EQ(span->in_use().size(), (blocks + 63) / 64);
        for (uint64_t& word : absl::Span<uint64_t>(span->bits(), span->bitmap_words())) {
          ASSERT_EQ(word, 0u);
          word = UINT64_MAX;
        }
        spans.push_back(span);
      }
    }
    for (Span* span : spans) records.Delete(span, &cache);
    spans.clear();
    records.CheckInvariants();
    EXPECT_LE(records.in_use(), 3 * 2 * SpanRecords::Cache::kBatch);
  }
  EXPECT_LE(records.carved(), 300 + 3 * SpanRecords::Cache::kBatch);
  records.Flush(&cache);
  EXPECT_EQ(records.in_use(), 0u);
  records.CheckInvariants();
}

// Memory ends after N calls, for N = 0, 1, 2 ..., until that is enough.
TEST(SpanRecords, WithoutMemoryThereIsNoRecordAndNothingIsLost) {
  for (int64_t n = 0;; ++n) {
    SCOPED_TRACE(n);
    FailingMetadataSource metadata(n);
    SpanRecords records(&metadata);
    size_t made = 0;
    for (int i = 0; i < 300; ++i) {
      for (const uint32_t blocks : {1, 100, 1000}) made += records.New(blocks) != nullptr;
      ASSERT_EQ(records.in_use(), made);
    }
    records.CheckInvariants();
    if (!metadata.hit()) {
      EXPECT_GT(n, 1);
      EXPECT_EQ(made, 900u);
      break;
    }
    EXPECT_LT(made, 900u);
    metadata.Heal();
    EXPECT_NE(records.New(1000), nullptr);
    records.CheckInvariants();
  }
}

}  // namespace
}  // namespace spanpool

#include "allocator/span_records.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

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
      for (uint64_t& word : absl::Span<uint64_t>(span->bits, span->bitmap_words())) {
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

TEST(SpanRecords, EveryRecordThereEverWasIsVisitedOnce) {
  SpanRecords records(MetadataSource::System());
  std::set<Span*> expected;
  for (int i = 0; i < 1000; ++i) expected.insert(records.New(1));
  EXPECT_EQ(expected.size(), 1000u);
  for (Span* span : expected) records.Delete(span);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(expected.contains(records.New(1)));
  std::multiset<Span*> seen;
  records.ForEach([&](Span* span) { seen.insert(span); });
  EXPECT_EQ(seen, std::multiset<Span*>(expected.begin(), expected.end()));
}

}  // namespace
}  // namespace spanpool

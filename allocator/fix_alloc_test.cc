#include "allocator/fix_alloc.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <iostream>
#include <random>
#include <set>
#include <vector>

#include "allocator/failing_metadata_source.h"
#include "allocator/linear_alloc.h"

namespace spanpool {
namespace {

struct Record {
  uint32_t generation = 7;
  uint64_t payload[9] = {};
};

TEST(FixAlloc, TheLastRecordGivenBackIsTheNextTaken) {
  PersistentAlloc memory;
  FixAlloc<Record> records(&memory);
  Record* a = records.Alloc();
  Record* b = records.Alloc();
  Record* c = records.Alloc();
  records.Free(b);
  records.Free(a);
  EXPECT_EQ(records.Alloc(), a);
  EXPECT_EQ(records.Alloc(), b);
  records.Free(c);
  EXPECT_EQ(records.in_use(), 2u);
  records.CheckInvariants();
}

TEST(FixAlloc, ARecordIsConstructedOnceAndKeepsEveryFieldThroughReuse) {
  PersistentAlloc memory;
  FixAlloc<Record> records(&memory);
  Record* record = records.Alloc();
  EXPECT_EQ(record->generation, 7u);
  record->generation = 99;  // the first word, where a link in the record would lie
  record->payload[8] = 1234;
  records.Free(record);
  EXPECT_EQ(record->generation, 99u) << "readable while it is free";
  ASSERT_EQ(records.Alloc(), record);
  EXPECT_EQ(record->generation, 99u);
  EXPECT_EQ(record->payload[8], 1234u);
}

TEST(FixAlloc, TheFirstHookSeesEachRecordOnce) {
  PersistentAlloc memory;
  std::vector<Record*> seen;
  FixAlloc<Record> records(&memory, [&seen](Record* record) { seen.push_back(record); });
  for (int round = 0; round < 3; ++round) {
    std::vector<Record*> taken;
    for (int i = 0; i < 500; ++i) taken.push_back(records.Alloc());
    for (Record* record : taken) records.Free(record);
  }
  EXPECT_EQ(seen.size(), 500u);
  EXPECT_EQ(std::set<Record*>(seen.begin(), seen.end()).size(), 500u);
  EXPECT_EQ(records.carved(), 500u);
}

struct Counted {
  static inline int alive = 0;
  Counted() { ++alive; }
  ~Counted() { --alive; }
  char bytes[5000];
};

TEST(FixAlloc, DestroysEveryRecordExactlyOnceAtItsEnd) {
  PersistentAlloc memory;
  {
    FixAlloc<Counted> records(&memory);
    Counted* last = nullptr;
    for (int i = 0; i < 10; ++i) last = records.Alloc();
    records.Free(last);
    EXPECT_EQ(Counted::alive, 10);
    records.CheckInvariants();
  }
  EXPECT_EQ(Counted::alive, 0);
}

TEST(FixAlloc, RandomTakingAndGivingBackNeverSharesARecord) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  PersistentAlloc memory;
  FixAlloc<Record> records(&memory);
  std::vector<std::pair<Record*, uint64_t>> live;
  for (int i = 0; i < 100'000; ++i) {
    if (random() % 100 < (i / 10'000 % 2 == 0 ? 60 : 40)) {
      Record* record = records.Alloc();
      ASSERT_NE(record, nullptr);
      live.emplace_back(record, random());
      for (uint64_t& word : record->payload) word = live.back().second;
    } else if (!live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      for (uint64_t word : live.back().first->payload) ASSERT_EQ(word, live.back().second);
      records.Free(live.back().first);
      live.pop_back();
    }
    if (i % 10'000 == 0) records.CheckInvariants();
    ASSERT_EQ(records.in_use(), live.size());
  }
}

TEST(FixAlloc, WithoutMemoryForAChunkThereIsNoRecordUntilThereIs) {
  FailingMetadataSource metadata(2);  // one chunk
  PersistentAlloc memory(&metadata);
  FixAlloc<Record> records(&memory);
  Record* last = nullptr;
  size_t n = 0;
  for (Record* record = records.Alloc(); record != nullptr; record = records.Alloc(), ++n) {
    last = record;
  }
  EXPECT_EQ(n, FixAlloc<Record>::kChunkBytes / (sizeof(Record) + sizeof(void*)));
  records.CheckInvariants();
  records.Free(last);
  EXPECT_EQ(records.Alloc(), last);
  metadata.Heal();
  EXPECT_NE(records.Alloc(), nullptr);
  records.CheckInvariants();
}

TEST(FixAllocDeathTest, GivingARecordBackTwiceIsFoundByTheInvariants) {
  PersistentAlloc memory;
  FixAlloc<Record> records(&memory);
  Record* record = records.Alloc();
  records.Free(record);
  EXPECT_DEATH(records.Free(record), "check failed");
  (void)records.Alloc();
  Record* other = records.Alloc();
  records.Free(other);
  records.Free(other);
  EXPECT_DEATH(records.CheckInvariants(), "given back twice");
}

}  // namespace
}  // namespace spanpool

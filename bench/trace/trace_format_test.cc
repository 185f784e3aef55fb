#include "bench/trace/trace_format.h"

#include <gtest/gtest.h>

#include <iostream>
#include <random>
#include <vector>

namespace spanpool::bench {
namespace {

using Kind = TraceEvent::Kind;

TEST(TraceFormat, EveryEventIsReadAsItWasWritten) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<TraceEvent> events;
  std::vector<unsigned char> bytes;
  uint64_t next_id = 0;
  for (int i = 0; i < 20'000; ++i) {
    TraceEvent event{Kind::kAlloc, random() >> (2 + random() % 62)};
    if (next_id > 0 && random() % 2 == 0) {
      event = {Kind::kFree, random() % next_id};
    } else if (random() % 10 == 0) {
      event.kind = Kind::kAlignedAlloc;
      event.alignment_log2 = static_cast<uint8_t>(random() % 31);
    }
    unsigned char buffer[kMaxEventBytes];
    bytes.insert(bytes.end(), buffer, PutEvent(event, next_id, buffer));
    events.push_back(event);
    next_id += event.kind != Kind::kFree;
  }
  TraceReader reader(bytes.data(), bytes.size());
  TraceEvent read;
  for (const TraceEvent& event : events) {
    ASSERT_TRUE(reader.Next(&read));
    ASSERT_EQ(read.kind, event.kind);
    ASSERT_EQ(read.value, event.value);
    ASSERT_EQ(read.alignment_log2, event.alignment_log2);
  }
  EXPECT_FALSE(reader.Next(&read));
  EXPECT_FALSE(reader.broken());
  EXPECT_EQ(reader.ids(), next_id);
}

TEST(TraceFormat, WhatIsNoEventIsRefused) {
  const std::vector<std::vector<unsigned char>> broken = {
      {0x80},                                                           // cut off in a number
      {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1},  // a number of 77 bits
      {0x01},                                                           // frees what never was
      {0x40, 0x05},                                                     // the same, by one
      {0x42},                                                           // no alignment
      {0x42, 64},                                                       // a mad one
      {0x03},                                                           // no kind
  };
  for (const std::vector<unsigned char>& bytes : broken) {
    TraceReader reader(bytes.data(), bytes.size());
    TraceEvent event;
    while (reader.Next(&event)) {
    }
    EXPECT_TRUE(reader.broken()) << testing::PrintToString(bytes);
    EXPECT_FALSE(reader.Next(&event)) << "and it stays so";
  }
}

TEST(TraceFormat, AnyBytesYieldOnlyFreesOfWhatWasAllocated) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  uint64_t frees = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<unsigned char> bytes(random() % 200);
    for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random() % 128);
    TraceReader reader(bytes.data(), bytes.size());
    for (TraceEvent event; reader.Next(&event);) {
      if (event.kind != Kind::kFree) continue;
      ++frees;
      ASSERT_LT(event.value, reader.ids());
    }
  }
  EXPECT_GT(frees, 0u);
}

}  // namespace
}  // namespace spanpool::bench

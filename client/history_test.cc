// That the checker accepts what a queue may do, and refuses what it may not.

#include "client/history.h"

#include <vector>

#include "gtest/gtest.h"

namespace spanpool::internal {
namespace {

using Kind = Operation::Kind;
using Result = Operation::Result;

Operation Send(uint32_t value, uint64_t begin, uint64_t end, Result result = Result::kDone) {
  return {Kind::kSend, result, value, 0, begin, end};
}
Operation Receive(uint32_t value, uint64_t begin, uint64_t end) {
  return {Kind::kReceive, Result::kDone, value, 1, begin, end};
}
Operation ReceiveNone(uint64_t begin, uint64_t end, Result result = Result::kNothing) {
  return {Kind::kReceive, result, 0, 1, begin, end};
}
Operation Close(uint64_t begin, uint64_t end) {
  return {Kind::kClose, Result::kDone, 0, 2, begin, end};
}
Operation Died(Kind kind, uint32_t value, uint64_t begin) {
  return {kind, Result::kUnknown, value, 3, begin, Operation::kNever};
}

TEST(IsExplained, FirstInFirstOut) {
  EXPECT_TRUE(IsExplained({Send(1, 1, 2), Send(2, 3, 4), Receive(1, 5, 6), Receive(2, 7, 8)}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Send(2, 3, 4), Receive(2, 5, 6), Receive(1, 7, 8)}, 2));
}

TEST(IsExplained, WhatOverlapsMayBeInAnyOrder) {
  EXPECT_TRUE(IsExplained({Send(1, 1, 4), Send(2, 2, 3), Receive(2, 5, 6), Receive(1, 7, 8)}, 2));
  EXPECT_TRUE(IsExplained({Send(1, 1, 2), Send(2, 3, 4), Receive(2, 5, 8), Receive(1, 6, 7)}, 2));
  EXPECT_TRUE(IsExplained({Receive(1, 1, 4), Send(1, 2, 3)}, 2));
  EXPECT_TRUE(IsExplained({ReceiveNone(1, 3), Send(1, 2, 4), Receive(1, 5, 6)}, 2));
}

TEST(IsExplained, NothingComesOutBeforeItGoesIn) {
  EXPECT_FALSE(IsExplained({Receive(1, 1, 2), Send(1, 3, 4)}, 2));
}

TEST(IsExplained, NothingComesOutTwiceOrFromNowhere) {
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Receive(1, 3, 5), Receive(1, 4, 6)}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Receive(7, 3, 4)}, 2));
}

TEST(IsExplained, NothingIsLost) {
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), ReceiveNone(3, 4)}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Send(2, 3, 4), Receive(2, 5, 6)}, 2));
}

TEST(IsExplained, FullMeansFull) {
  EXPECT_TRUE(IsExplained({Send(1, 1, 2), Send(2, 3, 4, Result::kNothing)}, 1));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Send(2, 3, 4, Result::kNothing)}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Send(2, 3, 4)}, 1));
  // The receive makes room, but only later.
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Send(2, 3, 4), Receive(1, 5, 6)}, 1));
  EXPECT_TRUE(IsExplained({Send(1, 1, 2), Send(2, 3, 5), Receive(1, 4, 6)}, 1));
}

TEST(IsExplained, AClosedQueueIsEmptiedBeforeItEnds) {
  const Operation end = ReceiveNone(7, 8, Result::kClosed);
  EXPECT_TRUE(IsExplained({Send(1, 1, 2), Close(3, 4), Receive(1, 5, 6), end}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Close(3, 4), end}, 2));
  EXPECT_FALSE(IsExplained({Close(3, 4), ReceiveNone(5, 6)}, 2));
  EXPECT_FALSE(IsExplained({end}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2, Result::kClosed)}, 2));
}

TEST(IsExplained, NothingIsSentAfterTheEnd) {
  EXPECT_FALSE(IsExplained({Close(1, 2), Send(1, 3, 4)}, 2));
  // It began before the close, and may arrive late; but not after somebody was told of the end.
  EXPECT_TRUE(IsExplained({Send(1, 1, 6), Close(2, 3), Receive(1, 4, 5)}, 2));
  const Operation end = ReceiveNone(4, 5, Result::kClosed);
  EXPECT_FALSE(IsExplained({Send(1, 1, 8), Close(2, 3), end}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 8), Close(2, 3), end, Receive(1, 6, 7)}, 2));
}

TEST(IsExplained, WhoDiedDidItOrDidNot) {
  const Operation sender = Died(Kind::kSend, 1, 1);
  EXPECT_TRUE(IsExplained({sender, ReceiveNone(2, 3)}, 2));
  EXPECT_TRUE(IsExplained({sender, Receive(1, 2, 3)}, 2));
  EXPECT_TRUE(IsExplained({sender, ReceiveNone(2, 3), Receive(1, 4, 5), ReceiveNone(6, 7)}, 2));
  EXPECT_FALSE(IsExplained({sender, Receive(1, 2, 3), Receive(1, 4, 5)}, 2));

  const Operation receiver = Died(Kind::kReceive, 0, 3);
  EXPECT_TRUE(IsExplained({Send(1, 1, 2), receiver, ReceiveNone(4, 5)}, 2));
  EXPECT_TRUE(IsExplained({Send(1, 1, 2), receiver, Receive(1, 4, 5)}, 2));
  EXPECT_FALSE(IsExplained({Send(1, 1, 2), Send(2, 6, 7), receiver, ReceiveNone(8, 9)}, 2));
}

}  // namespace
}  // namespace spanpool::internal

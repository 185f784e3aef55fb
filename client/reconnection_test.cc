#include "client/reconnection.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace spanpool::internal {
namespace {

const absl::Status kWhy = absl::UnavailableError("it hung up");

TEST(Reconnection, TheFirstTwoTriesAreAtOnceAndThenOneThreadTriesForAll) {
  Reconnection reconnection("/x/grpc.sock", [] { return false; });
  EXPECT_TRUE(reconnection.TakeTurn());
  EXPECT_TRUE(reconnection.TakeTurn());
  std::atomic<int> turns{0};
  std::vector<std::thread> threads;
  const absl::Time deadline = absl::Now() + absl::Milliseconds(300);
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      while (reconnection.Await(deadline, kWhy).ok()) {
        if (reconnection.TakeTurn()) ++turns;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  // After 10, 20, 40, 80 and 100 ms, if nothing came late.
  EXPECT_GE(turns, 1);
  EXPECT_LE(turns, 5);
}

TEST(Reconnection, AnAnswerOrANoticeEndsThePauseOfAll) {
  Reconnection reconnection("/x/grpc.sock", [] { return false; });
  for (int round = 0; round < 10; ++round) {
    while (reconnection.TakeTurn()) {
    }
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back(
          [&] { EXPECT_TRUE(reconnection.Await(absl::InfiniteFuture(), kWhy).ok()); });
    }
    round % 2 == 0 ? reconnection.NoteAnswer() : reconnection.WakeAll();
    EXPECT_TRUE(reconnection.TakeTurn());
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(Reconnection, WhatIsLostIsNotWaitedFor) {
  std::atomic<bool> lost{false};
  Reconnection reconnection("/x/grpc.sock", [&] { return lost.load(); });
  const absl::Status away = reconnection.Await(absl::Now(), kWhy);
  EXPECT_EQ(away.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(away.message().find("the daemon at /x/grpc.sock is away (it hung up)"),
            absl::string_view::npos);
  lost = true;
  const absl::Status status = reconnection.Await(absl::InfiniteFuture(), kWhy);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("the pool was lost; attach again"), absl::string_view::npos);
  EXPECT_NE(status.message().find("it hung up"), absl::string_view::npos);
}

TEST(Reconnection, WhatTheDaemonRefusesIsLostAndWhatItPutsOffIsNot) {
  Reconnection reconnection("/x/grpc.sock", [] { return false; });
  for (const absl::StatusCode code :
       {absl::StatusCode::kUnauthenticated, absl::StatusCode::kInvalidArgument,
        absl::StatusCode::kPermissionDenied, absl::StatusCode::kUnimplemented}) {
    EXPECT_EQ(reconnection.LostIfRefused(absl::Status(code, "no")).code(),
              absl::StatusCode::kUnavailable);
  }
  for (const absl::StatusCode code :
       {absl::StatusCode::kUnavailable, absl::StatusCode::kAborted, absl::StatusCode::kInternal,
        absl::StatusCode::kCancelled, absl::StatusCode::kUnknown}) {
    EXPECT_TRUE(reconnection.LostIfRefused(absl::Status(code, "not now")).ok());
  }
}

}  // namespace
}  // namespace spanpool::internal

#include "server/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "absl/synchronization/notification.h"

namespace spanpool {
namespace {

class EventLoopTest : public testing::Test {
 protected:
  EventLoopTest() : loop_(EventLoop::Create().value()) {
    for (auto& pipe_fds : pipes_) {
      int fds[2];
      EXPECT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
      pipe_fds = {layout::UniqueFd(fds[0]), layout::UniqueFd(fds[1])};
    }
  }
  int reader(int i) { return pipes_[i][0].get(); }
  void Poke(int i) { EXPECT_EQ(write(pipes_[i][1].get(), "x", 1), 1); }
  void Drain(int i) {
    char byte;
    EXPECT_EQ(read(reader(i), &byte, 1), 1);
  }
  // Runs `task` on the loop's thread and waits for it.
  void OnLoop(const std::function<void()>& task) {
    absl::Notification done;
    loop_->Post([&] {
      task();
      done.Notify();
    });
    done.WaitForNotification();
  }

  std::array<std::array<layout::UniqueFd, 2>, 2> pipes_;
  std::unique_ptr<EventLoop> loop_;
};

TEST_F(EventLoopTest, AWatchIsCalledWhenItsDescriptorIsReady) {
  absl::Notification called;
  ASSERT_TRUE(loop_
                  ->Watch(reader(0), EPOLLIN,
                          [&](uint32_t events) {
                            EXPECT_TRUE(events & EPOLLIN);
                            Drain(0);
                            called.Notify();
                          })
                  .ok());
  loop_->Start();
  Poke(0);
  called.WaitForNotification();
}

TEST_F(EventLoopTest, AWatchRemovedByAnotherOfTheSameBatchIsNotCalled) {
  // Both are ready before the loop looks; whichever is called first removes the other.
  std::array<EventLoop::WatchId, 2> watches{};
  int calls = 0;
  for (int i = 0; i < 2; ++i) {
    watches[i] = *loop_->Watch(reader(i), EPOLLIN, [&, i](uint32_t) {
      ++calls;
      Drain(i);
      loop_->Unwatch(watches[1 - i]);
      pipes_[1 - i][0].reset();
    });
    Poke(i);
  }
  loop_->Start();
  OnLoop([] {});
  OnLoop([] {});
  loop_->Stop();
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, AWatchMayRemoveItself) {
  int calls = 0;
  EventLoop::WatchId watch = 0;
  watch = *loop_->Watch(reader(0), EPOLLIN, [&](uint32_t) {
    ++calls;
    loop_->Unwatch(watch);
  });
  Poke(0);  // never drained: it would be called again and again
  loop_->Start();
  for (int i = 0; i < 3; ++i) OnLoop([] {});
  loop_->Stop();
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, AChangedWatchSleepsUntilItIsChangedBack) {
  std::atomic<int> calls{0};
  absl::Notification called;
  const EventLoop::WatchId watch = *loop_->Watch(reader(0), 0, [&](uint32_t) {
    ++calls;
    Drain(0);
    called.Notify();
  });
  Poke(0);
  loop_->Start();
  for (int i = 0; i < 3; ++i) OnLoop([] {});
  EXPECT_EQ(calls, 0);
  OnLoop([&] { loop_->Change(watch, EPOLLIN); });
  called.WaitForNotification();
}

TEST_F(EventLoopTest, DelayedTasksRunInTheOrderOfTheirTime) {
  std::vector<int> order;
  absl::Notification done;
  loop_->Start();
  OnLoop([&] {
    loop_->PostAfter(absl::Milliseconds(20), [&] {
      order.push_back(2);
      done.Notify();
    });
    loop_->PostAfter(absl::Milliseconds(1), [&] { order.push_back(1); });
  });
  done.WaitForNotification();
  loop_->Stop();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST_F(EventLoopTest, WhatIsPostedBeforeTheStopRunsAndAfterItRunsAtOnce) {
  int ran = 0;
  loop_->Post([&] { ++ran; });  // not started: here and now
  EXPECT_EQ(ran, 1);
  loop_->Start();
  for (int i = 0; i < 100; ++i) loop_->Post([&] { ++ran; });
  loop_->Stop();
  EXPECT_EQ(ran, 101);
  loop_->Post([&] { ++ran; });
  EXPECT_EQ(ran, 102);
}

}  // namespace
}  // namespace spanpool

#include "client/housekeeper.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"

namespace spanpool::internal {
namespace {

TEST(Housekeeper, WorksWhenWokenAndNotBefore) {
  std::atomic<int> done{0};
  Housekeeper housekeeper([&] {
    ++done;
    return absl::InfiniteFuture();
  });
  housekeeper.Start();
  EXPECT_EQ(done, 0);
  for (int i = 1; i <= 100; ++i) {
    EXPECT_TRUE(housekeeper.Wake());
    while (done < i) std::this_thread::yield();
  }
  EXPECT_EQ(done, 100);
}

TEST(Housekeeper, NoWakeIsLostWhileItWorks) {
  std::atomic<int> asked{0};
  std::atomic<int> seen{0};
  Housekeeper housekeeper([&] {
    seen = asked.load();
    return absl::InfiniteFuture();
  });
  housekeeper.Start();
  for (int i = 1; i <= 10000; ++i) {
    asked = i;
    housekeeper.Wake();
  }
  while (seen != 10000) std::this_thread::yield();
}

TEST(Housekeeper, WorksAgainUnwokenWhenItSaidSo) {
  std::atomic<int> done{0};
  Housekeeper housekeeper([&] {
    ++done;
    return done < 3 ? absl::Now() : absl::InfiniteFuture();
  });
  housekeeper.Start();
  housekeeper.Wake();
  while (done < 3) std::this_thread::yield();
}

TEST(Housekeeper, WorkMayAskForMoreUntilItIsStopped) {
  std::atomic<int> done{0};
  Housekeeper housekeeper([&] {
    ++done;
    EXPECT_TRUE(housekeeper.Wake());
    return absl::InfiniteFuture();
  });
  EXPECT_FALSE(housekeeper.Wake());  // nobody is there yet
  housekeeper.Start();
  EXPECT_TRUE(housekeeper.Wake());
  while (done < 100) std::this_thread::yield();
  housekeeper.Stop();
  EXPECT_FALSE(housekeeper.Wake());
  const int before = done;
  housekeeper.Stop();
  EXPECT_EQ(done, before);
}

TEST(Housekeeper, WorksWhenTheWatchedDescriptorIsReadableAndNotAfterItIsHungUp) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
  const layout::UniqueFd near(ends[0]);
  layout::UniqueFd far(ends[1]);
  std::atomic<int> read_packets{0};
  std::atomic<int> done{0};
  Housekeeper housekeeper(
      [&] {
        char byte;
        while (read(near.get(), &byte, 1) == 1) ++read_packets;
        ++done;
        return absl::InfiniteFuture();
      },
      near.get());
  housekeeper.Start();
  for (int i = 1; i <= 100; ++i) {
    ASSERT_EQ(write(far.get(), "x", 1), 1);
    while (read_packets < i) std::this_thread::yield();
  }
  const int before = done;
  far.reset();
  while (done < before + 1) std::this_thread::yield();
  // Still there when woken, and only then: a second time for the end would come before this one.
  EXPECT_TRUE(housekeeper.Wake());
  while (done < before + 2) std::this_thread::yield();
  EXPECT_TRUE(housekeeper.Wake());
  while (done < before + 3) std::this_thread::yield();
  EXPECT_LE(done, before + 4);  // a packet may have been counted after its work
}

}  // namespace
}  // namespace spanpool::internal

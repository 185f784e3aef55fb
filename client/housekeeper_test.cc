#include "client/housekeeper.h"

#include <gtest/gtest.h>

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
  housekeeper.Wake();
  while (done < 3) std::this_thread::yield();
}

}  // namespace
}  // namespace spanpool::internal

#include "server/long_step.h"

#include <gtest/gtest.h>

#include <thread>

namespace spanpool {
namespace {

TEST(LongStep, IsAnnouncedToTheHandlerOfItsThreadWhileThereIsOne) {
  int announced = 0;
  AnnounceLongStep();
  {
    const LongStepHandler handler([&announced] { ++announced; });
    AnnounceLongStep();
    AnnounceLongStep();
    std::thread([] { AnnounceLongStep(); }).join();
  }
  AnnounceLongStep();
  EXPECT_EQ(announced, 2);
}

}  // namespace
}  // namespace spanpool

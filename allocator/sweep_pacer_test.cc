#include "allocator/sweep_pacer.h"

#include <gtest/gtest.h>

namespace spanpool {
namespace {

TEST(SweepPacer, NothingIsOwedWhenASweepBeginsAndEverythingAtItsDistance) {
  SweepPacer pacer;
  pacer.Begin(PageCount(10000), PageCount(777));
  EXPECT_EQ(pacer.Owed(PageCount(777), PageCount(0)), PageCount(0));
  EXPECT_EQ(pacer.Owed(PageCount(5777), PageCount(0)), PageCount(5000));
  EXPECT_EQ(pacer.Owed(PageCount(5777), PageCount(1)), PageCount(5001));
  EXPECT_EQ(pacer.Owed(PageCount(10777), PageCount(0)), PageCount(10000));
  EXPECT_EQ(pacer.Owed(PageCount(1 << 30), PageCount(1 << 30)), PageCount(10000));
}

TEST(SweepPacer, AFewListedPagesAreSweptSlowlyEnough) {
  SweepPacer pacer;
  pacer.Begin(PageCount(2), PageCount(0));
  EXPECT_EQ(pacer.Owed(PageCount(0), PageCount(1)), PageCount(1)) << "rounded up";
  EXPECT_EQ(pacer.Owed(PageCount(256), PageCount(0)), PageCount(1));
  EXPECT_EQ(pacer.Owed(PageCount(512), PageCount(0)), PageCount(2));
}

TEST(SweepPacer, TheNextSweepIsDueWhenAsMuchWasTakenAsIsListed) {
  SweepPacer pacer;
  EXPECT_FALSE(pacer.Due(PageCount(511)));
  EXPECT_TRUE(pacer.Due(PageCount(512)));
  pacer.Begin(PageCount(1000), PageCount(5000));
  EXPECT_FALSE(pacer.Due(PageCount(5999)));
  EXPECT_TRUE(pacer.Due(PageCount(6000)));
  EXPECT_FALSE(pacer.Due(PageCount(4999))) << "a count read a little late";
}

TEST(SweepPacer, TheLargestPoolDoesNotOverflow) {
  SweepPacer pacer;
  const PageCount all(kMaxArenas * kPagesPerArena);
  pacer.Begin(all, PageCount(0));
  EXPECT_EQ(pacer.Owed(all, all), all);
  EXPECT_EQ(pacer.Owed(PageCount(all.value() / 2), PageCount(0)), PageCount(all.value() / 2));
}

}  // namespace
}  // namespace spanpool

#include "bench/child.h"

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace spanpool::bench {
namespace {

TEST(Child, ReturnsWhatAProgramPrinted) {
  const auto output = RunChild({"/bin/sh", "-c", "echo one; echo two >&2; echo three"});
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(*output, "one\nthree\n");
}

TEST(Child, SetsAndReplacesVariables) {
  setenv("SPANPOOL_A", "old", 1);
  setenv("SPANPOOL_B", "kept", 1);
  const auto output = RunChild({"/bin/sh", "-c", "echo $SPANPOOL_A $SPANPOOL_B $SPANPOOL_C"},
                               {"SPANPOOL_A=new", "SPANPOOL_C=added"});
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(*output, "new kept added\n");
}

TEST(Child, ManyBytesOnBothStreamsDoNotBlockIt) {
  const auto output = RunChild(
      {"/bin/sh", "-c", "head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero | tr '\\0' x"});
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->size(), 1'000'000u);
}

TEST(Child, AFailureSaysHowAndWhy) {
  const auto exited = RunChild({"/bin/sh", "-c", "echo first >&2; echo the reason >&2; exit 3"});
  EXPECT_EQ(exited.status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(exited.status().message(), "/bin/sh exited with 3: the reason");
  const auto killed = RunChild({"/bin/sh", "-c", "kill -9 $$"});
  EXPECT_EQ(killed.status().message(), "/bin/sh died of signal 9: ");
  const auto absent = RunChild({"/nowhere/program"});
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
}

TEST(Child, AnAbsentLibraryComesWithTheWayToInstallIt) {
  const auto library = FindLibrary("libnowhere.so.1", "libnowhere1");
  EXPECT_EQ(library.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(library.status().message(),
            "libnowhere.so.1 is not installed; run apt-get install libnowhere1");
}

}  // namespace
}  // namespace spanpool::bench

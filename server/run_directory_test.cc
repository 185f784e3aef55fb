#include "server/run_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace spanpool {
namespace {

using testing::HasSubstr;

class RunDirectoryTest : public testing::Test {
 protected:
  RunDirectoryTest() {
    char name[] = "/tmp/spanpool-run-XXXXXX";
    EXPECT_NE(mkdtemp(name), nullptr);
    root_ = name;
  }
  ~RunDirectoryTest() override { std::filesystem::remove_all(root_); }

  static bool CanConnect(const std::string& path, int type) {
    layout::UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    return connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }

  std::string root_;
};

TEST_F(RunDirectoryTest, MissingFoldersAreCreatedAndAnybodyCanConnect) {
  auto directory = RunDirectory::Open(root_ + "/a/b");
  ASSERT_TRUE(directory.ok()) << directory.status();
  auto fd = directory->Listen("attach.sock", SOCK_SEQPACKET);
  ASSERT_TRUE(fd.ok()) << fd.status();
  struct stat info;
  ASSERT_EQ(stat((root_ + "/a/b/attach.sock").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0666u);
  EXPECT_TRUE(CanConnect(root_ + "/a/b/attach.sock", SOCK_SEQPACKET));
}

TEST_F(RunDirectoryTest, ASecondDaemonIsRefusedWithThePidOfTheFirst) {
  auto first = RunDirectory::Open(root_);
  ASSERT_TRUE(first.ok());
  auto second = RunDirectory::Open(root_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(second.status().message(), HasSubstr(absl::StrCat("pid ", getpid())));
  EXPECT_THAT(second.status().message(), HasSubstr("--run_dir"));
}

TEST_F(RunDirectoryTest, StaleSocketsOfADeadDaemonAreReplaced) {
  std::ofstream(root_ + "/grpc.sock") << "stale";
  std::ofstream(root_ + "/.grpc.sock") << "staler";
  auto directory = RunDirectory::Open(root_);
  ASSERT_TRUE(directory.ok());
  auto fd = directory->Listen("grpc.sock", SOCK_STREAM);
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_TRUE(CanConnect(root_ + "/grpc.sock", SOCK_STREAM));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/.grpc.sock"));
}

TEST_F(RunDirectoryTest, SocketsGoAtTheStopButNotThoseOfASuccessor) {
  auto directory = RunDirectory::Open(root_);
  ASSERT_TRUE(directory.ok());
  auto mine = directory->Listen("attach.sock", SOCK_SEQPACKET);
  auto other = directory->Listen("grpc.sock", SOCK_STREAM);
  ASSERT_TRUE(mine.ok() && other.ok());
  ASSERT_EQ(unlink((root_ + "/grpc.sock").c_str()), 0);
  std::ofstream(root_ + "/grpc.sock") << "a successor's";
  directory->RemoveSockets();
  EXPECT_FALSE(std::filesystem::exists(root_ + "/attach.sock"));
  EXPECT_TRUE(std::filesystem::exists(root_ + "/grpc.sock"));
}

TEST_F(RunDirectoryTest, TheLockOutlivesTheSocketsAndEndsWithTheDirectory) {
  { ASSERT_TRUE(RunDirectory::Open(root_).ok()); }
  EXPECT_TRUE(RunDirectory::Open(root_).ok());
}

TEST_F(RunDirectoryTest, AFileInPlaceOfTheFolderIsAClearError) {
  std::ofstream(root_ + "/file") << "x";
  EXPECT_THAT(RunDirectory::Open(root_ + "/file").status().message(), HasSubstr("is not a folder"));
  EXPECT_THAT(RunDirectory::Open(root_ + "/file/below").status().message(),
              HasSubstr(root_ + "/file/below"));
}

TEST_F(RunDirectoryTest, AFolderThatCannotBeWrittenIsAClearError) {
  // /proc refuses even root.
  const auto directory = RunDirectory::Open("/proc/spanpool");
  ASSERT_FALSE(directory.ok());
  EXPECT_THAT(directory.status().message(), HasSubstr("/proc/spanpool"));
  const auto existing = RunDirectory::Open("/proc/self");
  ASSERT_FALSE(existing.ok());
  EXPECT_THAT(existing.status().message(), HasSubstr("--run_dir"));
}

TEST_F(RunDirectoryTest, APathTooLongForASocketIsRefusedWithItsLength) {
  auto directory = RunDirectory::Open(root_ + "/" + std::string(100, 'x'));
  ASSERT_TRUE(directory.ok());
  const auto fd = directory->Listen("attach.sock", SOCK_SEQPACKET);
  EXPECT_EQ(fd.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(fd.status().message(), HasSubstr("shorter --run_dir"));
}

}  // namespace
}  // namespace spanpool

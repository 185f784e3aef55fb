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

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "proto/layout/packet.h"
#include "server/fd_store.h"

namespace spanpool {
namespace {

using testing::HasSubstr;

// Keeps in this process what a successor is to get.
class FakeStore final : public FdStore {
 public:
  absl::Status Keep(absl::Span<const NamedFd> fds) override {
    if (!answer.ok()) return answer;
    for (const NamedFd& fd : fds) kept[fd.name] = layout::UniqueFd(dup(fd.fd));
    return absl::OkStatus();
  }
  void Forget(const std::string& name) override { kept.erase(name); }

  // What the next process is given.
  KeptFds ForSuccessor() const {
    KeptFds given;
    for (const auto& [name, fd] : kept) given[name] = layout::UniqueFd(dup(fd.get()));
    return given;
  }

  absl::Status answer;
  KeptFds kept;
};

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

// Across processes. That a predecessor was killed is here that its descriptors were closed and
// nothing else was done.

class InheritedRunDirectoryTest : public RunDirectoryTest {
 protected:
  // A daemon that serves both sockets and is killed: its names are out of its reach when it goes.
  void ServeAndDie() {
    {
      auto directory = RunDirectory::Open(root_, &store_);
      ASSERT_TRUE(directory.ok()) << directory.status();
      ASSERT_TRUE(directory->Listen("attach.sock", SOCK_SEQPACKET).ok());
      ASSERT_TRUE(directory->Listen("grpc.sock", SOCK_STREAM).ok());
      std::filesystem::rename(root_ + "/attach.sock", root_ + "/attach");
      std::filesystem::rename(root_ + "/grpc.sock", root_ + "/grpc");
    }
    std::filesystem::rename(root_ + "/attach", root_ + "/attach.sock");
    std::filesystem::rename(root_ + "/grpc", root_ + "/grpc.sock");
  }

  FakeStore store_;
};

TEST_F(InheritedRunDirectoryTest, WhoConnectsWhileNobodyServesIsAcceptedByTheSuccessor) {
  ServeAndDie();
  EXPECT_TRUE(CanConnect(root_ + "/attach.sock", SOCK_SEQPACKET));
  KeptFds kept = store_.ForSuccessor();
  auto next = RunDirectory::Open(root_, &store_, &kept);
  ASSERT_TRUE(next.ok()) << next.status();
  auto fd = next->Listen("attach.sock", SOCK_SEQPACKET, &kept);
  ASSERT_TRUE(fd.ok()) << fd.status();
  layout::UniqueFd accepted(accept4(fd->get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(accepted.valid());
  ASSERT_TRUE(next->Listen("grpc.sock", SOCK_STREAM, &kept).ok());
  EXPECT_TRUE(kept.empty());
  // Its own stop removes the names as ever.
  next->RemoveSockets();
  EXPECT_FALSE(std::filesystem::exists(root_ + "/attach.sock"));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/grpc.sock"));
}

TEST_F(InheritedRunDirectoryTest, TheLockIsHeldWhileNobodyServes) {
  ServeAndDie();
  EXPECT_EQ(RunDirectory::Open(root_).status().code(), absl::StatusCode::kAlreadyExists);
  KeptFds kept = store_.ForSuccessor();
  auto next = RunDirectory::Open(root_, &store_, &kept);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(RunDirectory::Open(root_).status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(InheritedRunDirectoryTest, ANameThatIsGoneIsMadeAnewAndKept) {
  ServeAndDie();
  std::filesystem::remove(root_ + "/attach.sock");
  KeptFds kept = store_.ForSuccessor();
  auto next = RunDirectory::Open(root_, &store_, &kept);
  ASSERT_TRUE(next.ok()) << next.status();
  ASSERT_TRUE(next->Listen("attach.sock", SOCK_SEQPACKET, &kept).ok());
  EXPECT_TRUE(CanConnect(root_ + "/attach.sock", SOCK_SEQPACKET));
  // The one that is kept is the one that the name leads to.
  layout::UniqueFd accepted(
      accept4(store_.kept["run/attach.sock"].get(), nullptr, nullptr, SOCK_CLOEXEC));
  EXPECT_TRUE(accepted.valid());
}

TEST_F(InheritedRunDirectoryTest, WhatWasKeptForAnotherFolderIsNotUsed) {
  ServeAndDie();
  KeptFds kept = store_.ForSuccessor();
  auto other = RunDirectory::Open(root_ + "/other", &store_, &kept);
  ASSERT_TRUE(other.ok()) << other.status();
  ASSERT_TRUE(other->Listen("attach.sock", SOCK_SEQPACKET, &kept).ok());
  EXPECT_TRUE(CanConnect(root_ + "/other/attach.sock", SOCK_SEQPACKET));
  EXPECT_EQ(RunDirectory::Open(root_ + "/other").status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(InheritedRunDirectoryTest, WhatIsNoListeningSocketOfTheTypeIsNotUsed) {
  ServeAndDie();
  KeptFds kept = store_.ForSuccessor();
  kept["run/attach.sock"] = layout::UniqueFd(dup(kept["run/grpc.sock"].get()));
  kept["run/grpc.sock"] = layout::UniqueFd(dup(kept["run/lock"].get()));
  auto next = RunDirectory::Open(root_, &store_, &kept);
  ASSERT_TRUE(next.ok()) << next.status();
  ASSERT_TRUE(next->Listen("attach.sock", SOCK_SEQPACKET, &kept).ok());
  ASSERT_TRUE(next->Listen("grpc.sock", SOCK_STREAM, &kept).ok());
  EXPECT_TRUE(CanConnect(root_ + "/attach.sock", SOCK_SEQPACKET));
  EXPECT_TRUE(CanConnect(root_ + "/grpc.sock", SOCK_STREAM));
}

TEST_F(InheritedRunDirectoryTest, ASuccessorThatCannotFollowLeavesTheNames) {
  ServeAndDie();
  {
    KeptFds kept = store_.ForSuccessor();
    auto next = RunDirectory::Open(root_, &store_, &kept);
    ASSERT_TRUE(next.ok()) << next.status();
    ASSERT_TRUE(next->Listen("attach.sock", SOCK_SEQPACKET, &kept).ok());
    next->LeaveInherited();
  }
  EXPECT_TRUE(CanConnect(root_ + "/attach.sock", SOCK_SEQPACKET));
}

TEST_F(InheritedRunDirectoryTest, OneThatInheritedNothingLeavesNoName) {
  {
    auto first = RunDirectory::Open(root_, &store_);
    ASSERT_TRUE(first.ok());
    ASSERT_TRUE(first->Listen("attach.sock", SOCK_SEQPACKET).ok());
    first->LeaveInherited();
  }
  EXPECT_FALSE(std::filesystem::exists(root_ + "/attach.sock"));
}

TEST_F(InheritedRunDirectoryTest, ServingGoesOnIfNobodyKeepsAndEndsIfTheStoreIsFull) {
  store_.answer = absl::UnavailableError("gone");
  {
    auto directory = RunDirectory::Open(root_, &store_);
    ASSERT_TRUE(directory.ok()) << directory.status();
    EXPECT_TRUE(directory->Listen("attach.sock", SOCK_SEQPACKET).ok());
  }
  store_.answer = absl::ResourceExhaustedError("full");
  EXPECT_EQ(RunDirectory::Open(root_, &store_).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace spanpool

#include "proto/layout/packet.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/layout/attach.h"

namespace spanpool::layout {
namespace {

class PacketTest : public testing::Test {
 protected:
  PacketTest() {
    int pair[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    near_ = UniqueFd(pair[0]);
    far_ = UniqueFd(pair[1]);
  }
  UniqueFd near_, far_;
};

TEST_F(PacketTest, AMessageAndItsDescriptorsArriveTogether) {
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  const UniqueFd reader(pipe_fds[0]);
  const UniqueFd writer(pipe_fds[1]);
  ArenaReply sent;
  sent.arena = 7;
  const int fds[] = {writer.get()};
  ASSERT_TRUE(SendPacket(near_.get(), BytesOf(sent), fds).ok());

  ArenaReply got;
  auto packet = ReceivePacket(far_.get(), std::as_writable_bytes(std::span(&got, 1)));
  ASSERT_TRUE(packet.ok()) << packet.status();
  EXPECT_EQ(packet->bytes, sizeof(got));
  EXPECT_FALSE(packet->truncated);
  EXPECT_EQ(got.arena, 7u);
  ASSERT_EQ(packet->fds.size(), 1u);
  EXPECT_TRUE(fcntl(packet->fds[0].get(), F_GETFD) & FD_CLOEXEC);
  ASSERT_EQ(write(packet->fds[0].get(), "x", 1), 1);
  char byte = 0;
  ASSERT_EQ(read(reader.get(), &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
}

TEST_F(PacketTest, ALongPacketIsReportedAsTruncated) {
  ASSERT_TRUE(SendPacket(near_.get(), BytesOf(AttachReply{})).ok());
  std::byte small[16];
  auto packet = ReceivePacket(far_.get(), small);
  ASSERT_TRUE(packet.ok());
  EXPECT_TRUE(packet->truncated);
}

TEST_F(PacketTest, AnEndThatDoesNotReadExhaustsTheSender) {
  absl::Status status;
  for (int i = 0; i < 1 << 20 && status.ok(); ++i) {
    status = SendPacket(near_.get(), BytesOf(AttachReply{}));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST_F(PacketTest, EndOfFileIsAnEmptyPacketAndSendingToItIsUnavailable) {
  far_.reset();
  std::byte buffer[16];
  auto packet = ReceivePacket(near_.get(), buffer);
  ASSERT_TRUE(packet.ok());
  EXPECT_EQ(packet->bytes, 0u);
  EXPECT_EQ(SendPacket(near_.get(), buffer).code(), absl::StatusCode::kUnavailable);
}

TEST_F(PacketTest, ANonBlockingReadOfNothingSaysSo) {
  std::byte buffer[16];
  EXPECT_EQ(ReceivePacket(near_.get(), buffer).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace spanpool::layout

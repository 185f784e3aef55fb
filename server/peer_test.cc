#include "server/peer.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

namespace spanpool {
namespace {

TEST(Peer, ASocketPairOfOnesOwnHasOnesOwnIdentity) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const layout::UniqueFd near(pair[0]), far(pair[1]);
  const auto peer = PeerIdentityOf(near.get());
  ASSERT_TRUE(peer.ok()) << peer.status();
  EXPECT_EQ(peer->pid, getpid());
  EXPECT_EQ(peer->uid, getuid());
  EXPECT_NE(std::find(peer->gids.begin(), peer->gids.end(), getgid()), peer->gids.end());
  const auto pidfd = PidfdOf(near.get(), *peer);
  ASSERT_TRUE(pidfd.ok()) << pidfd.status();
  EXPECT_FALSE(IsDead(pidfd->get()));
}

TEST(Peer, SomethingThatIsNoSocketIsAnError) {
  int pair[2];
  ASSERT_EQ(pipe(pair), 0);
  const layout::UniqueFd near(pair[0]), far(pair[1]);
  EXPECT_EQ(PeerIdentityOf(near.get()).status().code(), absl::StatusCode::kInternal);
}

TEST(Peer, APidfdIsReadableOnceTheProcessIsDeadAndNotBefore) {
  int pair[2], gate[2];
  ASSERT_EQ(pipe(gate), 0);
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
  const pid_t child = fork();
  if (child == 0) {
    close(gate[1]);
    char byte;
    _exit(read(gate[0], &byte, 1) == 0 ? 0 : 1);  // until the parent closes its end
  }
  close(gate[0]);
  PeerIdentity peer{.pid = child, .uid = getuid(), .gids = {}};
  // The pair was made by this process; what is tested is the descriptor, so open it by pid.
  const layout::UniqueFd pidfd(static_cast<int>(syscall(434 /* pidfd_open */, child, 0)));
  ASSERT_TRUE(pidfd.valid());
  EXPECT_FALSE(IsDead(pidfd.get()));
  close(gate[1]);
  pollfd wait{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&wait, 1, -1), 1);
  EXPECT_TRUE(IsDead(pidfd.get()));
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
  close(pair[0]);
  close(pair[1]);
}

}  // namespace
}  // namespace spanpool

// The store's side of systemd's protocol, before a service manager that the test plays.

#include "server/notify_fd_store.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace spanpool {
namespace {

using layout::UniqueFd;
using testing::HasSubstr;
using testing::StartsWith;

class Manager {
 public:
  Manager() : address_(absl::StrCat("@spanpool-store-test-", getpid(), "-", ++count_)) {
    socket_ = UniqueFd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, address_.data() + 1, address_.size() - 1);
    EXPECT_EQ(bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address),
                   static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size())),
              0);
  }
  const std::string& address() const { return address_; }

  // The next message and its descriptor.
  std::pair<std::string, UniqueFd> Receive() {
    std::array<char, 4096> text{};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec bytes = {.iov_base = text.data(), .iov_len = text.size()};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t length = recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
    int fd = -1;
    if (cmsghdr* const header = CMSG_FIRSTHDR(&message); header != nullptr) {
      std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    }
    return {std::string(text.data(), length < 0 ? 0 : static_cast<size_t>(length)), UniqueFd(fd)};
  }
  // Reads until a barrier, and lets that go; what came before.
  std::vector<std::string> ReceiveUntilBarrier() {
    std::vector<std::string> texts;
    for (;;) {
      auto [text, fd] = Receive();
      if (text == "BARRIER=1") return texts;
      texts.push_back(text);
    }
  }
  bool HasMessage() const {
    pollfd waiting = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
    return poll(&waiting, 1, 0) == 1;
  }
  void Close() { socket_.reset(); }

 private:
  static int count_;
  const std::string address_;
  UniqueFd socket_;
};

int Manager::count_ = 0;

std::unique_ptr<NotifyFdStore> ConnectTo(const Manager& manager,
                                         NotifyFdStore::Options options = {},
                                         const KeptFds& kept = {}) {
  options.socket = manager.address();
  auto store = NotifyFdStore::Connect(options, kept);
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

TEST(FdNames, AreShortAndPlain) {
  for (const char* name : {"a", "run/attach.sock", "s-1_x.Y/9"}) EXPECT_TRUE(IsFdName(name));
  EXPECT_TRUE(IsFdName(std::string(200, 'x')));
  for (const char* name : {"", "a:b", "a b", "a\n", "\xc3\xa4", "a=b"}) {
    EXPECT_FALSE(IsFdName(name)) << name;
  }
  EXPECT_FALSE(IsFdName(std::string(201, 'x')));
  EXPECT_FALSE(IsFdName(std::string("a\0b", 3)));
}

TEST(NotifyFdStore, WhatIsKeptHasBeenDealtWithWhenKeepReturns) {
  Manager manager;
  auto store = ConnectTo(manager);
  const int file = memfd_create("x", MFD_CLOEXEC);
  std::vector<std::string> got;
  std::thread managing([&] {
    auto [text, fd] = manager.Receive();
    got.push_back(text);
    EXPECT_TRUE(fd.valid());
    got.push_back(manager.Receive().first);
    auto [barrier, end] = manager.Receive();
    got.push_back(barrier);
  });
  EXPECT_TRUE(store->Keep({{"one", file}, {"two", STDIN_FILENO}}).ok());
  managing.join();
  EXPECT_THAT(got, testing::ElementsAre("FDSTORE=1\nFDNAME=one\nFDPOLL=0",
                                        "FDSTORE=1\nFDNAME=two\nFDPOLL=0", "BARRIER=1"));
  close(file);
}

TEST(NotifyFdStore, WhatIsKeptByANameIsRemovedBeforeItIsReplaced) {
  Manager manager;
  KeptFds kept;
  kept["old"] = UniqueFd(dup(0));
  auto store = ConnectTo(manager, {}, kept);
  std::vector<std::string> got;
  std::thread managing([&] { got = manager.ReceiveUntilBarrier(); });
  EXPECT_TRUE(store->Keep({{"old", STDIN_FILENO}}).ok());
  managing.join();
  EXPECT_THAT(
      got, testing::ElementsAre("FDSTOREREMOVE=1\nFDNAME=old", "FDSTORE=1\nFDNAME=old\nFDPOLL=0"));
}

TEST(NotifyFdStore, ForgetNeverWaitsAndIsMadeUpFor) {
  Manager manager;
  KeptFds kept;
  constexpr int kMany = 3000;  // more than any socket's queue holds
  for (int i = 0; i < kMany; ++i) kept[absl::StrCat("n", i)];
  auto store = ConnectTo(manager, {}, kept);
  for (int i = 0; i < kMany; ++i) store->Forget(absl::StrCat("n", i));
  store->Forget("n0");       // no more
  store->Forget("unheard");  // never
  std::vector<std::string> got;
  std::thread managing([&] { got = manager.ReceiveUntilBarrier(); });
  EXPECT_TRUE(store->Keep({{"more", STDIN_FILENO}}).ok());
  managing.join();
  EXPECT_EQ(got.size(), kMany + 1u);
  for (size_t i = 0; i < kMany; ++i) {
    EXPECT_EQ(got[i], absl::StrCat("FDSTOREREMOVE=1\nFDNAME=n", i));
  }
}

TEST(NotifyFdStore, WhatDoesNotFitIsRefusedAndWhatIsForgottenMakesRoom) {
  Manager manager;
  KeptFds kept;
  kept["a"];
  kept["b"];
  auto store = ConnectTo(manager, {.most_fds = 3, .most_name_bytes = 8}, kept);
  EXPECT_EQ(store->Keep({{"c", 0}, {"d", 0}}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store->Keep({{"long", 0}}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(manager.HasMessage());
  store->Forget("a");
  manager.Receive();
  std::thread managing([&] { manager.ReceiveUntilBarrier(); });
  EXPECT_TRUE(store->Keep({{"c", 0}, {"d", 0}}).ok());
  managing.join();
}

TEST(NotifyFdStore, NamesThatCannotBePassedOnAreRefused) {
  Manager manager;
  auto store = ConnectTo(manager);
  EXPECT_EQ(store->Keep({{"a:b", 0}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(manager.HasMessage());
}

TEST(NotifyFdStore, AManagerThatDoesNotReadIsWaitedForNoLongerThanItsPatience) {
  Manager manager;
  auto store = ConnectTo(manager, {.patience = absl::Milliseconds(10)});
  const absl::Status status = store->Keep({{"a", 0}});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("does not read"));
  EXPECT_TRUE(store->restart_safe());
}

TEST(NotifyFdStore, AManagerThatIsGoneIsUnavailable) {
  Manager manager;
  auto store = ConnectTo(manager);
  manager.Close();
  EXPECT_EQ(store->Keep({{"a", 0}}).code(), absl::StatusCode::kUnavailable);
  store->Forget("a");
  EXPECT_EQ(NotifyFdStore::Connect({.socket = manager.address()}, {}).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(NotifyFdStore, AKeeperThatEndsIsNoticedByWhoKeepsAndByWhoWaits) {
  Manager manager;
  // Stands for the keeper: when it ends, so does the socket.
  const pid_t keeper = fork();
  if (keeper == 0) {
    manager.Receive();
    _exit(0);
  }
  auto store = ConnectTo(manager, {.keeper = keeper});
  EXPECT_TRUE(store->restart_safe());
  manager.Close();
  // Returns, whether it looks like before the end or after it.
  const absl::StatusCode code = store->Keep({{"a", 0}}).code();
  EXPECT_TRUE(code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kOk) << code;
  waitpid(keeper, nullptr, 0);
  EXPECT_FALSE(store->restart_safe());
  EXPECT_EQ(store->Keep({{"b", 0}}).code(), absl::StatusCode::kUnavailable);
  pollfd waiting = {.fd = store->hang_up(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&waiting, 1, 0), 1);
}

TEST(NotifyFdStore, WithoutASocketThereIsNoStore) {
  for (const std::string& socket :
       {std::string(), std::string("relative"), std::string("@"), "/" + std::string(200, 'x')}) {
    EXPECT_EQ(NotifyFdStore::Connect({.socket = socket}, {}).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
}

TEST(NotifyFdStore, TheEnvironmentSaysWhereAndHowMuch) {
  setenv("NOTIFY_SOCKET", "/run/x", 1);
  setenv("FDSTORE", "77", 1);
  setenv(kKeeperVariable, "5", 1);
  NotifyFdStore::Options options = NotifyFdStore::FromEnvironment();
  EXPECT_EQ(options.socket, "/run/x");
  EXPECT_EQ(options.most_fds, 77u);
  EXPECT_EQ(options.keeper, 5);
  unsetenv("FDSTORE");
  unsetenv(kKeeperVariable);
  options = NotifyFdStore::FromEnvironment();
  EXPECT_EQ(options.most_fds, SIZE_MAX);
  EXPECT_EQ(options.keeper, 0);
  unsetenv("NOTIFY_SOCKET");
}

// In a process of its own: descriptors 3 and on are those that are passed.
TEST(TakeKeptFds, TakesWhatIsPassedByNameOnceAndClosesWhatHasNone) {
  const pid_t child = fork();
  if (child == 0) {
    int code = 0;
    for (int i = 0; i < 5; ++i) {
      const int file = memfd_create("kept", 0);
      const char digit = static_cast<char>('0' + i);
      if (write(file, &digit, 1) != 1 || dup2(file, 100 + i) < 0) _exit(101);
    }
    for (int i = 0; i < 5; ++i) dup2(100 + i, 3 + i);
    setenv("LISTEN_PID", absl::StrCat(getpid()).c_str(), 1);
    setenv("LISTEN_FDS", "5", 1);
    setenv("LISTEN_FDNAMES", "a:b/c:twice:twice:not good", 1);
    const KeptFds kept = TakeKeptFds();
    const auto holds = [&](const char* name, char expected) {
      char c = 0;
      const auto found = kept.find(name);
      return found != kept.end() && pread(found->second.get(), &c, 1, 0) == 1 && c == expected &&
             (fcntl(found->second.get(), F_GETFD) & FD_CLOEXEC) != 0;
    };
    if (kept.size() != 3) code = 1;
    if (!holds("a", '0') || !holds("b/c", '1') || !holds("twice", '3')) code = 2;
    if (fcntl(7, F_GETFD) >= 0 || fcntl(5, F_GETFD) >= 0) code = 3;
    if (!TakeKeptFds().empty()) code = 4;
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 0);
}

}  // namespace
}  // namespace spanpool

// What the daemon tells the service manager that started it, over a socket that $NOTIFY_SOCKET
// names.

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>

#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

class ServiceManager {
 public:
  ServiceManager() : folder_(TemporaryDirectory()), path_(folder_ + "/notify") {
    socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    path_.copy(address.sun_path, sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~ServiceManager() {
    close(socket_);
    std::filesystem::remove_all(folder_);
  }

  const std::string& path() const { return path_; }
  std::string run_dir() const { return folder_ + "/run"; }

  // The next message; "" if none comes within a minute.
  std::string Receive() {
    pollfd waiting = {.fd = socket_, .events = POLLIN, .revents = 0};
    if (poll(&waiting, 1, 60'000) != 1) return "";
    std::array<char, 1024> message;
    const ssize_t bytes = recv(socket_, message.data(), message.size(), 0);
    return bytes < 0 ? "" : std::string(message.data(), bytes);
  }
  bool HasMessage() {
    pollfd waiting = {.fd = socket_, .events = POLLIN, .revents = 0};
    return poll(&waiting, 1, 0) != 0;
  }

 private:
  const std::string folder_;
  const std::string path_;
  int socket_;
};

TEST(Notify, ReadyComesWhenClientsMayAttachAndStoppingWhenTheyMustNot) {
  ServiceManager manager;
  Process daemon(
      {Runfile("server/spanpoold"), "--run_dir", manager.run_dir(), "--limit", "67108864"},
      {.uid = 0, .environment = {{"NOTIFY_SOCKET", manager.path()}}});
  EXPECT_EQ(manager.Receive(), "READY=1");
  Process health({Runfile("cli/spanpool"), "--target", manager.run_dir(), "health"});
  EXPECT_EQ(health.Wait(), 0) << health.standard_error();
  daemon.Signal(SIGTERM);
  EXPECT_EQ(manager.Receive(), "STOPPING=1");
  EXPECT_EQ(daemon.Wait(), 0) << daemon.standard_error();
}

TEST(Notify, ADaemonThatCannotServeIsNeverReady) {
  ServiceManager manager;
  Process daemon({Runfile("server/spanpoold"), "--run_dir", "/proc/nowhere"},
                 {.uid = 0, .environment = {{"NOTIFY_SOCKET", manager.path()}}});
  EXPECT_EQ(daemon.Wait(), 1);
  // It is gone: what it said, if anything, is in the socket's queue.
  EXPECT_FALSE(manager.HasMessage());
}

}  // namespace
}  // namespace spanpool::testing

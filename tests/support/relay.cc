#include "tests/support/relay.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

namespace spanpool::testing {
namespace {

int Socket(const std::string& path, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  std::memcpy(address->sun_path, path.c_str(), path.size() + 1);
  return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

}  // namespace

Relay::Relay(std::string path, std::string target)
    : path_(std::move(path)), target_(std::move(target)), wake_(eventfd(0, EFD_CLOEXEC)) {
  Listen();
  thread_ = std::thread([this] { Run(); });
}

Relay::~Relay() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
  }
  Wake();
  thread_.join();
  Close();
  close(wake_);
}

void Relay::Listen() {
  sockaddr_un address;
  listener_ = Socket(path_, &address);
  unlink(path_.c_str());
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener_, 64) != 0) {
    std::perror("the relay cannot listen");
    std::abort();
  }
}

void Relay::Wake() {
  const uint64_t one = 1;
  if (write(wake_, &one, sizeof(one)) < 0) std::abort();
}

void Relay::CutLocked() {
  for (const Pair& pair : pairs_) {
    close(pair.client);
    close(pair.daemon);
  }
  pairs_.clear();
  swallow_ = false;
}

void Relay::Cut() {
  std::lock_guard<std::mutex> lock(mu_);
  CutLocked();
  Wake();
}

void Relay::SwallowAnswers() {
  std::lock_guard<std::mutex> lock(mu_);
  swallow_ = true;
}

void Relay::Close() {
  std::lock_guard<std::mutex> lock(mu_);
  if (listener_ >= 0) close(std::exchange(listener_, -1));
  unlink(path_.c_str());
  CutLocked();
  Wake();
}

void Relay::Open() {
  std::lock_guard<std::mutex> lock(mu_);
  Listen();
  Wake();
}

void Relay::Accept() {
  Pair pair;
  pair.client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
  if (pair.client < 0) return;
  sockaddr_un address;
  pair.daemon = Socket(target_, &address);
  if (connect(pair.daemon, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    close(pair.client);
    close(pair.daemon);
    return;
  }
  pairs_.push_back(pair);
}

bool Relay::Pass(int from, int to, bool swallow) {
  std::array<char, 65536> bytes;
  const ssize_t got = recv(from, bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got <= 0) return got < 0 && (errno == EAGAIN || errno == EINTR);
  for (ssize_t sent = 0; sent < got && !swallow;) {
    const ssize_t some =
        send(to, bytes.data() + sent, static_cast<size_t>(got - sent), MSG_NOSIGNAL);
    if (some < 0) return false;
    sent += some;
  }
  return true;
}

void Relay::Run() {
  for (;;) {
    std::vector<pollfd> ready;
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (stop_) return;
      ready.push_back({wake_, POLLIN, 0});
      ready.push_back({listener_, POLLIN, 0});
      for (const Pair& pair : pairs_) {
        ready.push_back({pair.client, POLLIN, 0});
        ready.push_back({pair.daemon, POLLIN, 0});
      }
    }
    // A descriptor that is closed meanwhile, or means another by now, is told by what is read.
    poll(ready.data(), ready.size(), -1);
    if (ready[0].revents != 0) {
      uint64_t count;
      if (read(wake_, &count, sizeof(count)) < 0) std::abort();
    }
    std::lock_guard<std::mutex> lock(mu_);
    pollfd listening{listener_, POLLIN, 0};
    if (listener_ >= 0 && poll(&listening, 1, 0) > 0) Accept();
    for (auto pair = pairs_.begin(); pair != pairs_.end();) {
      if (Pass(pair->client, pair->daemon, false) && Pass(pair->daemon, pair->client, swallow_)) {
        ++pair;
        continue;
      }
      close(pair->client);
      close(pair->daemon);
      pair = pairs_.erase(pair);
    }
  }
}

}  // namespace spanpool::testing

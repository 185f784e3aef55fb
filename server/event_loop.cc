#include "server/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "allocator/check.h"

namespace spanpool {

absl::StatusOr<std::unique_ptr<EventLoop>> EventLoop::Create() {
  layout::UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  layout::UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kNoWatch}};
  if (!epoll.valid() || !wake.valid() ||
      epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("event loop: ", strerror(errno)));
  }
  return std::unique_ptr<EventLoop>(new EventLoop(std::move(epoll), std::move(wake)));
}

EventLoop::~EventLoop() { Stop(); }

absl::StatusOr<EventLoop::WatchId> EventLoop::Watch(int fd, uint32_t events,
                                                    std::function<void(uint32_t)> ready) {
  const WatchId id = next_watch_++;
  epoll_event event{.events = events, .data = {.u64 = id}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("watching a descriptor: ", strerror(errno)));
  }
  auto watched = std::make_shared<Watched>();
  watched->fd = fd;
  watched->ready = std::move(ready);
  watches_.emplace(id, std::move(watched));
  return id;
}

void EventLoop::Change(WatchId watch, uint32_t events) {
  const auto it = watches_.find(watch);
  SPANPOOL_CHECK(it != watches_.end()) << "watch " << watch;
  epoll_event event{.events = events, .data = {.u64 = watch}};
  SPANPOOL_CHECK_EQ(epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, it->second->fd, &event), 0);
}

void EventLoop::Unwatch(WatchId watch) {
  const auto it = watches_.find(watch);
  if (it == watches_.end()) return;
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second->fd, nullptr);
  watches_.erase(it);
}

void EventLoop::Post(std::function<void()> task) {
  {
    RankedMutexLock lock(&mu_);
    if (running_) {
      posted_.push_back(std::move(task));
      task = nullptr;
    }
  }
  if (task != nullptr) {
    task();
    return;
  }
  const uint64_t one = 1;
  // Fails only when the counter is full: then the loop is woken already.
  [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof(one));
}

void EventLoop::PostAfter(absl::Duration delay, std::function<void()> task) {
  delayed_.push_back({absl::Now() + delay, std::move(task)});
}

void EventLoop::Start() {
  {
    RankedMutexLock lock(&mu_);
    running_ = true;
  }
  thread_ = std::thread([this] { Run(); });
}

void EventLoop::Stop() {
  if (!thread_.joinable()) return;
  Post([this] {
    RankedMutexLock lock(&mu_);
    stopping_ = true;
  });
  thread_.join();
}

bool EventLoop::RunPosted() {
  std::vector<std::function<void()>> tasks;
  {
    RankedMutexLock lock(&mu_);
    tasks.swap(posted_);
  }
  for (const std::function<void()>& task : tasks) task();
  RankedMutexLock lock(&mu_);
  if (!stopping_ || !posted_.empty()) return true;
  running_ = false;
  return false;
}

int EventLoop::RunDelayed() {
  const absl::Time now = absl::Now();
  std::vector<std::function<void()>> due;
  for (size_t i = 0; i < delayed_.size();) {
    if (delayed_[i].at > now) {
      ++i;
      continue;
    }
    due.push_back(std::move(delayed_[i].task));
    delayed_[i] = std::move(delayed_.back());
    delayed_.pop_back();
  }
  for (const std::function<void()>& task : due) task();
  absl::Time next = absl::InfiniteFuture();
  for (const Delayed& delayed : delayed_) next = std::min(next, delayed.at);
  if (next == absl::InfiniteFuture()) return -1;
  return static_cast<int>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(next - absl::Now()) + 1, 0, 60'000));
}

void EventLoop::Run() {
  std::array<epoll_event, 64> events;
  while (RunPosted()) {
    const int wait_ms = RunDelayed();
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), wait_ms);
    for (int i = 0; i < count; ++i) {
      // A copy: the structure is packed, and nothing in it may be referred to.
      const WatchId id = events[i].data.u64;
      if (id == kNoWatch) {
        uint64_t ignored;
        [[maybe_unused]] const ssize_t got = read(wake_.get(), &ignored, sizeof(ignored));
        continue;
      }
      const auto it = watches_.find(id);
      if (it == watches_.end()) continue;  // unwatched by an event before this one
      // The watch may unwatch itself while it is called.
      const std::shared_ptr<Watched> watched = it->second;
      watched->ready(events[i].events);
    }
  }
}

}  // namespace spanpool

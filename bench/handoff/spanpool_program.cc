// Blocks of the pool that SPANPOOL_TARGET names, in one of three ways:
//
//   spanpool_program share     Share(), the handle through a ring; the sender keeps its Buffer
//                              until the receiver has taken the handle out
//   spanpool_program send      Send(), the handle through a ring; the reference travels with it
//   spanpool_program channel   through a Channel
//
// and, with `share_release`, a program of one process that answers as those of bench/alloc do:
// nanoseconds for allocating, sharing and letting go.

#include <array>
#include <iostream>
#include <memory>
#include <new>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/handoff/two_sides.h"
#include "bench/harness.h"
#include "bench/spsc_ring.h"
#include "spanpool/spanpool.h"

namespace spanpool::bench {
namespace {

using Ring = SpscRing<Handle, kWindow>;

struct Shared {
  Ring ring;
  Handle channel;
};

[[noreturn]] void GiveUp(const absl::Status& status) {
  bench::GiveUp(std::string(status.message()));
}

class Sharer final : public Side {
 public:
  Sharer(std::unique_ptr<Session> session, Shared* shared)
      : session_(std::move(session)), ring_(shared->ring) {}

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    for (Buffer& buffer : window_) buffer = Buffer();
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      ring_.WaitForRoom();
      // What was passed on through this place of the ring has arrived.
      Buffer& mine = window_[number % kWindow];
      mine = Buffer();
      absl::StatusOr<Buffer> buffer = session_->Allocate(bytes_);
      if (!buffer.ok()) GiveUp(buffer.status());
      WriteEnds(buffer->data(), bytes_, number);
      const absl::StatusOr<Handle> handle = buffer->Share();
      if (!handle.ok()) GiveUp(handle.status());
      ring_.Push(*handle);
      mine = *std::move(buffer);
    }
  }

 private:
  const std::unique_ptr<Session> session_;
  Ring& ring_;
  size_t bytes_ = 0;
  std::array<Buffer, kWindow> window_;
};

class Sender final : public Side {
 public:
  Sender(std::unique_ptr<Session> session, Shared* shared)
      : session_(std::move(session)), ring_(shared->ring) {}

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      ring_.WaitForRoom();
      absl::StatusOr<Buffer> buffer = session_->Allocate(bytes_);
      if (!buffer.ok()) GiveUp(buffer.status());
      WriteEnds(buffer->data(), bytes_, number);
      const absl::StatusOr<Handle> handle = (*std::move(buffer)).Send();
      if (!handle.ok()) GiveUp(handle.status());
      ring_.Push(*handle);
    }
  }

 private:
  const std::unique_ptr<Session> session_;
  Ring& ring_;
  size_t bytes_ = 0;
};

class Receiver final : public Side {
 public:
  Receiver(std::unique_ptr<Session> session, Shared* shared)
      : session_(std::move(session)), ring_(shared->ring) {}

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      {
        const absl::StatusOr<Buffer> buffer = session_->Open(ring_.Front());
        if (!buffer.ok()) GiveUp(buffer.status());
        CheckEnds(buffer->data(), bytes_, number);
      }
      ring_.DropFront();
    }
  }

 private:
  const std::unique_ptr<Session> session_;
  Ring& ring_;
  size_t bytes_ = 0;
};

class ChannelSender final : public Side {
 public:
  ChannelSender(std::unique_ptr<Session> session, Shared* shared)
      : session_(std::move(session)), shared_(shared) {}

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    if (channel_ != nullptr) return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<Channel>> channel = Channel::Create(*session_, kWindow);
    if (!channel.ok()) return channel.status();
    channel_ = *std::move(channel);
    shared_->channel = channel_->handle();
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      absl::StatusOr<Buffer> buffer = session_->Allocate(bytes_);
      if (!buffer.ok()) GiveUp(buffer.status());
      WriteEnds(buffer->data(), bytes_, number);
      if (absl::Status sent = channel_->Send(*std::move(buffer)); !sent.ok()) GiveUp(sent);
    }
  }

 private:
  const std::unique_ptr<Session> session_;
  Shared* const shared_;
  std::unique_ptr<Channel> channel_;
  size_t bytes_ = 0;
};

class ChannelReceiver final : public Side {
 public:
  ChannelReceiver(std::unique_ptr<Session> session, Shared* shared)
      : session_(std::move(session)), shared_(shared) {}

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    if (channel_ != nullptr) return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<Channel>> channel = Channel::Open(*session_, shared_->channel);
    if (!channel.ok()) return channel.status();
    channel_ = *std::move(channel);
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      const absl::StatusOr<Buffer> buffer = channel_->Receive();
      if (!buffer.ok()) GiveUp(buffer.status());
      CheckEnds(buffer->data(), bytes_, number);
    }
  }

 private:
  const std::unique_ptr<Session> session_;
  Shared* const shared_;
  std::unique_ptr<Channel> channel_;
  size_t bytes_ = 0;
};

template <typename S>
absl::StatusOr<std::unique_ptr<Side>> Make(void* shared) {
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach({});
  if (!session.ok()) return session.status();
  return std::make_unique<S>(*std::move(session), static_cast<Shared*>(shared));
}

// In:  share_release BYTES MS      Out: nanoseconds, or ABSENT and why
int ServeShareRelease() {
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach({});
  if (!session.ok()) return RunAbsent(std::string(session.status().message()));
  std::cout << "READY" << std::endl;
  std::optional<Timer> timer;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string pattern;
    size_t bytes = 0;
    int milliseconds = 0;
    words >> pattern >> bytes >> milliseconds;
    if (!timer) {
      timer.emplace(absl::Milliseconds(milliseconds), TimeOf::kThread, [&, bytes](int64_t n) {
        for (; n > 0; --n) {
          absl::StatusOr<Buffer> buffer = (*session)->Allocate(bytes);
          if (!buffer.ok()) GiveUp(buffer.status());
          const absl::StatusOr<Handle> handle = buffer->Share();
          if (!handle.ok()) GiveUp(handle.status());
        }
      });
    }
    std::cout << timer->NsPerOperation() << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  using namespace spanpool::bench;  // NOLINT: this file is one program
  const std::string_view how = argc == 2 ? argv[1] : "";
  if (how == "share") return RunTwoSides(sizeof(Shared), Make<Sharer>, Make<Receiver>);
  if (how == "send") return RunTwoSides(sizeof(Shared), Make<Sender>, Make<Receiver>);
  if (how == "channel") {
    return RunTwoSides(sizeof(Shared), Make<ChannelSender>, Make<ChannelReceiver>);
  }
  if (how == "share_release") return ServeShareRelease();
  std::cerr << "usage: spanpool_program share | send | channel | share_release\n";
  return 2;
}

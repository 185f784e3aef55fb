// The steady state: a program that has found its size and goes on allocating and freeing asks the
// daemon for nothing.
//
// What is reported is how many messages the daemon counted in 10 s of it, all sessions together.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/harness.h"
#include "bench/pool_daemon.h"
#include "bench/spsc_ring.h"
#include "spanpool/spanpool.h"

namespace spanpool::bench {
namespace {

constexpr uint64_t kLimitBytes = uint64_t{1} << 30;

absl::StatusOr<std::unique_ptr<Session>> AttachTo(const PoolDaemon& daemon) {
  SessionOptions options;
  options.target = daemon.target();
  return Session::Attach(options);
}

// A program that works until it is told to stop, in threads of its own. Not thread-safe.
class Program {
 public:
  virtual ~Program() = default;
  // Why it could not go on.
  virtual absl::Status Stop() = 0;
};

constexpr size_t kSizes = 4096;

// Sizes as programs have them: 16 B to 16 KiB, each doubling as likely as another, and now and then
// a buffer of up to 128 KiB.
std::vector<size_t> DrawSizes() {
  std::mt19937_64 random(1);
  std::vector<size_t> sizes;
  while (sizes.size() < kSizes) {
    const size_t least = size_t{1} << (random() % 64 == 0 ? 14 + random() % 3 : 4 + random() % 10);
    sizes.push_back(least + random() % least);
  }
  return sizes;
}

// One thread keeps 4096 blocks, each of its own size, and forever frees a random one and allocates
// it anew.
class Churn final : public Program {
 public:
  explicit Churn(std::unique_ptr<Session> session)
      : session_(std::move(session)), thread_([this] { Run(); }) {}
  absl::Status Stop() override {
    stop_.store(true, std::memory_order_relaxed);
    thread_.join();
    return full_ ? absl::ResourceExhaustedError("the pool is full") : absl::OkStatus();
  }

 private:
  void Run() {
    const std::vector<size_t> sizes = DrawSizes();
    std::mt19937_64 random(2);
    std::vector<void*> blocks(kSizes);
    while (!stop_.load(std::memory_order_relaxed) && !full_) {
      const size_t i = random() % kSizes;
      session_->Free(blocks[i]);
      blocks[i] = session_->Malloc(sizes[i]);
      full_ = blocks[i] == nullptr;
    }
    for (void* block : blocks) session_->Free(block);
  }

  const std::unique_ptr<Session> session_;
  std::atomic<bool> stop_{false};
  bool full_ = false;  // the thread's, until it has ended
  std::thread thread_;
};

// One thread allocates blocks of all sizes, in an order that repeats, another frees them.
class CrossThreads final : public Program {
 public:
  explicit CrossThreads(std::unique_ptr<Session> session)
      : session_(std::move(session)),
        consumer_([this] { Consume(); }),
        producer_([this] { Produce(); }) {}
  absl::Status Stop() override {
    stop_.store(true, std::memory_order_relaxed);
    producer_.join();
    consumer_.join();
    return full_ ? absl::ResourceExhaustedError("the pool is full") : absl::OkStatus();
  }

 private:
  void Produce() {
    const std::vector<size_t> sizes = DrawSizes();
    for (size_t i = 0; !stop_.load(std::memory_order_relaxed) && !full_; ++i) {
      void* const block = session_->Malloc(sizes[i % kSizes]);
      full_ = block == nullptr;
      if (!full_) ring_.Push(block);
    }
    ring_.Push(nullptr);
  }
  void Consume() {
    while (void* const block = ring_.Pop()) session_->Free(block);
  }

  const std::unique_ptr<Session> session_;
  std::atomic<bool> stop_{false};
  bool full_ = false;  // the producer's, until it has ended
  SpscRing<void*, 256> ring_;
  std::thread consumer_;
  std::thread producer_;
};

// A camera and a viewer, each a session of its own: frames of 1 MiB are allocated by one, sent by
// handle, and opened, looked at and released by the other.
class Frames final : public Program {
 public:
  Frames(std::unique_ptr<Session> camera, std::unique_ptr<Session> viewer)
      : camera_(std::move(camera)),
        viewer_(std::move(viewer)),
        consumer_([this] { View(); }),
        producer_([this] { Film(); }) {}
  absl::Status Stop() override {
    stop_.store(true, std::memory_order_relaxed);
    producer_.join();
    consumer_.join();
    filmed_.Update(viewed_);
    return filmed_;
  }

 private:
  static constexpr size_t kFrameBytes = 1 << 20;
  static constexpr size_t kUnderWay = 8;

  void Film() {
    // As many handles as may be in the ring, plus the one that is written and the one that is read.
    std::array<Handle, kUnderWay + 2> handles;
    for (uint64_t i = 0; !stop_.load(std::memory_order_relaxed); ++i) {
      absl::StatusOr<Buffer> frame = camera_->Allocate(kFrameBytes);
      if (!frame.ok()) {
        filmed_ = frame.status();
        break;
      }
      std::memcpy(frame->data(), &i, sizeof(i));
      absl::StatusOr<Handle> handle = std::move(*frame).Send();
      if (!handle.ok()) {
        filmed_ = handle.status();
        break;
      }
      handles[i % handles.size()] = *handle;
      ring_.Push(&handles[i % handles.size()]);
    }
    ring_.Push(nullptr);
    consumed_.wait(false);  // the handles are read until then
  }
  void View() {
    for (uint64_t i = 0;; ++i) {
      const void* const handle = ring_.Pop();
      if (handle == nullptr) break;
      if (!viewed_.ok()) continue;
      const absl::StatusOr<Buffer> frame = viewer_->Open(*static_cast<const Handle*>(handle));
      viewed_ = frame.status();
      if (!frame.ok()) continue;
      uint64_t number;
      std::memcpy(&number, frame->data(), sizeof(number));
      if (number != i) viewed_ = absl::DataLossError("a frame holds what is not its own");
    }
    consumed_.store(true);
    consumed_.notify_one();
  }

  const std::unique_ptr<Session> camera_;
  const std::unique_ptr<Session> viewer_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> consumed_{false};
  absl::Status filmed_;  // each its thread's, until that has ended
  absl::Status viewed_;
  SpscRing<void*, kUnderWay> ring_;
  std::thread consumer_;
  std::thread producer_;
};

using StartProgram = absl::StatusOr<std::unique_ptr<Program>> (*)(const PoolDaemon&);

template <typename P, size_t... kSessions>
absl::StatusOr<std::unique_ptr<Program>> StartWith(const PoolDaemon& daemon,
                                                   std::index_sequence<kSessions...>) {
  std::array<std::unique_ptr<Session>, sizeof...(kSessions)> sessions;
  for (std::unique_ptr<Session>& session : sessions) {
    absl::StatusOr<std::unique_ptr<Session>> attached = AttachTo(daemon);
    if (!attached.ok()) return attached.status();
    session = *std::move(attached);
  }
  return std::make_unique<P>(std::move(sessions[kSessions])...);
}
template <typename P, size_t kSessions>
absl::StatusOr<std::unique_ptr<Program>> Start(const PoolDaemon& daemon) {
  return StartWith<P>(daemon, std::make_index_sequence<kSessions>());
}

absl::StatusOr<uint64_t> MessagesSoFar(PoolDaemon& daemon) {
  const absl::StatusOr<v1::PoolStatus> status = daemon.Status();
  if (!status.ok()) return status.status();
  return status->exchange_messages_total();
}

// Each round a new program and a new daemon.
Round Steady(StartProgram start, absl::Duration warm_up, absl::Duration time) {
  return [=]() -> absl::StatusOr<Metrics> {
    const absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon =
        PoolDaemon::Start({.limit_bytes = kLimitBytes});
    if (!daemon.ok()) return daemon.status();
    absl::StatusOr<std::unique_ptr<Program>> program = start(**daemon);
    if (!program.ok()) return program.status();
    absl::SleepFor(warm_up);
    const absl::StatusOr<uint64_t> before = MessagesSoFar(**daemon);
    absl::SleepFor(time);
    const absl::StatusOr<uint64_t> after = MessagesSoFar(**daemon);
    if (absl::Status status = (*program)->Stop(); !status.ok()) return status;
    if (!before.ok()) return before.status();
    if (!after.ok()) return after.status();
    return Metrics{{"messages", "count", static_cast<double>(*after - *before)}};
  };
}

void Fill(Suite& suite, const std::vector<std::string>&) {
  const absl::Duration warm_up =
      suite.tiny() ? absl::Milliseconds(100) : absl::Seconds(suite.quick() ? 1 : 3);
  const absl::Duration time =
      suite.tiny() ? absl::Milliseconds(100) : absl::Seconds(suite.quick() ? 1 : 10);
  suite.Add("churn", "spanpool", Steady(Start<Churn, 1>, warm_up, time));
  suite.Add("cross_threads", "spanpool", Steady(Start<CrossThreads, 1>, warm_up, time));
  suite.Add("frames_1048576", "spanpool", Steady(Start<Frames, 2>, warm_up, time));
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "steady", spanpool::bench::Fill);
}

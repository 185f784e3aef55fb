// A process that holds BLOCKS shared blocks of SIZE bytes of the pool that SPANPOOL_TARGET names,
// for a benchmark that kills it, or the daemon.
//
//   recovery_holder BLOCKS SIZE [work]
//
// Prints READY once it holds them, or why it cannot; ends with its input. With `work` it allocates
// and lets go of small blocks all the time, and answers each line of its input with
// "FAILED LOST": how many of its allocations have failed, and how many of its blocks no longer hold
// what it wrote into them. Every block is stamped, so that one which two processes were given
// shows.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "spanpool/spanpool.h"

namespace {

// Unlike that of any other block of any process.
uint64_t Stamp(const spanpool::Buffer& buffer, uint64_t number) {
  return number << 32 ^ static_cast<uint64_t>(getpid()) ^
         reinterpret_cast<uintptr_t>(buffer.data()) << 8;
}
void WriteStamp(spanpool::Buffer& buffer, uint64_t number) {
  const uint64_t stamp = Stamp(buffer, number);
  std::memcpy(buffer.data(), &stamp, sizeof(stamp));
}
bool HasStamp(const spanpool::Buffer& buffer, uint64_t number) {
  uint64_t stamp;
  std::memcpy(&stamp, buffer.data(), sizeof(stamp));
  return stamp == Stamp(buffer, number);
}

absl::Status Hold(spanpool::Session& session, size_t blocks, size_t bytes,
                  std::vector<spanpool::Buffer>* held) {
  held->reserve(blocks);
  while (held->size() < blocks) {
    absl::StatusOr<spanpool::Buffer> buffer =
        session.Allocate(bytes, {.timeout = absl::Seconds(20)});
    if (!buffer.ok()) return buffer.status();
    WriteStamp(*buffer, held->size());
    const absl::StatusOr<spanpool::Handle> handle = buffer->Share();
    if (!handle.ok()) return handle.status();
    held->push_back(*std::move(buffer));
  }
  return absl::OkStatus();
}

// Allocates and lets go, until it ends.
class Work {
 public:
  explicit Work(spanpool::Session* session) : session_(session), thread_([this] { Run(); }) {}
  ~Work() {
    stop_.store(true);
    thread_.join();
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  uint64_t failures() const { return failures_.load(); }
  uint64_t lost() const { return lost_.load(); }

 private:
  void Run() {
    std::mt19937 random(static_cast<uint32_t>(getpid()));
    std::array<spanpool::Buffer, 256> live;
    while (!stop_.load(std::memory_order_relaxed)) {
      const size_t i = random() % live.size();
      if (live[i].data() != nullptr && !HasStamp(live[i], i)) lost_.fetch_add(1);
      live[i] = spanpool::Buffer();
      absl::StatusOr<spanpool::Buffer> got = session_->Allocate(size_t{64} << random() % 9);
      if (!got.ok()) {
        failures_.fetch_add(1);
        continue;
      }
      live[i] = *std::move(got);
      WriteStamp(live[i], i);
    }
  }

  spanpool::Session* const session_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> failures_{0};
  std::atomic<uint64_t> lost_{0};
  std::thread thread_;  // last: it uses the rest
};

}  // namespace

int main(int argc, char** argv) {
  const bool works = argc == 4 && std::string(argv[3]) == "work";
  if (argc != 3 && !works) return 2;
  absl::StatusOr<std::unique_ptr<spanpool::Session>> session = spanpool::Session::Attach({});
  absl::Status status = session.status();
  std::vector<spanpool::Buffer> held;
  if (status.ok()) {
    status = Hold(**session, std::strtoull(argv[1], nullptr, 10),
                  std::strtoull(argv[2], nullptr, 10), &held);
  }
  std::optional<Work> work;
  if (status.ok() && works) work.emplace(session->get());
  std::cout << (status.ok() ? "READY" : std::string(status.message())) << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    if (!work.has_value()) continue;
    uint64_t lost = work->lost();
    for (size_t i = 0; i < held.size(); ++i) lost += HasStamp(held[i], i) ? 0 : 1;
    std::cout << work->failures() << " " << lost << std::endl;
  }
  return 0;
}

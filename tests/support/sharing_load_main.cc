// A process that shares blocks with others of its kind, at random, until its input ends.
//
//   sharing_load_main TARGET BOARD SEED [daemon]
//
// daemon: also does what needs the daemon, over and over: large blocks, and names.
//
// BOARD is a file that all of them map: places where handles are left, to be opened by whoever
// comes by, or taken by one; and where the channel is, through which blocks go, too. Every block
// bears a mark at both ends, which is left beside its handle, and everyone who has a block looks at
// it again and again. Exits with 3 when a block is not what it should be, and with 4 when the
// library reports what it should not. Prints READY once it works, and in the end how much it did.
//
// Meanwhile it reads lines, and answers each with one:
//   pause  when no thread is in the middle of anything: how many operations there were
//   go     works again

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "spanpool/spanpool.h"

namespace {

using spanpool::Buffer;
using spanpool::Channel;
using spanpool::Handle;
using spanpool::Session;

constexpr size_t kPlaces = 64;
constexpr int kThreads = 2;
constexpr size_t kMostHad = 40;
constexpr uint64_t kNames = 8;
constexpr uint32_t kChannelCapacity = 8;

[[noreturn]] void Fail(int code, const std::string& what) {
  std::cerr << "process " << getpid() << ": " << what << std::endl;
  _exit(code);
}

// Where one handle is left. A reader who sees parts of two is told by the sum.
class Place {
 public:
  void Leave(const Handle& handle, uint64_t mark) {
    parts_[0] = handle.bits[0];
    parts_[1] = handle.bits[1];
    parts_[2] = mark;
    sum_ = Sum(handle, mark);
  }
  // False: there is none, or it is being written.
  bool Read(Handle* handle, uint64_t* mark) const {
    *handle = Handle{{parts_[0], parts_[1]}};
    *mark = parts_[2];
    return sum_ == Sum(*handle, *mark) && handle->bits[0] != 0;
  }
  // Whoever reads and then takes it may open it.
  bool Take(const Handle& handle, uint64_t mark) {
    uint64_t sum = Sum(handle, mark);
    return sum_.compare_exchange_strong(sum, 0);
  }

 private:
  static uint64_t Sum(const Handle& handle, uint64_t mark) {
    return (handle.bits[0] * 31 + handle.bits[1]) * 31 + mark + 1;
  }
  std::atomic<uint64_t> parts_[3];
  std::atomic<uint64_t> sum_;
};

struct Board {
  Place shared[kPlaces];  // for many to open
  Place sent[kPlaces];    // for one to take
  Place channel;
};

// The one on the board, unless there is none, or nobody has it open any more.
std::unique_ptr<Channel> FindChannel(Session& session, Board* board) {
  Handle handle{};
  uint64_t mark = 0;
  if (board->channel.Read(&handle, &mark)) {
    absl::StatusOr<std::unique_ptr<Channel>> channel = Channel::Open(session, handle);
    if (channel.ok()) return *std::move(channel);
    if (!absl::IsNotFound(channel.status()) && !absl::IsUnavailable(channel.status())) {
      Fail(4, channel.status().ToString());
    }
  }
  absl::StatusOr<std::unique_ptr<Channel>> channel = Channel::Create(session, kChannelCapacity);
  if (!channel.ok()) Fail(4, channel.status().ToString());
  board->channel.Leave((*channel)->handle(), 0);
  return *std::move(channel);
}

struct Had {
  Buffer buffer;
  uint64_t mark = 0;
};

class Worker {
 public:
  Worker(Session* session, Board* board, Channel* channel, uint64_t seed, bool daemon)
      : session_(session),
        board_(board),
        channel_(channel),
        random_(seed),
        kinds_(daemon ? kKindsWithDaemon : kKinds) {}

  // Does one thing after the other, each with `turn` held.
  void Work(const std::atomic<bool>& stop) {
    while (!stop) {
      pause_.wait(true);
      const std::lock_guard<std::mutex> lock(turn_);
      if (pause_) continue;
      Once();
      ++operations_;
    }
    while (!had_.empty()) Forget(&had_.back());
  }

  // Returns when it is in the middle of nothing.
  void Pause() {
    pause_ = true;
    const std::lock_guard<std::mutex> lock(turn_);
  }
  void Go() {
    pause_ = false;
    pause_.notify_all();
  }

  uint64_t operations() const { return operations_; }
  uint64_t opened() const { return opened_; }
  uint64_t received() const { return received_; }

 private:
  static constexpr uint64_t kKinds = 10;
  static constexpr uint64_t kKindsWithDaemon = 13;

  void Once() {
    Place& shared = board_->shared[random_() % kPlaces];
    Place& sent = board_->sent[random_() % kPlaces];
    Had* const any = had_.empty() ? nullptr : &had_[random_() % had_.size()];
    switch (random_() % kinds_) {
      case 0: {
        Had had = Allocate();
        if (had.buffer.size() != 0) Share(&had, &shared);
        return Keep(std::move(had));
      }
      case 1: {
        Had had = Allocate();
        if (had.buffer.size() != 0) Send(std::move(had), &sent);
        return;
      }
      case 2:
        return Open(&shared, /*take=*/false);
      case 3:
        return Open(&sent, /*take=*/true);
      case 4:
        if (any != nullptr) Keep({any->buffer.Ref(), any->mark});
        return;
      case 5:
        if (any == nullptr) return;
        Check(*any);
        if (random_() % 2 == 0) return Share(any, &shared);
        std::swap(*any, had_.back());
        {
          Had had = std::move(had_.back());
          had_.pop_back();
          return Send(std::move(had), &sent);
        }
      case 6:
        if (void* block = session_->Malloc(64 << random_() % 8); block != nullptr) {
          std::memset(block, 0xee, 64);
          session_->Free(block);
        }
        return;
      case 7: {
        Had had = random_() % 2 == 0 || any == nullptr ? Allocate() : Had{any->buffer.Ref(), 0};
        if (had.buffer.size() != 0) SendThroughChannel(std::move(had.buffer));
        return;
      }
      case 8:
        return ReceiveFromChannel();
      case 10:
        if (any != nullptr) Publish(*any);
        return;
      case 11:
        return OpenName();
      case 12:
        // Not often: each costs a system call or a thousand.
        if (random_() % 64 == 0) Keep(Allocate(size_t{1} << (20 + random_() % 3)));
        return;
      default:
        if (any != nullptr) Forget(any);
    }
  }

  Had Allocate() { return Allocate(size_t{64} << random_() % 11); }

  Had Allocate(size_t bytes) {
    absl::StatusOr<Buffer> buffer = session_->Allocate(bytes);
    if (!buffer.ok()) {
      if (!absl::IsResourceExhausted(buffer.status())) Fail(4, buffer.status().ToString());
      while (!had_.empty()) Forget(&had_.back());
      return {};
    }
    Had had{*std::move(buffer), random_()};
    std::memcpy(had.buffer.data(), &had.mark, 8);
    std::memcpy(had.buffer.data() + had.buffer.size() - 8, &had.mark, 8);
    return had;
  }

  // Whether it was shared or sent. It may be recounted for longer than a moment, or much referred
  // to; or, if it is to be sent, sent before and not opened yet.
  static bool Judge(const absl::StatusOr<Handle>& handle, bool sent) {
    if (!handle.ok() && !absl::IsUnavailable(handle.status()) &&
        !absl::IsResourceExhausted(handle.status()) &&
        !(sent && absl::IsFailedPrecondition(handle.status()))) {
      Fail(4, handle.status().ToString());
    }
    return handle.ok();
  }

  static void Share(Had* had, Place* place) {
    const absl::StatusOr<Handle> handle = had->buffer.Share();
    if (Judge(handle, /*sent=*/false)) place->Leave(*handle, had->mark);
  }

  void Send(Had had, Place* place) {
    Open(place, /*take=*/true);  // what nobody took would be lost
    const absl::StatusOr<Handle> handle = std::move(had.buffer).Send();
    if (Judge(handle, /*sent=*/true)) place->Leave(*handle, had.mark);
  }

  void Open(Place* place, bool take) {
    Handle handle{};
    uint64_t mark = 0;
    if (!place->Read(&handle, &mark) || (take && !place->Take(handle, mark))) return;
    absl::StatusOr<Buffer> buffer = session_->Open(handle);
    if (!buffer.ok()) {
      if (!absl::IsNotFound(buffer.status()) && !absl::IsUnavailable(buffer.status()) &&
          !absl::IsResourceExhausted(buffer.status())) {
        Fail(4, buffer.status().ToString());
      }
      return;
    }
    ++opened_;
    Keep({*std::move(buffer), mark});
  }

  // Full or not; what was not sent is dropped.
  void SendThroughChannel(Buffer buffer) {
    const absl::Status status = channel_->TrySend(std::move(buffer));
    if (!status.ok() && !absl::IsUnavailable(status) && !absl::IsResourceExhausted(status)) {
      Fail(4, status.ToString());
    }
  }

  void ReceiveFromChannel() {
    absl::StatusOr<Buffer> buffer = channel_->TryReceive();
    if (!buffer.ok()) {
      if (!absl::IsUnavailable(buffer.status()) && !absl::IsResourceExhausted(buffer.status())) {
        Fail(4, buffer.status().ToString());
      }
      return;
    }
    ++received_;
    Had had{*std::move(buffer), 0};
    std::memcpy(&had.mark, had.buffer.data(), 8);
    Keep(std::move(had));
  }

  std::string AnyName() { return "name" + std::to_string(random_() % kNames); }

  // Whoever opens it reads the mark in the block: the name may stand for another by then.
  void Publish(const Had& had) {
    const absl::Status status =
        session_->Publish(AnyName(), had.buffer, {.outlive_session = false, .replace = true});
    if (!status.ok() && !IsAboutBlock(status)) Fail(4, status.ToString());
  }

  void OpenName() {
    absl::StatusOr<Buffer> buffer = session_->Open(AnyName());
    if (!buffer.ok()) {
      if (!absl::IsNotFound(buffer.status()) && !IsAboutBlock(buffer.status())) {
        Fail(4, buffer.status().ToString());
      }
      return;
    }
    ++opened_;
    Had had{*std::move(buffer), 0};
    std::memcpy(&had.mark, had.buffer.data(), 8);
    Keep(std::move(had));
  }

  // That the block is recounted or has too many references, not that the daemon is away.
  static bool IsAboutBlock(const absl::Status& status) {
    return absl::IsResourceExhausted(status) ||
           (absl::IsUnavailable(status) &&
            status.message().find("recounted") != absl::string_view::npos);
  }

  static void Check(const Had& had) {
    uint64_t first = 0;
    uint64_t last = 0;
    std::memcpy(&first, had.buffer.data(), 8);
    std::memcpy(&last, had.buffer.data() + had.buffer.size() - 8, 8);
    if (first != had.mark || last != had.mark) Fail(3, "a block is not what it should be");
  }

  void Keep(Had had) {
    if (had.buffer.size() == 0) return;
    Check(had);
    if (had_.size() >= kMostHad) Forget(&had_[random_() % had_.size()]);
    had_.push_back(std::move(had));
  }

  void Forget(Had* had) {
    Check(*had);
    std::swap(*had, had_.back());
    had_.pop_back();
  }

  Session* const session_;
  Board* const board_;
  Channel* const channel_;
  std::mt19937_64 random_;
  const uint64_t kinds_;
  std::vector<Had> had_;
  std::atomic<bool> pause_{false};
  std::mutex turn_;
  std::atomic<uint64_t> operations_{0};
  uint64_t opened_ = 0;
  uint64_t received_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && (argc != 5 || argv[4] != std::string("daemon"))) return 2;
  const int file = open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(Board)) != 0) Fail(2, "cannot open the board");
  void* const memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) Fail(2, "cannot map the board");
  spanpool::SessionOptions options;
  options.target = argv[1];
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach(options);
  if (!session.ok()) Fail(4, session.status().ToString());
  auto* const board = static_cast<Board*>(memory);
  const std::unique_ptr<Channel> channel = FindChannel(**session, board);
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    workers.push_back(std::make_unique<Worker>(session->get(), board, channel.get(),
                                               std::stoull(argv[3]) + static_cast<uint64_t>(i),
                                               /*daemon=*/argc == 5));
    threads.emplace_back([&stop, worker = workers.back().get()] { worker->Work(stop); });
  }
  std::cout << "READY" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    uint64_t operations = 0;
    for (const auto& worker : workers) {
      if (line == "pause") {
        worker->Pause();
      } else {
        worker->Go();
      }
      operations += worker->operations();
    }
    std::cout << operations << std::endl;
  }
  stop = true;
  for (const auto& worker : workers) worker->Go();
  uint64_t operations = 0;
  uint64_t opened = 0;
  uint64_t received = 0;
  for (int i = 0; i < kThreads; ++i) {
    threads[static_cast<size_t>(i)].join();
    operations += workers[static_cast<size_t>(i)]->operations();
    opened += workers[static_cast<size_t>(i)]->opened();
    received += workers[static_cast<size_t>(i)]->received();
  }
  if (const uint64_t lost = (*session)->stats().spans_lost; lost != 0) {
    Fail(4, "spans lost: " + std::to_string(lost));
  }
  std::cout << operations << " operations, " << opened << " blocks opened, " << received
            << " received" << std::endl;
  return 0;
}

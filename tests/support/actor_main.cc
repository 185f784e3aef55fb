// The process behind an Actor: reads commands, one a line, and answers each with one line,
// "ok [RESULT]" or "error CODE MESSAGE". Names of buffers and blocks are the test's own words.
//
//   attach TARGET [POOL [read]]
//   allocate NAME BYTES [ALIGNMENT [TIMEOUT_MS]]
//   fill NAME SEED                   writes a pattern over the whole buffer
//   check NAME SEED                  "ok" only if every byte is that of the pattern
//   size NAME | address NAME
//   share NAME                       answers the handle
//   open NAME HANDLE
//   drop NAME
//   malloc NAME BYTES                also fills the block
//   free NAME
//   free_address ADDRESS             whatever it is
//   misuses                          how often the misuse handler was called
//   stats                            "ALLOCATIONS REFILLS"
//   threads COUNT                    so many threads, one after the other; each allocates and frees
//                                    a few blocks
//   idle_thread BLOCKS BYTES         a thread allocates so many blocks, frees them and is idle from
//                                    then on
//   busy COUNT                       threads that allocate, write, check and free without a pause
//   calm                             ends them; an error if a byte was not what was written
//   fork                             in a child: tries to allocate, answers the child's status code
//   fork_read NAME                   in a child: reads the buffer's first byte; answers 0, or minus
//                                    the signal that ended the child
//   leave                            destroys the session (buffers live on)
//   quit

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "spanpool/spanpool.h"

namespace {

using spanpool::Buffer;
using spanpool::Handle;
using spanpool::Session;

uint8_t PatternByte(uint64_t seed, size_t i) {
  return static_cast<uint8_t>((seed * 131 + i * 7 + (i >> 12)) & 0xff);
}

void Fill(std::byte* data, size_t size, uint64_t seed) {
  for (size_t i = 0; i < size; ++i) data[i] = std::byte{PatternByte(seed, i)};
}

class ActorProcess {
 public:
  ~ActorProcess() {
    calm_ = true;
    stop_ = true;
    stop_.notify_all();
    for (std::thread& thread : busy_) thread.join();
    for (std::thread& thread : idle_) thread.join();
  }

  // Answers one command.
  std::string Answer(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    std::string name;
    words >> verb;
    if (verb == "attach") return Attach(words);
    if (verb == "stats") {
      const spanpool::SessionStats stats = session_->stats();
      return Ok(std::to_string(stats.allocations) + " " + std::to_string(stats.refills));
    }
    if (verb == "misuses") return Ok(std::to_string(misuses_));
    if (verb == "fork") {
      return InChild([this] { return static_cast<int>(session_->Allocate(64).status().code()); });
    }
    if (verb == "leave") {
      session_.reset();
      return Ok();
    }
    if (verb == "threads") return ShortThreads(words);
    if (verb == "idle_thread") return IdleThread(words);
    if (verb == "busy") return Busy(words);
    if (verb == "calm") return Calm();
    words >> name;
    if (verb == "allocate") return Allocate(name, words);
    if (verb == "open") return Open(name, words);
    if (verb == "malloc") return Malloc(name, words);
    if (verb == "free") {
      session_->Free(blocks_.at(name));
      blocks_.erase(name);
      return Ok();
    }
    if (verb == "free_address") {
      session_->Free(reinterpret_cast<void*>(std::stoull(name, nullptr, 16)));
      return Ok();
    }
    const auto found = buffers_.find(name);
    if (found == buffers_.end()) return Error(absl::NotFoundError("no buffer named " + name));
    Buffer& buffer = found->second;
    if (verb == "size") return Ok(std::to_string(buffer.size()));
    if (verb == "address") {
      std::ostringstream text;
      text << std::hex << reinterpret_cast<uintptr_t>(buffer.data());
      return Ok(text.str());
    }
    if (verb == "fork_read") {
      const volatile std::byte* first = std::as_const(buffer).data();
      return InChild([first] { return static_cast<int>(*first) & 0; });
    }
    if (verb == "drop") {
      buffers_.erase(found);
      return Ok();
    }
    if (verb == "share") {
      absl::StatusOr<Handle> handle = buffer.Share();
      return handle.ok() ? Ok(handle->ToString()) : Error(handle.status());
    }
    uint64_t seed = 0;
    words >> seed;
    if (verb == "fill") {
      Fill(buffer.data(), buffer.size(), seed);
      return Ok();
    }
    if (verb == "check") {
      const std::byte* data = std::as_const(buffer).data();
      for (size_t i = 0; i < buffer.size(); ++i) {
        if (data[i] != std::byte{PatternByte(seed, i)}) {
          return Error(absl::DataLossError("byte " + std::to_string(i) + " differs"));
        }
      }
      return Ok();
    }
    return Error(absl::InvalidArgumentError("unknown command " + verb));
  }

 private:
  static std::string Ok(const std::string& result = "") { return "ok " + result; }
  static std::string Error(const absl::Status& status) {
    std::string message(status.message());
    for (char& c : message) c = c == '\n' ? ' ' : c;
    return "error " + std::to_string(static_cast<int>(status.code())) + " " + message;
  }

  std::string Attach(std::istringstream& words) {
    spanpool::SessionOptions options;
    std::string access;
    words >> options.target >> options.pool >> access;
    if (access == "read") options.access = spanpool::Access::kReadOnly;
    absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach(options);
    if (!session.ok()) return Error(session.status());
    session_ = *std::move(session);
    session_->SetMisuseHandler([this](const auto&) { ++misuses_; });
    return Ok();
  }

  std::string Allocate(const std::string& name, std::istringstream& words) {
    size_t bytes = 0;
    spanpool::AllocateOptions options;
    int64_t timeout_ms = 0;
    words >> bytes;
    if (size_t alignment; words >> alignment) options.alignment = alignment;
    if (words >> timeout_ms) options.timeout = absl::Milliseconds(timeout_ms);
    absl::StatusOr<Buffer> buffer = session_->Allocate(bytes, options);
    if (!buffer.ok()) return Error(buffer.status());
    buffers_.insert_or_assign(name, *std::move(buffer));
    return Ok();
  }

  std::string Open(const std::string& name, std::istringstream& words) {
    std::string text;
    words >> text;
    absl::StatusOr<Handle> handle = Handle::Parse(text);
    if (!handle.ok()) return Error(handle.status());
    absl::StatusOr<Buffer> buffer = session_->Open(*handle);
    if (!buffer.ok()) return Error(buffer.status());
    buffers_.insert_or_assign(name, *std::move(buffer));
    return Ok(std::to_string(buffers_.at(name).size()));
  }

  std::string Malloc(const std::string& name, std::istringstream& words) {
    size_t bytes = 0;
    words >> bytes;
    void* block = session_->Malloc(bytes);
    if (block == nullptr) return Error(absl::ResourceExhaustedError("Malloc returned nullptr"));
    const size_t usable = session_->UsableSize(block);
    if (usable < bytes) return Error(absl::InternalError("usable size below what was asked for"));
    std::memset(block, 0x5a, usable);
    blocks_[name] = block;
    return Ok(std::to_string(usable));
  }

  std::string ShortThreads(std::istringstream& words) {
    int count = 0;
    words >> count;
    std::atomic<int> failed{0};
    for (int i = 0; i < count; ++i) {
      std::thread([&] {
        void* const small = session_->Malloc(64);
        void* const large = session_->Malloc(100'000);
        absl::StatusOr<Buffer> buffer = session_->Allocate(1000);
        if (small == nullptr || large == nullptr || !buffer.ok()) ++failed;
        session_->Free(small);
        session_->Free(large);
      }).join();
    }
    return failed == 0 ? Ok() : Error(absl::InternalError("an allocation failed"));
  }

  std::string IdleThread(std::istringstream& words) {
    size_t blocks = 0;
    size_t bytes = 0;
    words >> blocks >> bytes;
    std::promise<void> idle;
    idle_.emplace_back([this, blocks, bytes, &idle] {
      std::vector<void*> mine;
      for (size_t i = 0; i < blocks; ++i) mine.push_back(session_->Malloc(bytes));
      for (void* block : mine) session_->Free(block);
      idle.set_value();
      stop_.wait(false);
    });
    idle.get_future().wait();
    return Ok();
  }

  std::string Busy(std::istringstream& words) {
    int count = 0;
    words >> count;
    for (int i = 0; i < count; ++i)
      busy_.emplace_back([this, i] { Churn(static_cast<size_t>(i)); });
    return Ok();
  }

  void Churn(size_t seed) {
    std::array<Buffer, 64> live;
    std::array<uint64_t, 64> written{};
    for (uint64_t i = 0; !calm_; ++i) {
      const size_t slot = (i * 7 + seed) % live.size();
      Buffer& buffer = live[slot];
      if (buffer.size() != 0) {
        if (buffer.data()[0] != std::byte{PatternByte(written[slot], 0)} ||
            buffer.data()[buffer.size() - 1] !=
                std::byte{PatternByte(written[slot], buffer.size() - 1)}) {
          ++wrong_;
        }
        buffer = Buffer();
      }
      absl::StatusOr<Buffer> next = session_->Allocate(size_t{64} << (i * 5 + seed) % 12);
      if (!next.ok()) continue;  // the pool is full
      buffer = *std::move(next);
      written[slot] = i;
      buffer.data()[0] = std::byte{PatternByte(i, 0)};
      buffer.data()[buffer.size() - 1] = std::byte{PatternByte(i, buffer.size() - 1)};
    }
  }

  std::string Calm() {
    calm_ = true;
    for (std::thread& thread : busy_) thread.join();
    busy_.clear();
    calm_ = false;
    return wrong_ == 0 ? Ok() : Error(absl::DataLossError(std::to_string(wrong_) + " wrong bytes"));
  }

  // Answers what `body` returned in a forked child, or minus the signal that ended the child.
  template <typename Body>
  static std::string InChild(const Body& body) {
    const pid_t child = fork();
    if (child == 0) _exit(body());
    int status = 0;
    waitpid(child, &status, 0);
    return Ok(std::to_string(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)));
  }

  std::unique_ptr<Session> session_;
  std::map<std::string, Buffer> buffers_;
  std::map<std::string, void*> blocks_;
  std::atomic<int> misuses_{0};

  std::vector<std::thread> idle_;
  std::vector<std::thread> busy_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> calm_{false};
  std::atomic<int> wrong_{0};
};

}  // namespace

int main() {
  ActorProcess actor;
  std::string line;
  while (std::getline(std::cin, line) && line != "quit") {
    std::cout << actor.Answer(line) << std::endl;
  }
  return 0;
}

// A program that ends in a way of its own: `exit_main TARGET WAY`. Exit code 0 if all went well up
// to its end; what happens at its end the daemon sees.
//
//   session_last    static objects, of which the session is destroyed after the buffers
//   session_first   the other way round
//   session_gone    the session is destroyed within main, the buffers live on and are used
//   in_main         all is destroyed within main
//   containers      static containers whose memory is in the pool
//   atexit          allocates and frees in handlers that run before and after static destructors
//   leaked          nothing is destroyed
//   thread          a thread that has stacks ends after the session
//   fork_exit       a forked child runs all destructors; the parent goes on
//   abrupt          _exit with all of it in use

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <memory_resource>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "spanpool/spanpool.h"

namespace {

using spanpool::Buffer;
using spanpool::Session;

// Objects of static storage are destroyed in the opposite order.
std::unique_ptr<Session> session_destroyed_last;
std::vector<Buffer> buffers;
std::unique_ptr<std::pmr::vector<std::pmr::string>> strings;
std::unique_ptr<Session> session_destroyed_first;

void Expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  _exit(1);
}

std::unique_ptr<Session> Attach(const char* target) {
  spanpool::SessionOptions options;
  options.target = target;
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach(options);
  Expect(session.ok(), session.status().ToString().c_str());
  return *std::move(session);
}

// Buffers private and shared, small and large; and private blocks that are freed, so that the
// thread has stacks.
void Use(Session& session) {
  for (const size_t bytes : {64, 1000, 100'000, 3'000'000}) {
    for (int i = 0; i < 10; ++i) {
      absl::StatusOr<Buffer> buffer = session.Allocate(bytes);
      Expect(buffer.ok(), buffer.status().ToString().c_str());
      std::memset(buffer->data(), i, bytes);
      if (i % 2 == 0) Expect(buffer->Share().ok(), "share");
      buffers.push_back(i % 4 == 0 ? buffer->Ref() : *std::move(buffer));
    }
    session.Free(session.Malloc(bytes));
  }
}

void CheckBuffers() {
  for (size_t n = 0; n < buffers.size(); ++n) {
    const Buffer& buffer = buffers[n];
    const std::byte expected{static_cast<unsigned char>(n % 10)};
    Expect(buffer.data()[0] == expected && buffer.data()[buffer.size() - 1] == expected, "bytes");
    std::memset(buffers[n].data(), static_cast<int>(n % 10), buffer.size());
  }
}

// Of no static object's; ended by the last handler.
Session* session_at_exit = nullptr;

void UseAtExit() {
  if (session_at_exit == nullptr) return;
  void* const block = session_at_exit->Malloc(100);
  Expect(block != nullptr, "allocation at exit");
  std::memset(block, 1, 100);
  session_at_exit->Free(block);
  absl::StatusOr<Buffer> buffer = session_at_exit->Allocate(200'000);
  Expect(buffer.ok(), "buffer at exit");
}

void EndAtExit() {
  UseAtExit();
  delete session_at_exit;
}

// Registered before any static object has a destructor to run, and so run after all of them.
[[gnu::constructor(101)]] void RegisterLast() { std::atexit(&EndAtExit); }

int Main(const char* target, const std::string& way) {
  if (way == "atexit") {
    session_at_exit = Attach(target).release();
    Use(*session_at_exit);
    std::atexit(&UseAtExit);  // before all of them
    return 0;
  }
  if (way == "session_last" || way == "leaked" || way == "abrupt") {
    session_destroyed_last = Attach(target);
    Use(*session_destroyed_last);
    if (way == "abrupt") _exit(0);
    if (way == "leaked") {
      (void)session_destroyed_last.release();
      (void)new std::vector<Buffer>(std::move(buffers));
    }
    return 0;
  }
  session_destroyed_first = Attach(target);
  Session& session = *session_destroyed_first;
  Use(session);
  if (way == "session_first") return 0;
  if (way == "session_gone" || way == "in_main") {
    session_destroyed_first = nullptr;
    CheckBuffers();
    Buffer another = buffers.front().Ref();
    buffers.erase(buffers.begin());
    another = Buffer();
    if (way == "in_main") buffers.clear();
    return 0;
  }
  if (way == "containers") {
    session_destroyed_last = std::exchange(session_destroyed_first, nullptr);
    strings = std::make_unique<std::pmr::vector<std::pmr::string>>(session.resource());
    for (size_t i = 0; i < 1000; ++i) strings->emplace_back(i, 'x');
    return 0;
  }
  if (way == "thread") {
    std::atomic<bool> used{false};
    std::atomic<bool> end{false};
    std::thread thread([&] {
      session.Free(session.Malloc(64));
      used = true;
      used.notify_one();
      end.wait(false);
    });
    used.wait(false);
    session_destroyed_first = nullptr;
    buffers.clear();
    end = true;
    end.notify_one();
    thread.join();
    return 0;
  }
  if (way == "fork_exit") {
    const pid_t child = fork();
    if (child == 0) {
      Expect(session.Malloc(64) == nullptr, "an allocation in the child");
      std::exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    Expect(status == 0, "the child");
    CheckBuffers();
    Expect(session.Allocate(5'000'000).ok(), "the parent after its child's end");
    return 0;
  }
  std::fprintf(stderr, "no such way: %s\n", way.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) { return argc == 3 ? Main(argv[1], argv[2]) : 2; }

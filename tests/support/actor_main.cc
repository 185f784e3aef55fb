// The process behind an Actor: reads commands, one a line, and answers each with one line,
// "ok [RESULT]" or "error CODE MESSAGE". Names of buffers and blocks are the test's own words.
//
//   attach TARGET [POOL [read]]
//   allocate NAME BYTES [ALIGNMENT [TIMEOUT_MS]]
//   fill NAME SEED                   writes a pattern over the whole buffer
//   check NAME SEED                  "ok" only if every byte is that of the pattern
//   size NAME | address NAME
//   share NAME                       answers the handle
//   send NAME                        answers the handle
//   open NAME HANDLE
//   take_back NAME HANDLE
//   publish NAME BLOCK_NAME [outlive] [replace]
//   unpublish BLOCK_NAME
//   open_name NAME BLOCK_NAME [MS]   waits so long for the name
//   names [PREFIX]                   those there are
//   watch [PREFIX]
//   next MS                          the watch's next change: published, unpublished, left or lost,
//                                    and the name
//   race BLOCK_NAME COUNT            so often publishes, opens and unpublishes under one name: how
//                                    often it opened something
//   create_channel CHANNEL CAPACITY  answers its handle
//   open_channel CHANNEL HANDLE
//   drop_channel CHANNEL
//   channel_send CHANNEL NAME        waits for room, for a minute
//   channel_receive CHANNEL NAME [MS]  waits for so long, or a minute
//   channel_close CHANNEL
//   readers NAME                     how many references others have
//   await_no_readers NAME MS
//   ref NAME OTHER                   NAME is another owner of what OTHER has
//   drop NAME
//   malloc NAME BYTES                also fills the block
//   free NAME
//   free_address ADDRESS             whatever it is
//   misuses                          how often the misuse handler was called
//   stats                            "ALLOCATIONS REFILLS"
//   view                             how the daemon is (connected, offline or lost), and the bytes
//                                    on loan, those that are idle, and the spans lost
//   threads COUNT                    so many threads, one after the other; each allocates and frees
//                                    a few blocks
//   idle_thread BLOCKS BYTES         a thread allocates so many blocks, frees them and is idle from
//                                    then on
//   busy COUNT [large]               threads that allocate, write, check and free without a pause;
//                                    large: now and then blocks of 4 to 64 MiB, for which they need
//                                    the daemon
//   calm                             ends them; an error if a byte was not what was written
//   churn HANDLE                     a thread that opens and drops that block without a pause, and
//                                    shares, sends and opens blocks of its own
//   still                            ends it: how often it opened the block
//   fork                             in a child: tries to allocate, answers the child's status code
//   fork_read NAME                   in a child: reads the buffer's first byte; answers 0, or minus
//                                    the signal that ended the child
//   fork_attach TARGET COUNT         forks so many children, which are told that they are not
//                                    attached, attach themselves, allocate, write, check and end;
//                                    does not wait
//   fork_idle                        forks a child that does nothing; answers its pid
//   close_descriptors                closes all but 0, 1 and 2, the library's own too
//   dump_core FOLDER                 ends by SIGSEGV, with a core dump in the folder; no answer
//   await_children                   an error if one of them failed
//   descriptors HOW                  what descriptors a program inherits that is started by HOW
//                                    (fork, vfork, posix_spawn): how many besides 0, 1 and 2
//   leave                            destroys the session (buffers live on)
//   quit
//
// In the build with steps (proto/layout/step.h):
//   arm kill|stop N                  the main thread's N-th step from now kills or stops the
//                                    process
//   arm kill|stop NAME               its next step of that name does
//   passed                           how many steps it has passed since, and the name of the last
//   settle                           lets go of what was sent and has arrived
//   alone                            ends the session's background thread
//   give_back                        returns all that is idle to the daemon

#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
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

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spanpool/spanpool.h"

#ifdef SPANPOOL_STEPS
#include "client/session_core.h"
#include "proto/layout/step.h"
#endif

namespace {

using spanpool::Buffer;
using spanpool::Channel;
using spanpool::Handle;
using spanpool::Session;

uint8_t PatternByte(uint64_t seed, size_t i) {
  return static_cast<uint8_t>((seed * 131 + i * 7 + (i >> 12)) & 0xff);
}

void Fill(std::byte* data, size_t size, uint64_t seed) {
  for (size_t i = 0; i < size; ++i) data[i] = std::byte{PatternByte(seed, i)};
}

#ifdef SPANPOOL_STEPS
// What the main thread does at its steps. Other threads pass theirs unharmed.
struct Steps {
  pthread_t thread;
  int64_t passed = 0;
  int64_t at = 0;  // 0 = none
  std::string at_name;
  int signal = 0;
  std::string last;
};
Steps steps;

void Step(const char* name) {
  if (!pthread_equal(pthread_self(), steps.thread)) return;
  steps.last = name;
  if (++steps.passed == steps.at || steps.at_name == name) raise(steps.signal);
}
#endif

class ActorProcess {
 public:
  ~ActorProcess() {
    calm_ = true;
    still_ = true;
    for (std::thread& thread : churning_) thread.join();
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
    if (verb == "view") {
      const spanpool::SessionStats stats = session_->stats();
      const char* const daemon = stats.daemon == spanpool::DaemonState::kConnected ? "connected"
                                 : stats.daemon == spanpool::DaemonState::kOffline ? "offline"
                                                                                   : "lost";
      return Ok(std::string(daemon) + " " + std::to_string(stats.bytes_on_loan) + " " +
                std::to_string(stats.idle_bytes) + " " + std::to_string(stats.spans_lost));
    }
    if (verb == "misuses") return Ok(std::to_string(misuses_));
    if (verb == "fork") {
      return InChild([this] { return static_cast<int>(session_->Allocate(64).status().code()); });
    }
    if (verb == "leave") {
      channels_.clear();
      watch_.reset();
      session_.reset();
      return Ok();
    }
    if (verb == "close_descriptors") {
      close_range(STDERR_FILENO + 1, ~0U, 0);  // as programs do that know nothing of libraries'
      return Ok();
    }
    if (verb == "dump_core") {
      const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
      words >> name;
      if (setrlimit(RLIMIT_CORE, &unlimited) != 0 || chdir(name.c_str()) != 0) return "ERROR errno";
      raise(SIGSEGV);
    }
    if (verb == "fork_attach") return ForkAttach(words);
    if (verb == "fork_idle") {
      const pid_t child = fork();
      if (child == 0) {
        for (;;) pause();
      }
      return Ok(std::to_string(child));
    }
    if (verb == "await_children") return AwaitChildren();
    if (verb == "descriptors") return Descriptors(words);
    if (verb == "threads") return ShortThreads(words);
    if (verb == "idle_thread") return IdleThread(words);
    if (verb == "busy") return Busy(words);
    if (verb == "calm") return Calm();
    if (verb == "still") return Still();
#ifdef SPANPOOL_STEPS
    if (verb == "arm") {
      words >> name;
      std::string at;
      words >> at;
      const bool counted = at.find_first_not_of("0123456789") == std::string::npos;
      steps = {.thread = pthread_self(),
               .at = counted ? std::stoll(at) : 0,
               .at_name = counted ? "" : at,
               .signal = name == "kill" ? SIGKILL : SIGSTOP,
               .last = ""};
      spanpool::layout::step_hook = &Step;
      return Ok();
    }
    if (verb == "passed") {
      spanpool::layout::step_hook = nullptr;
      return Ok(std::to_string(steps.passed) + " " + steps.last);
    }
    if (verb == "settle" || verb == "give_back" || verb == "alone") {
      spanpool::internal::SessionCore* const core =
          spanpool::internal::SessionCore::CoreOf(*session_);
      if (verb == "settle") {
        core->GiveSettled();
        return Ok();
      }
      if (verb == "alone") {
        core->StopHousekeeper();
        return Ok();
      }
      core->DrainMyStacks();
      const absl::StatusOr<uint64_t> bytes = core->cache().Reclaim();
      return bytes.ok() ? Ok(std::to_string(*bytes)) : Error(bytes.status());
    }
#endif
    if (verb == "watch") return Watch(words);
    if (verb == "next") return NextChange(words);
    if (verb == "names") return Names(words);
    words >> name;
    if (verb == "open_name") return OpenName(name, words);
    if (verb == "unpublish") {
      const absl::Status status = session_->Unpublish(name);
      return status.ok() ? Ok() : Error(status);
    }
    if (verb == "race") return Race(name, words);
    if (verb == "allocate") return Allocate(name, words);
    if (verb == "open" || verb == "take_back") return Open(name, words, verb == "take_back");
    if (verb == "create_channel" || verb == "open_channel") {
      return MakeChannel(name, words, verb == "create_channel");
    }
    if (verb == "drop_channel") {
      channels_.erase(name);
      return Ok();
    }
    if (verb == "channel_send") return ChannelSend(*channels_.at(name), words);
    if (verb == "channel_receive") return ChannelReceive(*channels_.at(name), words);
    if (verb == "channel_close") {
      const absl::Status status = channels_.at(name)->Close();
      return status.ok() ? Ok() : Error(status);
    }
    if (verb == "churn") return ChurnShared(name);
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
    if (verb == "ref") buffers_[name];
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
    if (verb == "readers") return Ok(std::to_string(buffer.readers()));
    if (verb == "await_no_readers") {
      int64_t wait_ms = 0;
      words >> wait_ms;
      const absl::Status status = buffer.AwaitNoReaders(absl::Now() + absl::Milliseconds(wait_ms));
      return status.ok() ? Ok() : Error(status);
    }
    if (verb == "publish") return Publish(buffer, words);
    if (verb == "share") {
      absl::StatusOr<Handle> handle = buffer.Share();
      return handle.ok() ? Ok(handle->ToString()) : Error(handle.status());
    }
    if (verb == "send") {
      absl::StatusOr<Handle> handle = std::move(buffer).Send();
      if (!handle.ok()) return Error(handle.status());
      buffers_.erase(found);
      return Ok(handle->ToString());
    }
    if (verb == "ref") {
      std::string other;
      words >> other;
      Buffer ref = buffers_.at(other).Ref();
      buffer = std::move(ref);
      return Ok();
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

  std::string Open(const std::string& name, std::istringstream& words, bool take_back) {
    std::string text;
    words >> text;
    absl::StatusOr<Handle> handle = Handle::Parse(text);
    if (!handle.ok()) return Error(handle.status());
    absl::StatusOr<Buffer> buffer =
        take_back ? session_->TakeBack(*handle) : session_->Open(*handle);
    if (!buffer.ok()) return Error(buffer.status());
    buffers_.insert_or_assign(name, *std::move(buffer));
    return Ok(std::to_string(buffers_.at(name).size()));
  }

  std::string MakeChannel(const std::string& name, std::istringstream& words, bool create) {
    std::string what;
    words >> what;
    absl::StatusOr<std::unique_ptr<Channel>> channel;
    if (create) {
      channel = Channel::Create(*session_, static_cast<uint32_t>(std::stoul(what)));
    } else {
      absl::StatusOr<Handle> handle = Handle::Parse(what);
      if (!handle.ok()) return Error(handle.status());
      channel = Channel::Open(*session_, *handle);
    }
    if (!channel.ok()) return Error(channel.status());
    const Handle handle = (*channel)->handle();
    channels_[name] = *std::move(channel);
    return Ok(handle.ToString());
  }

  std::string ChannelSend(Channel& channel, std::istringstream& words) {
    std::string name;
    words >> name;
    const absl::Status status =
        channel.Send(std::move(buffers_.at(name)), absl::Now() + absl::Minutes(1));
    if (!status.ok()) return Error(status);
    buffers_.erase(name);
    return Ok();
  }

  std::string ChannelReceive(Channel& channel, std::istringstream& words) {
    std::string name;
    words >> name;
    int64_t wait_ms;
    if (!(words >> wait_ms)) wait_ms = 60'000;
    absl::StatusOr<Buffer> buffer = channel.Receive(absl::Now() + absl::Milliseconds(wait_ms));
    if (!buffer.ok()) return Error(buffer.status());
    buffers_.insert_or_assign(name, *std::move(buffer));
    return Ok(std::to_string(buffers_.at(name).size()));
  }

  std::string Publish(const Buffer& buffer, std::istringstream& words) {
    std::string name;
    spanpool::PublishOptions options;
    words >> name;
    for (std::string option; words >> option;) {
      options.outlive_session |= option == "outlive";
      options.replace |= option == "replace";
    }
    const absl::Status status = session_->Publish(name, buffer, options);
    return status.ok() ? Ok() : Error(status);
  }

  std::string OpenName(const std::string& name, std::istringstream& words) {
    std::string block_name;
    words >> block_name;
    int64_t wait_ms;
    absl::StatusOr<Buffer> buffer =
        words >> wait_ms ? session_->Open(block_name, absl::Now() + absl::Milliseconds(wait_ms))
                         : session_->Open(block_name);
    if (!buffer.ok()) return Error(buffer.status());
    buffers_.insert_or_assign(name, *std::move(buffer));
    return Ok(std::to_string(buffers_.at(name).size()));
  }

  std::string Names(std::istringstream& words) {
    std::string prefix;
    words >> prefix;
    const auto names = session_->ListNames(prefix);
    if (!names.ok()) return Error(names.status());
    std::string text;
    for (const spanpool::NamedBlock& block : *names) text += (text.empty() ? "" : " ") + block.name;
    return Ok(text);
  }

  std::string Watch(std::istringstream& words) {
    std::string prefix;
    words >> prefix;
    auto watch = session_->WatchNames(prefix);
    if (!watch.ok()) return Error(watch.status());
    watch_ = *std::move(watch);
    return Ok();
  }

  std::string NextChange(std::istringstream& words) {
    int64_t wait_ms = 0;
    words >> wait_ms;
    const auto change = watch_->Next(absl::Now() + absl::Milliseconds(wait_ms));
    if (!change.ok()) return Error(change.status());
    switch (change->kind) {
      case spanpool::NameChange::Kind::kPublished:
        return Ok("published " + change->name);
      case spanpool::NameChange::Kind::kUnpublished:
        return Ok("unpublished " + change->name);
      case spanpool::NameChange::Kind::kPublisherLeft:
        return Ok("left " + change->name);
      case spanpool::NameChange::Kind::kPublisherLost:
        return Ok("lost " + change->name);
    }
    return Error(absl::InternalError("no kind of change"));
  }

  std::string Race(const std::string& name, std::istringstream& words) {
    uint64_t count = 0;
    words >> count;
    int opened = 0;
    for (uint64_t i = 0; i < count; ++i) {
      absl::StatusOr<Buffer> mine = session_->Allocate(200);
      if (!mine.ok()) return Error(mine.status());
      Fill(mine->data(), mine->size(), i);
      std::memcpy(mine->data(), &i, sizeof(i));
      absl::Status status = session_->Publish(name, *mine, {.replace = true});
      if (!status.ok()) return Error(status);
      *mine = Buffer();
      absl::StatusOr<Buffer> found = session_->Open(name);
      if (found.ok()) {
        ++opened;
        uint64_t seed;
        std::memcpy(&seed, found->data(), sizeof(seed));
        for (size_t k = sizeof(seed); k < found->size(); ++k) {
          if (found->data()[k] != std::byte{PatternByte(seed, k)}) {
            return Error(absl::DataLossError("not what was published"));
          }
        }
      } else if (!absl::IsNotFound(found.status())) {
        return Error(found.status());
      }
      status = session_->Unpublish(name);
      if (!status.ok() && !absl::IsNotFound(status)) return Error(status);
    }
    return Ok(std::to_string(opened));
  }

  std::string ChurnShared(const std::string& text) {
    absl::StatusOr<Handle> handle = Handle::Parse(text);
    if (!handle.ok()) return Error(handle.status());
    opened_ = 0;
    churn_error_ = absl::OkStatus();
    churning_.emplace_back([this, handle = *handle] {
      while (!still_ && churn_error_.ok()) churn_error_ = ChurnOnce(handle);
    });
    return Ok();
  }

  absl::Status ChurnOnce(const Handle& handle) {
    absl::StatusOr<Buffer> opened = session_->Open(handle);
    // While a block is recounted for longer than a moment, one is told to try again.
    if (!opened.ok() && !absl::IsUnavailable(opened.status())) return opened.status();
    if (opened.ok()) ++opened_;
    absl::StatusOr<Buffer> own = session_->Allocate(200);
    if (!own.ok()) return own.status();
    own->data()[199] = std::byte{7};
    absl::StatusOr<Handle> sent = std::move(*own).Send();
    if (!sent.ok()) return sent.status();
    absl::StatusOr<Buffer> received = session_->Open(*sent);
    if (!received.ok()) return received.status();
    return received->data()[199] == std::byte{7} ? absl::OkStatus()
                                                 : absl::DataLossError("not what was sent");
  }

  std::string Still() {
    still_ = true;
    for (std::thread& thread : churning_) thread.join();
    churning_.clear();
    still_ = false;
    return churn_error_.ok() ? Ok(std::to_string(opened_)) : Error(churn_error_);
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

  std::string ForkAttach(std::istringstream& words) {
    spanpool::SessionOptions options;
    int count = 0;
    words >> options.target >> count;
    for (int i = 0; i < count; ++i) {
      const pid_t child = fork();
      if (child == 0) _exit(AttachInChild(options, static_cast<size_t>(i)));
      children_.push_back(child);
    }
    return Ok();
  }

  // What goes wrong has a number.
  int AttachInChild(const spanpool::SessionOptions& options, size_t seed) {
    if (!absl::IsFailedPrecondition(session_->Allocate(64).status())) return 1;
    if (session_->Malloc(64) != nullptr) return 2;
    if (!absl::IsFailedPrecondition(session_->ListNames().status())) return 7;
    if (watch_ != nullptr && !absl::IsFailedPrecondition(watch_->Next(absl::Now()).status())) {
      return 8;
    }
    watch_.reset();
    absl::StatusOr<std::unique_ptr<Session>> own = Session::Attach(options);
    if (!own.ok()) return 3;
    // Blocks of the parent's are nothing that this session knows.
    for (auto& [name, buffer] : buffers_) (*own)->Free(buffer.data());
    buffers_.clear();
    session_ = *std::move(own);
    std::thread idle([this] {
      std::vector<void*> blocks;
      for (int i = 0; i < 200; ++i) blocks.push_back(session_->Malloc(4096));
      for (void* block : blocks) session_->Free(block);
    });
    idle.join();
    for (size_t i = 0; i < 300; ++i) {
      const size_t bytes = (1 + (i + seed) % 11) * 300'000;
      absl::StatusOr<Buffer> buffer = session_->Allocate(bytes);
      if (!buffer.ok()) return 4;
      Fill(buffer->data(), 1000, i);
      absl::StatusOr<Handle> handle = buffer->Share();
      if (!handle.ok()) return 5;
      absl::StatusOr<Buffer> opened = session_->Open(*handle);
      if (!opened.ok() || opened->data()[999] != std::byte{PatternByte(i, 999)}) return 6;
    }
    session_.reset();
    return 0;
  }

  std::string AwaitChildren() {
    std::string failures;
    for (const pid_t child : children_) {
      int status = 0;
      waitpid(child, &status, 0);
      if (status != 0) failures += " " + std::to_string(status);
    }
    children_.clear();
    return failures.empty() ? Ok() : Error(absl::InternalError("children ended with" + failures));
  }

  static std::string Descriptors(std::istringstream& words) {
    std::string how;
    words >> how;
    // The shell counts its own: what it opens to look is closed by the time of the count.
    const char* const arguments[] = {
        "/bin/sh", "-c", "n=0; for f in /proc/self/fd/*; do n=$((n+1)); done; exit $n", nullptr};
    char* const* argv = const_cast<char* const*>(arguments);
    pid_t child = -1;
    if (how == "fork") {
      child = fork();
      if (child == 0) {
        execv(argv[0], argv);
        _exit(255);
      }
    } else if (how == "vfork") {
      child = vfork();
      if (child == 0) {
        execv(argv[0], argv);
        _exit(255);
      }
    } else if (posix_spawn(&child, argv[0], nullptr, nullptr, argv, environ) != 0) {
      return Error(absl::InternalError("posix_spawn"));
    }
    int status = 0;
    waitpid(child, &status, 0);
    return Ok(std::to_string(WEXITSTATUS(status)));
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
    std::string large;
    words >> count >> large;
    for (int i = 0; i < count; ++i)
      busy_.emplace_back([this, i, large] { Churn(static_cast<size_t>(i), large == "large"); });
    return Ok();
  }

  void Churn(size_t seed, bool large) {
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
      size_t bytes = size_t{64} << (i * 5 + seed) % 12;
      if (large && i % 64 == 0) bytes = (4 + i / 64 * 7 % 60) << 20;
      absl::StatusOr<Buffer> next = session_->Allocate(bytes);
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
  std::unique_ptr<spanpool::NameWatch> watch_;
  std::map<std::string, Buffer> buffers_;
  std::map<std::string, std::unique_ptr<Channel>> channels_;
  std::map<std::string, void*> blocks_;
  std::atomic<int> misuses_{0};

  std::vector<std::thread> churning_;
  std::atomic<bool> still_{false};
  uint64_t opened_ = 0;       // the churning thread's until it has ended
  absl::Status churn_error_;  // as well
  std::vector<pid_t> children_;
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

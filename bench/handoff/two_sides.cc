#include "bench/handoff/two_sides.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "bench/cpus.h"
#include "bench/harness.h"
#include "bench/spsc_ring.h"

namespace spanpool::bench {
namespace {

// How many messages it takes until all blocks have been used and all stocks are as full as they
// get. Those without any need none, and may be too slow for so many.
constexpr uint64_t kWarmUp = 200 * kWindow;

// What the sender's process tells the receiver's, over a socket that is not measured.
struct Command {
  uint64_t bytes = 0;     // not 0: prepare
  uint64_t messages = 0;  // not 0: receive so many
};

struct Head {
  // How many runs the receiver has finished.
  std::atomic<uint64_t> runs{0};
};
constexpr size_t kHeadBytes = 4096;
static_assert(sizeof(Head) <= kHeadBytes);

// A reply is a line; empty: done.
void Reply(int socket, const absl::Status& status) {
  const std::string text = status.ok() ? "." : std::string(status.message());
  (void)send(socket, text.data(), text.size(), MSG_NOSIGNAL);
}

absl::Status AwaitReply(int socket) {
  char text[1024];
  ssize_t n;
  do {
    n = recv(socket, text, sizeof(text), 0);
  } while (n < 0 && errno == EINTR);
  if (n <= 0) return absl::AbortedError("the receiver's process ended");
  const std::string reply(text, static_cast<size_t>(n));
  return reply == "." ? absl::OkStatus() : absl::UnavailableError(reply);
}

int RunReceiver(Head* head, void* shared, const MakeSide& make, int socket, int cpu) {
  absl::StatusOr<std::unique_ptr<Side>> side = make(shared);
  // After it was made: threads that a library starts are not to crowd one processor.
  PinTo(cpu);
  Reply(socket, side.status());
  if (!side.ok()) return 0;
  for (Command command; recv(socket, &command, sizeof(command), 0) == sizeof(command);) {
    if (command.bytes != 0) {
      Reply(socket, (*side)->Prepare(command.bytes));
    } else {
      (*side)->Run(command.messages);
      // release: pairs with the sender's acquire; all messages were let go.
      head->runs.fetch_add(1, std::memory_order_release);
    }
  }
  return 0;
}

class Measurement {
 public:
  Measurement(Head* head, Side* side, int socket) : head_(head), side_(side), socket_(socket) {}

  absl::Status Prepare(size_t bytes, absl::Duration time) {
    if (bytes == bytes_) {
      WarmUp(time);
      return absl::OkStatus();
    }
    bytes_ = 0;
    if (absl::Status status = side_->Prepare(bytes); !status.ok()) return status;
    if (absl::Status status = Tell({.bytes = bytes}); !status.ok()) return status;
    if (absl::Status status = AwaitReply(socket_); !status.ok()) return status;
    bytes_ = bytes;
    timer_ = std::make_unique<Timer>(time, [this](int64_t n) {
      messages_ = static_cast<uint64_t>(n);
      return Run(messages_);
    });
    WarmUp(time);
    (void)timer_->NsPerOperation();  // finds out how many are worth measuring
    return absl::OkStatus();
  }

  std::string Go() {
    const double ns = timer_->NsPerOperation();
    return absl::StrCat(messages_, " ", ns);
  }

 private:
  absl::Status Tell(const Command& command) {
    if (send(socket_, &command, sizeof(command), MSG_NOSIGNAL) == sizeof(command)) {
      return absl::OkStatus();
    }
    return absl::AbortedError("the receiver's process ended");
  }

  // At most kWarmUp messages, and about as long as a round.
  void WarmUp(absl::Duration time) {
    double left = absl::ToDoubleNanoseconds(time);
    for (uint64_t messages = 0; messages < kWarmUp && left > 0; messages += kWindow) {
      left -= Run(kWindow);
    }
  }

  double Run(uint64_t messages) {
    if (absl::Status status = Tell({.messages = messages}); !status.ok()) {
      GiveUp(std::string(status.message()));
    }
    const double start = NowNs(TimeOf::kWall);
    side_->Run(messages);
    ++runs_;
    SpinUntil([this] { return head_->runs.load(std::memory_order_acquire) == runs_; });
    return NowNs(TimeOf::kWall) - start;
  }

  Head* const head_;
  Side* const side_;
  const int socket_;
  size_t bytes_ = 0;
  uint64_t runs_ = 0;
  uint64_t messages_ = 0;
  std::unique_ptr<Timer> timer_;
};

// Answers the suite until it has no more to ask.
int Serve(Measurement& measurement) {
  std::cout << "READY" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "GO") {
      std::cout << measurement.Go() << std::endl;
      continue;
    }
    std::istringstream words(line);
    size_t bytes = 0;
    int milliseconds = 0;
    words >> bytes >> milliseconds;
    const absl::Status status = measurement.Prepare(bytes, absl::Milliseconds(milliseconds));
    std::cout << (status.ok() ? "READY" : absl::StrCat("ABSENT ", status.message())) << std::endl;
  }
  return 0;
}

}  // namespace

void GiveUp(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::_Exit(1);
}

int RunAbsent(const std::string& why) {
  std::cout << "ABSENT " << why << std::endl;
  return 0;
}

int RunTwoSides(size_t shared_bytes, const MakeSide& make_sender, const MakeSide& make_receiver) {
  const std::vector<int> cpus = AllowedCpus();
  if (cpus.size() < 2) return RunAbsent("a process that spins needs a processor of its own: two");
  void* const memory = mmap(nullptr, kHeadBytes + shared_bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  int sockets[2];
  if (memory == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) {
    return RunAbsent("no memory to share");
  }
  auto* const head = new (memory) Head;
  void* const shared = static_cast<std::byte*>(memory) + kHeadBytes;
  const pid_t parent = getpid();
  // A sender whose receiver has given up would spin for ever.
  signal(SIGCHLD, [](int) { _exit(1); });
  const pid_t child = fork();
  if (child < 0) return RunAbsent("cannot fork");
  if (child == 0) {
    signal(SIGCHLD, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) return 1;
    close(sockets[0]);
    return RunReceiver(head, shared, make_receiver, sockets[1], cpus[1]);
  }
  close(sockets[1]);
  int code = 0;
  {
    absl::StatusOr<std::unique_ptr<Side>> side = make_sender(shared);
    const absl::Status receiver = AwaitReply(sockets[0]);
    PinTo(cpus[0]);
    if (!side.ok()) {
      code = RunAbsent(std::string(side.status().message()));
    } else if (!receiver.ok()) {
      code = RunAbsent(std::string(receiver.message()));
    } else {
      Measurement measurement(head, side->get(), sockets[0]);
      code = Serve(measurement);
    }
    signal(SIGCHLD, SIG_DFL);
    close(sockets[0]);  // the receiver's end
    waitpid(child, nullptr, 0);
  }
  return code;
}

}  // namespace spanpool::bench

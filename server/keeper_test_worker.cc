// A worker for the keeper's tests. It says what it is, then does what its standard input tells it,
// a line at a time, and says so. The bytes that a test appended to this program after the last '#'
// are its name.
//
//   NAME PID GIVEN[:GIVEN...]   the first line; GIVEN is NAME=WHAT: what is kept, and what it is
//
//   ready            READY=1 to the keeper
//   keep NAME KIND   KIND: file TEXT (a memfd), socket TEXT (sent by the other end), or process PID
//   (a
//                    pidfd)
//   forget NAME
//   safe             yes or no: whether there is somebody who keeps
//   orphan           leaves a process that ends to the first one, and waits until that has reaped
//   it exit CODE        without another word
//
// A program named refuses or fails does that before it serves; one named serves is ready at once.
// SIGUSR2, SIGTERM and SIGHUP do what they do to spanpoold.

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/keeper.h"
#include "server/notify_fd_store.h"

namespace spanpool {
namespace {

std::string ProgramName() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const size_t mark = bytes.rfind('#');
  return bytes.size() - mark < 32 ? bytes.substr(mark + 1) : "first";
}

// What a descriptor that was handed over still does.
std::string Describe(int fd) {
  struct stat info {};
  fstat(fd, &info);
  if (S_ISSOCK(info.st_mode)) {
    // The message that was under way at the death of whoever had it before.
    std::array<char, 64> text{};
    const ssize_t length = recv(fd, text.data(), text.size(), MSG_DONTWAIT);
    return length < 0 ? "socket" : "socket with " + std::string(text.data(), length);
  }
  if (syscall(SYS_pidfd_send_signal, fd, 0, nullptr, 0) == 0) return "process";
  std::array<char, 64> text{};
  const ssize_t length = pread(fd, text.data(), text.size(), 0);
  return length < 0 ? "?" : std::string(text.data(), static_cast<size_t>(length));
}

int MakeFd(std::istringstream& words) {
  std::string kind, argument;
  words >> kind >> argument;
  if (kind == "process") return static_cast<int>(syscall(SYS_pidfd_open, std::stoi(argument), 0));
  if (kind == "socket") {
    // The other end stays with this process, and what it sent is under way.
    std::array<int, 2> ends{};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends.data()) != 0) return -1;
    return send(ends[1], argument.data(), argument.size(), 0) < 0 ? -1 : ends[0];
  }
  const int fd = memfd_create("kept", 0);
  return write(fd, argument.data(), argument.size()) < 0 ? -1 : fd;
}

void Say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

// Unbuffered: what follows is for a successor.
std::string ReadLine() {
  std::string line;
  for (char c = 0; read(STDIN_FILENO, &c, 1) == 1;) {
    if (c == '\n') return line;
    line += c;
  }
  pause();
  std::abort();
}

std::string Do(const std::string& line, NotifyFdStore& store) {
  std::istringstream words(line);
  std::string command, name;
  words >> command >> name;
  if (command == "ready") {
    sd_notify(0, "READY=1");
    return "ok";
  }
  if (command == "keep") {
    const int fd = MakeFd(words);
    const absl::Status status = store.Keep({{name, fd}});
    close(fd);
    return status.ok() ? "ok" : status.ToString();
  }
  if (command == "forget") {
    store.Forget(name);
    return "ok";
  }
  if (command == "safe") return store.restart_safe() ? "yes" : "no";
  if (command == "orphan") {
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) std::abort();
    const pid_t child = fork();
    if (child == 0) {
      const pid_t grandchild = fork();
      if (grandchild != 0 && write(ends[1], &grandchild, sizeof(grandchild)) < 0) _exit(1);
      _exit(0);
    }
    siginfo_t ended{};
    pid_t grandchild = 0;
    if (waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED) != 0 ||
        read(ends[0], &grandchild, sizeof(grandchild)) < 0) {
      std::abort();
    }
    close(ends[0]);
    close(ends[1]);
    while (kill(grandchild, 0) == 0) usleep(1000);  // a zombie is there
    return "reaped";
  }
  if (command == "exit") std::_Exit(std::stoi(name));
  return "what?";
}

int Main() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR2}) {
    std::signal(signal, [](int number) {
      if (number == SIGHUP) {
        if (write(STDOUT_FILENO, "SIGHUP\n", 7) < 0) std::abort();
      } else if (number == SIGUSR2) {
        std::_Exit(kExitForSuccessor);
      } else {
        std::_Exit(0);
      }
    });
    sigaddset(&signals, signal);
  }
  sigprocmask(SIG_UNBLOCK, &signals, nullptr);
  const std::string name = ProgramName();
  const KeptFds kept = TakeKeptFds();
  std::vector<std::string> given;
  for (const auto& [fd_name, fd] : kept) given.push_back(fd_name + "=" + Describe(fd.get()));
  std::sort(given.begin(), given.end());
  Say(absl::StrCat(name, " ", getpid(), " ", absl::StrJoin(given, ":")));
  if (name == "refuses") return kExitRefused;
  if (name == "fails") return 1;
  auto store = NotifyFdStore::Connect(NotifyFdStore::FromEnvironment(), kept);
  if (!store.ok()) {
    Say(store.status().ToString());
    return 9;
  }
  if (name == "serves") sd_notify(0, "READY=1");
  for (;;) Say(Do(ReadLine(), **store));
}

}  // namespace
}  // namespace spanpool

int main() { return spanpool::Main(); }

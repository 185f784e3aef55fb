#include "tests/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace spanpool::testing {
namespace {

constexpr int kPatienceMs = 60'000;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "%s: %s\n", what, std::strerror(errno));
  std::abort();
}

}  // namespace

std::string Runfile(const std::string& path) {
  const char* root = std::getenv("TEST_SRCDIR");
  const char* workspace = std::getenv("TEST_WORKSPACE");
  if (root == nullptr || workspace == nullptr) return path;
  return std::string(root) + "/" + workspace + "/" + path;
}

std::string TemporaryDirectory() {
  char name[] = "/tmp/spanpool-test-XXXXXX";
  if (mkdtemp(name) == nullptr) Die("mkdtemp");
  // Clients of other uids must be able to reach the sockets inside.
  if (chmod(name, 0755) != 0) Die("chmod");
  return name;
}

Process::Process(const std::vector<std::string>& arguments) : Process(arguments, Options()) {}

Process::Process(const std::vector<std::string>& arguments, const Options& options) {
  int in[2];
  int out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) Die("pipe2");
  char error_name[] = "/tmp/spanpool-stderr-XXXXXX";
  const int error = mkostemp(error_name, O_CLOEXEC);
  if (error < 0) Die("mkostemp");
  error_file_ = error_name;

  // A program below root's home cannot be reached by another user; a copy in /tmp can.
  std::string program = arguments[0];
  if (options.uid != 0) {
    program_copy_ = TemporaryDirectory();
    program = program_copy_ + "/program";
    std::filesystem::copy_file(arguments[0], program);
  }
  signal(SIGPIPE, SIG_IGN);  // a child that is gone is seen when its answer is awaited

  std::vector<std::string> added;
  for (const auto& [name, value] : options.environment) added.push_back(name + "=" + value);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  pid_ = fork();
  if (pid_ < 0) Die("fork");
  if (pid_ == 0) {
    signal(SIGPIPE, SIG_DFL);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    dup2(error, STDERR_FILENO);
    for (std::string& entry : added) putenv(entry.data());
    if (options.uid != 0 && (setgid(options.uid) != 0 || setuid(options.uid) != 0)) _exit(126);
    execv(program.c_str(), argv.data());
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  close(error);
  input_ = in[1];
  output_ = out[0];
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      input_(std::exchange(other.input_, -1)),
      output_(std::exchange(other.output_, -1)),
      buffered_(std::move(other.buffered_)),
      error_file_(std::exchange(other.error_file_, "")),
      program_copy_(std::exchange(other.program_copy_, "")) {}

Process::~Process() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (input_ >= 0) close(input_);
  if (output_ >= 0) close(output_);
  if (!error_file_.empty()) unlink(error_file_.c_str());
  if (!program_copy_.empty()) std::filesystem::remove_all(program_copy_);
}

void Process::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(input_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return;  // it is gone; the caller will see no answer
    done += static_cast<size_t>(n);
  }
}

std::optional<std::string> Process::ReadLine() {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (true) {
    if (const size_t end = buffered_.find('\n'); end != std::string::npos) {
      std::string line = buffered_.substr(0, end);
      buffered_.erase(0, end + 1);
      return line;
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd wait{output_, POLLIN, 0};
    if (left.count() <= 0 || poll(&wait, 1, static_cast<int>(left.count())) == 0) {
      return std::nullopt;
    }
    char chunk[4096];
    const ssize_t n = read(output_, chunk, sizeof(chunk));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return std::nullopt;
    buffered_.append(chunk, static_cast<size_t>(n));
  }
}

std::string Process::standard_error() const {
  std::ifstream file(error_file_);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void Process::Signal(int signal) {
  if (pid_ > 0) kill(pid_, signal);
}

void Process::CloseInput() {
  if (input_ >= 0) close(std::exchange(input_, -1));
}

bool Process::StopsBeforeLine() {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (pid_ > 0 && std::chrono::steady_clock::now() < deadline) {
    siginfo_t info{};
    // Left to be waited for: Wait() sees the end.
    if (waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WEXITED | WNOHANG | WNOWAIT) !=
        0) {
      return false;
    }
    if (info.si_pid == pid_) return info.si_code == CLD_STOPPED;
    pollfd wait{output_, POLLIN, 0};
    if (!buffered_.empty() || poll(&wait, 1, 1) == 1) return false;
  }
  return false;
}

int Process::Wait() {
  if (pid_ <= 0) return -1;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
  int status = 0;
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      pid_ = -1;
      return -1;
    }
    poll(nullptr, 0, 1);
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace spanpool::testing

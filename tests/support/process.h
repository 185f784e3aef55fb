// A child process with pipes to its standard input and output, killed when the object goes.
//
// Not thread-safe: one test thread drives a child.

#ifndef SPANPOOL_TESTS_SUPPORT_PROCESS_H_
#define SPANPOOL_TESTS_SUPPORT_PROCESS_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace spanpool::testing {

class Process {
 public:
  struct Options {
    uid_t uid = 0;  // 0 = the test's own; others need root
    std::vector<std::pair<std::string, std::string>> environment;  // added to the test's own
  };

  // Starts `arguments[0]`. Aborts the test program if it cannot be started.
  explicit Process(const std::vector<std::string>& arguments);
  Process(const std::vector<std::string>& arguments, const Options& options);
  Process(Process&& other) noexcept;
  Process& operator=(Process&&) = delete;
  ~Process();  // SIGKILL and wait, unless it was waited for

  pid_t pid() const { return pid_; }
  void WriteLine(const std::string& line);
  // The next line of its standard output; nothing at its end or after 60 s.
  std::optional<std::string> ReadLine();
  // Everything it wrote to standard error so far. Only what is in the file at this moment.
  std::string standard_error() const;

  void Signal(int signal);
  void CloseInput();
  // Waits, up to 60 s, until it has stopped (SIGSTOP). False: it wrote something first, or ended.
  bool StopsBeforeLine();
  // The exit code, or 128 + the signal that ended it. Waits up to 60 s, then kills it and returns
  // -1.
  int Wait();

 private:
  pid_t pid_ = -1;
  int input_ = -1;
  int output_ = -1;
  std::string buffered_;
  std::string error_file_;
  std::string program_copy_;  // a directory; empty if the program runs from where it is
};

// The absolute path of a file among the test's runfiles, by its workspace path.
std::string Runfile(const std::string& path);

// A fresh directory below the test's temporary directory; short enough for a socket's path.
std::string TemporaryDirectory();

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_PROCESS_H_

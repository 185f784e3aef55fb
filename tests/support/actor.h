// A client process that does what a test tells it, one command at a time.
//
// The test can thus hold several real processes at chosen points, and kill or stop any of them.

#ifndef SPANPOOL_TESTS_SUPPORT_ACTOR_H_
#define SPANPOOL_TESTS_SUPPORT_ACTOR_H_

#include <sys/types.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/support/process.h"

namespace spanpool::testing {

class Actor {
 public:
  Actor() : Actor(Process::Options()) {}
  explicit Actor(const Process::Options& options);
  // `process` is the program, or leads to it: one that runs it in a container.
  explicit Actor(Process process) : process_(std::move(process)) {}
  // One whose process can be made to stop or die at a step of the protocol: "arm", "passed".
  static Actor WithSteps();

  // The two halves of Do(), for commands during which something else is to happen.
  void Begin(const std::string& command) { process_.WriteLine(command); }
  absl::StatusOr<std::string> End();

  // Sends a command of actor_main.cc and waits for its answer: what stands after "ok", or the error
  // that the library reported. UNAVAILABLE: the process is gone.
  absl::StatusOr<std::string> Do(const std::string& command);
  // For commands that cannot fail: the answer, and a failed expectation if it does.
  std::string Must(const std::string& command);

  Process& process() { return process_; }
  pid_t pid() const { return process_.pid(); }

 private:
  Process process_;
};

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_ACTOR_H_

// A program that measures on command: a line in, a line out.
//
// When it starts it says READY, or ABSENT and why; to each command it answers with a line, which
// may be ABSENT and why. It ends at the end of its input.
//
// Not thread-safe.

#ifndef SPANPOOL_BENCH_PROGRAM_H_
#define SPANPOOL_BENCH_PROGRAM_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/support/process.h"

namespace spanpool::bench {

class Program {
 public:
  // Starts `arguments`; Ready() says whether that went well.
  Program(const std::vector<std::string>& arguments, const testing::Process::Options& options);
  // Lets it end, and waits.
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Waits for its greeting. Called first.
  //   UNAVAILABLE  it cannot measure; the message is its own
  //   ABORTED      it ended, or has not answered for a minute
  //   INTERNAL     it said something else
  absl::Status Ready();

  // Its answer to `command`. UNAVAILABLE and ABORTED as above.
  absl::StatusOr<std::string> Ask(const std::string& command);

 private:
  absl::StatusOr<std::string> Answer();

  const std::string name_;
  testing::Process process_;
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_PROGRAM_H_

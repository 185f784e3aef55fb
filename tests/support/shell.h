// A command line run to its end by a test.

#ifndef SPANPOOL_TESTS_SUPPORT_SHELL_H_
#define SPANPOOL_TESTS_SUPPORT_SHELL_H_

#include <ostream>
#include <string>

namespace spanpool::testing {

struct ShellResult {
  int exit = -1;       // the exit code, or 128 + the signal that ended it
  std::string output;  // standard output and standard error, as they came

  bool ok() const { return exit == 0; }
  friend std::ostream& operator<<(std::ostream& out, const ShellResult& result) {
    return out << "exit " << result.exit << "\n" << result.output;
  }
};

// Runs `command` by /bin/bash with `pipefail`, its standard input empty, and waits for its end.
ShellResult Shell(const std::string& command);

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_SHELL_H_

// Runs a program to its end and returns what it printed: for peers that need a process of their
// own.

#ifndef SPANPOOL_BENCH_CHILD_H_
#define SPANPOOL_BENCH_CHILD_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace spanpool::bench {

// Runs `arguments` (the first is the program's path) with `environment` ("NAME=value") on top of
// ours. Returns its standard output.
//   NOT_FOUND  the program cannot be started
//   ABORTED    it failed: its exit status or signal, and the last line of its standard error
absl::StatusOr<std::string> RunChild(const std::vector<std::string>& arguments,
                                     const std::vector<std::string>& environment = {});

// The last line of `text` that is not empty: of a program's standard error, most often its reason.
std::string LastLine(std::string text);

// The path of a program or library that was built beside this one: `path` from the workspace's
// root.
std::string BuiltPath(const std::string& path);

// Where the system keeps the shared library `name` ("libjemalloc.so.2"): its path.
//   NOT_FOUND  it is not installed; the message says how to install `package`
absl::StatusOr<std::string> FindLibrary(const std::string& name, const std::string& package);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_CHILD_H_

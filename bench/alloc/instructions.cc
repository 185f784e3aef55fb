#include "bench/alloc/instructions.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/status/status.h"
#if SPANPOOL_HAVE_VALGRIND
#include <valgrind/callgrind.h>
#endif

namespace spanpool::bench {

absl::StatusOr<double> CountInstructions([[maybe_unused]] const std::function<void()>& work) {
#if SPANPOOL_HAVE_VALGRIND
  const char* out = std::getenv("SPANPOOL_BENCH_CALLGRIND_OUT");
  if (RUNNING_ON_VALGRIND == 0 || out == nullptr) {
    return absl::FailedPreconditionError("not run under callgrind");
  }
  static int dumps = 0;
  CALLGRIND_ZERO_STATS;
  CALLGRIND_TOGGLE_COLLECT;
  work();
  CALLGRIND_TOGGLE_COLLECT;
  CALLGRIND_DUMP_STATS;
  const std::string path = std::string(out) + "." + std::to_string(++dumps);
  std::ifstream file(path);
  double instructions = -1;
  for (std::string line; std::getline(file, line);) {
    // One dump has one such line for all its threads.
    if (line.starts_with("totals:")) std::istringstream(line.substr(7)) >> instructions;
  }
  unlink(path.c_str());
  if (instructions < 0) return absl::InternalError("callgrind wrote no totals to " + path);
  return instructions;
#else
  return absl::FailedPreconditionError("valgrind is not installed; run apt-get install valgrind");
#endif
}

}  // namespace spanpool::bench

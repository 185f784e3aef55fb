// The allocators of the suites `alloc` and `threads`, as systems of a case: programs of patterns.h
// that measure on command, and a pool for ours.
//
// A program, and the daemon, start when the first round asks for them, live for all cases added by
// one call, and end with the suite.

#ifndef SPANPOOL_BENCH_ALLOC_SYSTEMS_H_
#define SPANPOOL_BENCH_ALLOC_SYSTEMS_H_

#include <cstddef>
#include <string>
#include <vector>

#include "bench/harness.h"

namespace spanpool::bench {

struct PatternCase {
  std::string name;
  std::string pattern;  // of patterns.h
  size_t bytes;
};

// Metric ns_per_pair.
void AddTimed(Suite& suite, const std::vector<PatternCase>& cases);

// Metric `instructions`: the same programs under callgrind. Absent where there is no valgrind.
void AddInstructions(Suite& suite, const std::vector<PatternCase>& cases);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_ALLOC_SYSTEMS_H_

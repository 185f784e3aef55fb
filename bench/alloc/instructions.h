// Counts instructions, in a process that runs under valgrind --tool=callgrind --collect-atstart=no.

#ifndef SPANPOOL_BENCH_ALLOC_INSTRUCTIONS_H_
#define SPANPOOL_BENCH_ALLOC_INSTRUCTIONS_H_

#include <functional>

#include "absl/status/statusor.h"

namespace spanpool::bench {

// Instructions that the calling thread executes in `work`, to within a hundred.
//   FAILED_PRECONDITION  the process does not run under callgrind
//   INTERNAL             callgrind did not write what it counted
absl::StatusOr<double> CountInstructions(const std::function<void()>& work);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_ALLOC_INSTRUCTIONS_H_

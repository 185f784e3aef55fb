// What this machine takes for the smallest steps that everything else is made of.
//
// Figures of other cases are read as multiples of these, taken in the same run and in the same
// rounds:
//   core_round_trip  a cache line goes to another core and comes back
//   xadd             an atomic addition to a line of one's own
//   cas_pair         two compare-and-swaps of a line of one's own, as in counting up and down
//   mutex_pair       locking and unlocking a std::mutex that nobody else wants
//
// As system `probe`, each is a metric of its own name, in nanoseconds.

#ifndef SPANPOOL_BENCH_PROBE_H_
#define SPANPOOL_BENCH_PROBE_H_

#include <string>
#include <vector>

#include "bench/harness.h"

namespace spanpool::bench {

// Adds the probes to `case_name` as system `probe`. `which` names some of the four; a name that is
// none of them is a bug (CHECK).
void AddProbes(Suite& suite, const std::string& case_name, const std::vector<std::string>& which);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_PROBE_H_

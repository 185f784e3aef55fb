// What this machine takes for the smallest steps that everything else is made of.
//
// Figures of other cases are read as multiples of these, taken in the same run and in the same
// rounds:
//   core_round_trip    a cache line goes to another core and comes back
//   xadd               an atomic addition to a line of one's own
//   cas_pair           two compare-and-swaps of a line of one's own, as in counting up and down
//   mutex_pair         locking and unlocking a std::mutex that nobody else wants
//   additions_16       sixteen additions that do not wait for each other: how wide the core is
//   multiplications_2  two that do: six cycles, whoever else uses the core
//
// A hardware thread whose sibling works has half the width and the same cycles. A virtual machine
// cannot see its siblings; these two probes can. As system `probe`, each is a metric of its own
// name, in nanoseconds.

#ifndef SPANPOOL_BENCH_PROBE_H_
#define SPANPOOL_BENCH_PROBE_H_

#include <string>
#include <vector>

#include "bench/harness.h"

namespace spanpool::bench {

// Adds the probes to `case_name` as system `probe`. `which` names some of them; a name that is
// not above is a bug (CHECK).
void AddProbes(Suite& suite, const std::string& case_name, const std::vector<std::string>& which);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_PROBE_H_

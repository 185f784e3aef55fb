// Which processors a measurement runs on.

#ifndef SPANPOOL_BENCH_CPUS_H_
#define SPANPOOL_BENCH_CPUS_H_

#include <vector>

namespace spanpool::bench {

// The processors that this process may run on; none if the kernel does not say.
std::vector<int> AllowedCpus();

// Has the calling thread run on `cpu` from now on. If it may not, it runs where it did.
void PinTo(int cpu);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_CPUS_H_

// Reads files into pool buffers and hands them to the consumers.

#ifndef SPANPOOL_EXAMPLES_FILES_PRODUCER_H_
#define SPANPOOL_EXAMPLES_FILES_PRODUCER_H_

#include <string>
#include <vector>

namespace spanpool::demo {

// The body of producer process `index`. Reads every kProducers-th of `files` in pieces of 64 B to
// 4 MiB, log-uniform from a fixed seed, into buffers of the pool at `target`, and sends those of
// file i through the channel whose handle comes from the pipe consumers[i / kProducers %
// kConsumers]. Reports on standard output, a line each:
//   progress BYTES
//   done SMALL SMALL_WAITED LARGE LARGE_WAITED P50_NS P99_NS
// (allocations of at most 32 KiB and above, and how many of each waited for the daemon).
// Returns the process's exit code.
int RunProducer(int index, const std::string& target, const std::vector<std::string>& files,
                const std::vector<int>& consumers);

}  // namespace spanpool::demo

#endif  // SPANPOOL_EXAMPLES_FILES_PRODUCER_H_

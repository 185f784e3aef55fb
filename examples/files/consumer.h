// Opens the buffers that producers hand over, without copying, and hashes them.

#ifndef SPANPOOL_EXAMPLES_FILES_CONSUMER_H_
#define SPANPOOL_EXAMPLES_FILES_CONSUMER_H_

#include <string>
#include <vector>

namespace spanpool::demo {

// The body of a consumer process: makes a channel in the pool at `target`, writes its handle to a
// pipe for each of the producers, and receives pieces until all of them have said goodbye. Reports
// on standard output, a line each:
//   hash FILE SHA256
//   consumed BUFFERS BYTES
// Returns the process's exit code.
int RunConsumer(const std::string& target, const std::vector<int>& producers);

}  // namespace spanpool::demo

#endif  // SPANPOOL_EXAMPLES_FILES_CONSUMER_H_

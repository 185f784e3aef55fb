// Opens the buffers that producers hand over, without copying, and hashes them.

#ifndef SPANPOOL_EXAMPLES_FILES_CONSUMER_H_
#define SPANPOOL_EXAMPLES_FILES_CONSUMER_H_

#include <string>
#include <vector>

namespace spanpool::demo {

// The body of a consumer process: reads pieces from one socket per producer until all are closed.
// Reports on standard output, a line each:
//   hash FILE SHA256
//   consumed BUFFERS BYTES
// Returns the process's exit code.
int RunConsumer(const std::string& target, const std::vector<int>& sockets);

}  // namespace spanpool::demo

#endif  // SPANPOOL_EXAMPLES_FILES_CONSUMER_H_

// Suite `threads`: two threads allocate and free, through several allocators (alloc/patterns.h).
//
//   local_2_SIZE  each for itself
//   cross_2_SIZE  one allocates, the other frees
//
// ns_per_pair is the time in which each thread does a pair, or the two together do one.

#include <cstddef>
#include <string>
#include <vector>

#include "bench/alloc/systems.h"
#include "bench/harness.h"

namespace spanpool::bench {
namespace {

constexpr size_t kSizes[] = {64, 4096, 65536};

void Fill(Suite& suite, const std::vector<std::string>&) {
  std::vector<PatternCase> cases;
  for (const std::string pattern : {"local_2", "cross_2"}) {
    for (const size_t bytes : kSizes) {
      cases.push_back({pattern + "_" + std::to_string(bytes), pattern, bytes});
    }
  }
  AddTimed(suite, cases);
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "threads", spanpool::bench::Fill);
}

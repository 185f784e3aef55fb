// Suite `alloc`: one thread allocates and frees, through several allocators (alloc/patterns.h).
//
//   pair_SIZE, churn256_SIZE  ns_per_pair
//   pair_64                   and, as system `probe`, whether the core was ours alone (probe.h)
//   instructions_pair_64      instructions of a pair, the loop around it left out

#include <cstddef>
#include <string>
#include <vector>

#include "bench/alloc/systems.h"
#include "bench/harness.h"
#include "bench/probe.h"

namespace spanpool::bench {
namespace {

constexpr size_t kSizes[] = {64, 256, 1024, 4096, 32768, 65536, 1048576};

void Fill(Suite& suite, const std::vector<std::string>&) {
  std::vector<PatternCase> cases;
  for (const std::string pattern : {"pair", "churn256"}) {
    for (const size_t bytes : kSizes) {
      cases.push_back({pattern + "_" + std::to_string(bytes), pattern, bytes});
    }
  }
  AddTimed(suite, cases);
  AddProbes(suite, "pair_64", {"additions_16", "multiplications_2"});
  AddInstructions(suite, {{"instructions_pair_64", "instructions", 64}});
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "alloc", spanpool::bench::Fill);
}

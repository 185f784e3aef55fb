// malloc, whosever it is: the C library's, or that of a library in LD_PRELOAD.

#include <cstdlib>

#include "bench/alloc/patterns.h"

namespace {

struct Malloc {
  absl::Status Prepare(size_t, size_t, int) { return absl::OkStatus(); }
  void EnterThread() {}
  void LeaveThread() {}
  void* Alloc(size_t bytes) { return std::malloc(bytes); }
  void Free(void* block) { std::free(block); }
};

}  // namespace

int main() {
  Malloc allocator;
  return spanpool::bench::Serve(allocator);
}

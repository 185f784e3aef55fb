// Replays a trace (replay.h) against the allocators of block_allocators.h. `malloc` is whosever
// library LD_PRELOAD names.

#include "bench/trace/block_allocators.h"
#include "bench/trace/replay.h"

int main(int argc, char** argv) {
  return spanpool::bench::ReplayMain(argc, argv, spanpool::bench::MakeBlockAllocator);
}

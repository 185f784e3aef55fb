// Replays a trace against one allocator and prints, as JSON, what that took: memory, or time. Never
// both at once, for looking at memory takes time, in which other threads and processes get on with
// what they do ahead of need.
//
//   PROGRAM --allocator NAME [--time] [--samples N] [--events N] TRACE
//
// Every block is touched once on each of its 4 KiB pages, as a program that uses what it asked for
// would.
//
// Memory is the anonymous memory of the process (/proc/self/smaps_rollup), and what the allocator
// says other processes hold for it, less what both were before: so it is what the allocator took
// from the system, its own records included, whichever allocator it is. It is looked at N times,
// and when most bytes are in use. It is counted without transparent huge pages, which would round
// it in ways that hide the allocator's doing.
//
// Time is that of the whole replay by the clock on the wall, since an allocator may have others
// work for it and wait; and by the processor's time of all threads of this process and of those
// others. Then what is still allocated is freed and the trace replayed again, which shows what the
// first time paid for memory that was new. The allocator `none`, which hands out the same memory
// again and again, shows which part is the replay's own: reading the trace and touching pages.
//
// All that the replay itself needs is allocated and touched before the first event.

#ifndef SPANPOOL_BENCH_TRACE_REPLAY_H_
#define SPANPOOL_BENCH_TRACE_REPLAY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "bench/trace/block_allocators.h"

namespace spanpool::bench {

// The main() of a program that can replay against what `make` makes, null for an unknown name.
int ReplayMain(int argc, char** argv,
               const std::function<std::unique_ptr<BlockAllocator>(std::string_view name)>& make);

// Bytes of anonymous memory of a process, from its smaps_rollup ("/proc/self/smaps_rollup").
// Allocates nothing. Ends the program if it cannot be read.
uint64_t AnonymousBytesOf(const char* smaps_rollup);

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_TRACE_REPLAY_H_

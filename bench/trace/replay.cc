// Replays a trace against one allocator and prints, as JSON, how much memory that took.
//
//   replay --allocator NAME [--samples N] [--events N] TRACE
//
// Every block is touched once on each of its 4 KiB pages, as a program that uses what it asked for
// would; then the anonymous memory of the process (/proc/self/smaps_rollup), less what it was
// before, is what the allocator took from the system, its own records included, whichever allocator
// it is. Memory is counted without transparent huge pages, which would round it in ways that hide
// the allocator's doing.
//
// All that the replay itself needs is allocated and touched before the first event.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>

#include "bench/trace/block_allocators.h"
#include "bench/trace/trace_format.h"
#include "nlohmann/json.hpp"

namespace spanpool::bench {
namespace {

[[noreturn]] void Fail(const std::string& why) {
  std::cerr << "replay: " << why << "\n";
  std::exit(1);
}

// Memory that no allocator under test sees.
template <typename T>
T* Mapped(size_t count) {
  void* memory = mmap(nullptr, std::max<size_t>(1, count) * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) Fail("no memory for the replay itself");
  return static_cast<T*>(memory);
}

// Bytes of anonymous memory of this process. Allocates nothing.
uint64_t AnonymousBytes() {
  static char text[4096];
  const int fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
  if (fd < 0) Fail("this kernel has no /proc/self/smaps_rollup");
  size_t length = 0;
  for (ssize_t n; (n = read(fd, text + length, sizeof(text) - 1 - length)) > 0;) {
    length += static_cast<size_t>(n);
  }
  close(fd);
  text[length] = 0;
  const char* line = std::strstr(text, "\nAnonymous:");
  if (line == nullptr) Fail("/proc/self/smaps_rollup has no line Anonymous");
  return std::strtoull(line + std::strlen("\nAnonymous:"), nullptr, 10) * 1024;
}

// Time that this thread has run, in the kernel's page faults too.
double ThreadNs() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

void Touch(void* block, size_t bytes) {
  auto* data = static_cast<volatile char*>(block);
  for (size_t i = 0; i < bytes; i += 4096) data[i] = 1;
  if (bytes > 0) data[bytes - 1] = 1;
}

struct Block {
  void* data;
  size_t bytes;
};

// A file, mapped; the first event lies behind the header.
struct Trace {
  const unsigned char* events;
  size_t event_bytes;

  TraceReader reader() const { return TraceReader(events, event_bytes); }
};

Trace Open(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) Fail(std::string("cannot read ") + path);
  const size_t bytes = static_cast<size_t>(status.st_size);
  TraceHeader header;
  if (bytes < sizeof(header)) Fail(std::string(path) + " is shorter than a trace's header");
  void* memory = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) Fail(std::string("cannot map ") + path);
  std::memcpy(&header, memory, sizeof(header));
  if (std::memcmp(header.magic, kTraceMagic, sizeof(header.magic)) != 0 ||
      header.event_bytes > bytes - sizeof(header)) {
    Fail(std::string(path) + " is no trace, or cut off");
  }
  return {static_cast<const unsigned char*>(memory) + sizeof(header), header.event_bytes};
}

struct Sample {
  uint64_t event;
  uint64_t live_bytes;  // asked for and not freed
  uint64_t footprint;   // taken from the system
  uint64_t holes;       // pieces that free memory is broken into, if known
};

// What an allocator rounds a block up to counts as the block, not as waste between blocks; but only
// up to the end of the last OS page that is touched, for there is no memory behind the rest.
uint64_t UsableAndTouched(BlockAllocator& allocator, const Block& block) {
  return std::min<uint64_t>(allocator.Usable(block.data, block.bytes),
                            (std::max<uint64_t>(1, block.bytes) + 4095) / 4096 * 4096);
}

// What is known of a trace before it is replayed.
struct Outline {
  uint64_t events = 0;
  uint64_t allocations = 0;
  uint64_t allocated_bytes = 0;
  uint64_t peak_live_bytes = 0;
  uint64_t peak_event = 0;  // the event after which that much is live
};

// Reads the trace twice, for its length and then for what it says. Allocates nothing that the
// allocator under test would be asked for.
Outline Read(const char* path, const Trace& trace, uint64_t max_events) {
  TraceReader counter = trace.reader();
  for (TraceEvent event; counter.Next(&event);) {
  }
  if (counter.broken()) Fail(std::string(path) + " has a broken event");
  constexpr uint64_t kFreed = UINT64_MAX;
  uint64_t* const bytes_of = Mapped<uint64_t>(counter.ids());
  Outline outline;
  uint64_t live = 0;
  uint64_t next_id = 0;
  TraceReader reader = trace.reader();
  for (TraceEvent event; outline.events < max_events && reader.Next(&event); ++outline.events) {
    if (event.kind == TraceEvent::Kind::kFree) {
      if (bytes_of[event.value] == kFreed) Fail(std::string(path) + " frees a block twice");
      live -= bytes_of[event.value];
      bytes_of[event.value] = kFreed;
      continue;
    }
    bytes_of[next_id++] = event.value;
    live += event.value;
    outline.allocated_bytes += event.value;
    if (live > outline.peak_live_bytes) {
      outline.peak_live_bytes = live;
      outline.peak_event = outline.events;
    }
  }
  outline.allocations = counter.ids();
  munmap(bytes_of, std::max<size_t>(1, outline.allocations) * sizeof(uint64_t));
  return outline;
}

nlohmann::json Replay(const Trace& trace, const Outline& outline, std::string_view name,
                      uint64_t samples) {
  Block* const blocks = Mapped<Block>(outline.allocations);
  Sample* const series = Mapped<Sample>(samples + 2);
  size_t sampled = 0;
  const uint64_t step = std::max<uint64_t>(1, outline.events / samples);
  std::unique_ptr<BlockAllocator> allocator = MakeBlockAllocator(name);
  if (allocator == nullptr) Fail("unknown allocator " + std::string(name));
  (void)AnonymousBytes();  // touches what reading touches
  const uint64_t before = AnonymousBytes();
  const auto footprint = [before] {
    const uint64_t now = AnonymousBytes();
    return now > before ? now - before : 0;
  };

  double looking_ns = 0;
  const double start_ns = ThreadNs();
  uint64_t live = 0;
  uint64_t usable = 0;
  uint64_t event_index = 0;
  uint64_t next_id = 0;
  uint64_t footprint_at_peak = 0;
  uint64_t usable_at_peak = 0;
  TraceReader reader = trace.reader();
  for (TraceEvent event; event_index < outline.events && reader.Next(&event); ++event_index) {
    if (event.kind == TraceEvent::Kind::kFree) {
      const Block& block = blocks[event.value];
      live -= block.bytes;
      usable -= UsableAndTouched(*allocator, block);
      allocator->Free(block.data, block.bytes);
    } else {
      Block& block = blocks[next_id++];
      block.bytes = event.value;
      block.data =
          allocator->Alloc(block.bytes, std::max<size_t>(16, size_t{1} << event.alignment_log2));
      if (block.data == nullptr) Fail("out of memory after event " + std::to_string(event_index));
      Touch(block.data, block.bytes);
      live += block.bytes;
      usable += UsableAndTouched(*allocator, block);
    }
    const bool at_peak = event_index == outline.peak_event;
    if (at_peak || (event_index % step == 0 && sampled <= samples)) {
      const double look_ns = ThreadNs();
      const uint64_t now = footprint();
      looking_ns += ThreadNs() - look_ns;
      series[sampled++] = {event_index, live, now, allocator->holes()};
      if (at_peak) {
        footprint_at_peak = now;
        usable_at_peak = usable;
      }
    }
  }
  const double spent_ns = ThreadNs() - start_ns - looking_ns;
  series[sampled++] = {event_index, live, footprint(), allocator->holes()};

  uint64_t peak_footprint = 0;
  nlohmann::json points = nlohmann::json::array();
  for (size_t i = 0; i < sampled; ++i) {
    peak_footprint = std::max(peak_footprint, series[i].footprint);
    points.push_back({series[i].event, series[i].live_bytes, series[i].footprint, series[i].holes});
  }
  return {{"events", outline.events},
          {"allocations", outline.allocations},
          {"allocated_bytes", outline.allocated_bytes},
          {"peak_live_bytes", outline.peak_live_bytes},
          {"peak_footprint", peak_footprint},
          {"footprint_at_peak_live", footprint_at_peak},
          {"usable_at_peak_live", usable_at_peak},
          {"ns_per_event", spent_ns / static_cast<double>(std::max<uint64_t>(1, event_index))},
          {"series", points}};
}

int Main(int argc, char** argv) {
  std::string_view allocator;
  const char* path = nullptr;
  uint64_t samples = 200;
  uint64_t events = UINT64_MAX;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--allocator" && i + 1 < argc) {
      allocator = argv[++i];
    } else if (argument == "--samples" && i + 1 < argc) {
      samples = std::clamp<uint64_t>(std::strtoull(argv[++i], nullptr, 10), 1, 100'000);
    } else if (argument == "--events" && i + 1 < argc) {
      events = std::strtoull(argv[++i], nullptr, 10);
    } else if (!argument.starts_with("-") && path == nullptr) {
      path = argv[i];
    } else {
      Fail("usage: replay --allocator NAME [--samples N] [--events N] TRACE");
    }
  }
  if (allocator.empty() || path == nullptr) {
    Fail("usage: replay --allocator NAME [--samples N] [--events N] TRACE");
  }
  (void)prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  const Trace trace = Open(path);
  const Outline outline = Read(path, trace, events);
  std::cout << Replay(trace, outline, allocator, samples).dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) { return spanpool::bench::Main(argc, argv); }

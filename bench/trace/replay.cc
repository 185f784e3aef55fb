#include "bench/trace/replay.h"

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
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>

#include "bench/harness.h"
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

// Time that this process has run, all threads, in the kernel's page faults too.
double ProcessNs() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
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
  uint64_t largest_bytes = 0;
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
    outline.largest_bytes = std::max(outline.largest_bytes, event.value);
    if (live > outline.peak_live_bytes) {
      outline.peak_live_bytes = live;
      outline.peak_event = outline.events;
    }
  }
  outline.allocations = counter.ids();
  munmap(bytes_of, std::max<size_t>(1, outline.allocations) * sizeof(uint64_t));
  return outline;
}

// The allocator `none`.
class None : public BlockAllocator {
 public:
  explicit None(uint64_t largest_bytes)
      : memory_(Mapped<char>(largest_bytes + kMaxAlignment)), bytes_(largest_bytes) {}
  ~None() override { munmap(memory_, bytes_ + kMaxAlignment); }

  void* Alloc(size_t, size_t alignment) override {
    if (alignment > kMaxAlignment) return nullptr;
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    return memory_ + ((address + alignment - 1) / alignment * alignment - address);
  }
  void Free(void*, size_t) override {}
  size_t Usable(void*, size_t bytes) override { return bytes; }

 private:
  static constexpr uint64_t kMaxAlignment = 1 << 20;  // populated, so not the format's 2^30

  char* const memory_;
  const uint64_t bytes_;
};

size_t AlignmentOf(const TraceEvent& event) {
  return std::max<size_t>(16, size_t{1} << event.alignment_log2);
}

// Replays all events; leaves what was not freed in `blocks`, where all else is null.
void ReplayOnce(const Trace& trace, const Outline& outline, BlockAllocator* allocator,
                Block* blocks) {
  uint64_t events = 0;
  uint64_t next_id = 0;
  TraceReader reader = trace.reader();
  for (TraceEvent event; events < outline.events && reader.Next(&event); ++events) {
    if (event.kind == TraceEvent::Kind::kFree) {
      Block& block = blocks[event.value];
      allocator->Free(block.data, block.bytes);
      block.data = nullptr;
      continue;
    }
    Block& block = blocks[next_id++];
    block.bytes = event.value;
    block.data = allocator->Alloc(block.bytes, AlignmentOf(event));
    if (block.data == nullptr) Fail("out of memory after event " + std::to_string(events));
    Touch(block.data, block.bytes);
  }
}

nlohmann::json ReplayForTime(const Trace& trace, const Outline& outline,
                             BlockAllocator* allocator) {
  Block* const blocks = Mapped<Block>(outline.allocations);
  const auto count = static_cast<double>(std::max<uint64_t>(1, outline.events));
  const double start_elsewhere_ns = allocator->ns_elsewhere();
  const double start_process_ns = ProcessNs();
  const double start_ns = NowNs(TimeOf::kWall);
  ReplayOnce(trace, outline, allocator, blocks);
  const double ns = NowNs(TimeOf::kWall) - start_ns;
  const double cpu_ns =
      ProcessNs() - start_process_ns + (allocator->ns_elsewhere() - start_elsewhere_ns);

  for (uint64_t id = 0; id < outline.allocations; ++id) {
    if (blocks[id].data != nullptr) allocator->Free(blocks[id].data, blocks[id].bytes);
  }
  const double again_ns = NowNs(TimeOf::kWall);
  ReplayOnce(trace, outline, allocator, blocks);
  return {{"events", outline.events},
          {"ns_per_op", ns / count},
          {"cpu_ns_per_op", cpu_ns / count},
          {"again_ns_per_op", (NowNs(TimeOf::kWall) - again_ns) / count}};
}

nlohmann::json ReplayForMemory(const Trace& trace, const Outline& outline,
                               BlockAllocator* allocator, uint64_t samples) {
  Block* const blocks = Mapped<Block>(outline.allocations);
  Sample* const series = Mapped<Sample>(samples + 2);
  size_t sampled = 0;
  const uint64_t step = std::max<uint64_t>(1, outline.events / samples);
  const auto held = [allocator] {
    return AnonymousBytesOf("/proc/self/smaps_rollup") + allocator->bytes_elsewhere();
  };
  (void)held();  // touches what looking touches
  const uint64_t before = held();
  const auto footprint = [before, held] {
    const uint64_t now = held();
    return now > before ? now - before : 0;
  };

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
      block.data = allocator->Alloc(block.bytes, AlignmentOf(event));
      if (block.data == nullptr) Fail("out of memory after event " + std::to_string(event_index));
      Touch(block.data, block.bytes);
      live += block.bytes;
      usable += UsableAndTouched(*allocator, block);
    }
    const bool at_peak = event_index == outline.peak_event;
    if (at_peak || (event_index % step == 0 && sampled <= samples)) {
      const uint64_t now = footprint();
      series[sampled++] = {event_index, live, now, allocator->holes()};
      if (at_peak) {
        footprint_at_peak = now;
        usable_at_peak = usable;
      }
    }
  }
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
          {"series", points}};
}

}  // namespace

uint64_t AnonymousBytesOf(const char* smaps_rollup) {
  static char text[4096];
  const int fd = open(smaps_rollup, O_RDONLY | O_CLOEXEC);
  if (fd < 0) Fail(std::string("cannot read ") + smaps_rollup);
  size_t length = 0;
  for (ssize_t n; (n = read(fd, text + length, sizeof(text) - 1 - length)) > 0;) {
    length += static_cast<size_t>(n);
  }
  close(fd);
  text[length] = 0;
  const char* line = std::strstr(text, "\nAnonymous:");
  if (line == nullptr) Fail(std::string(smaps_rollup) + " has no line Anonymous");
  return std::strtoull(line + std::strlen("\nAnonymous:"), nullptr, 10) * 1024;
}

int ReplayMain(int argc, char** argv,
               const std::function<std::unique_ptr<BlockAllocator>(std::string_view)>& make) {
  std::string_view name;
  const char* path = nullptr;
  bool time = false;
  uint64_t samples = 200;
  uint64_t events = UINT64_MAX;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--allocator" && i + 1 < argc) {
      name = argv[++i];
    } else if (argument == "--time") {
      time = true;
    } else if (argument == "--samples" && i + 1 < argc) {
      samples = std::clamp<uint64_t>(std::strtoull(argv[++i], nullptr, 10), 1, 100'000);
    } else if (argument == "--events" && i + 1 < argc) {
      events = std::strtoull(argv[++i], nullptr, 10);
    } else if (!argument.starts_with("-") && path == nullptr) {
      path = argv[i];
    } else {
      name = {};
      break;
    }
  }
  if (name.empty() || path == nullptr) {
    Fail("usage: --allocator NAME [--time] [--samples N] [--events N] TRACE");
  }
  (void)prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  const Trace trace = Open(path);
  const Outline outline = Read(path, trace, events);
  const std::unique_ptr<BlockAllocator> allocator =
      name == "none" ? std::make_unique<None>(outline.largest_bytes) : make(name);
  if (allocator == nullptr) Fail("unknown allocator " + std::string(name));
  const nlohmann::json report = time ? ReplayForTime(trace, outline, allocator.get())
                                     : ReplayForMemory(trace, outline, allocator.get(), samples);
  std::cout << report.dump() << "\n";
  return 0;
}

}  // namespace spanpool::bench

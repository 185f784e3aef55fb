// Suite `heap`: what the heap of allocator/ takes by itself, without a daemon.
//
//   span_lend_return_8k  Grant and Return of a span of one page, one thread; the memory is there
//   page_cached          one page through a page cache, refills under a heap's lock included
//   lend_2_threads       two threads lend and return spans of different classes: speedup over one
//   fresh_arena          creating, sealing and backing an arena's memfd, and where the time goes
//   scavenge             1 GiB is used and freed: seconds until the memfds have a tenth of it left,
//                        and how long giving it back at once takes
//   metadata             bytes of the heap's own records over bytes of arenas full of small spans
//
// Read ns figures as multiples of the probe's mutex_pair in the same case.

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/anonymous_arena_source.h"
#include "allocator/arena_source.h"
#include "allocator/check.h"
#include "allocator/heap.h"
#include "allocator/lock_rank.h"
#include "allocator/memfd_arena_source.h"
#include "allocator/metadata_source.h"
#include "allocator/page_alloc.h"
#include "allocator/page_cache.h"
#include "allocator/page_heap.h"
#include "allocator/scavenger.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/units.h"
#include "bench/harness.h"
#include "bench/probe.h"
#include "benchmark/benchmark.h"

namespace spanpool::bench {
namespace {

using Clock = std::chrono::steady_clock;

double MsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

constexpr uint64_t kHeapBytes = uint64_t{256} << 20;

// A heap on private memory, whose pages have been backed and used before.
struct WarmHeap {
  WarmHeap()
      : source(64),
        heap(HeapOptions{.limit_bytes = kHeapBytes, .reserve_bytes = kHeapBytes / 4}, &source,
             nullptr) {
    SPANPOOL_CHECK(heap.Replenish().ok());
  }
  AnonymousArenaSource source;
  Heap heap;
};

void LendAndReturn(Heap& heap, SpanClass span_class, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const absl::StatusOr<Span*> span = heap.Grant(span_class);
    SPANPOOL_CHECK(span.ok()) << span.status();
    benchmark::DoNotOptimize(*span);
    heap.Return(*span);
  }
}

SpanClass ClassOf(size_t bytes) { return SpanClass(SizeClassFor(bytes), /*noscan=*/true); }

void AddSpanLendReturn(Suite& suite) {
  SPANPOOL_CHECK(SpanPages(SizeClassFor(64)) == PageCount(1));
  const auto warm = std::make_shared<WarmHeap>();
  suite.Add("span_lend_return_8k", "spanpool",
            TimedRound("ns_per_pair", suite.round_time(), TimeOf::kThread,
                       [warm](int64_t n) { LendAndReturn(warm->heap, ClassOf(64), n); }));
  AddProbes(suite, "span_lend_return_8k", {"mutex_pair", "xadd", "cas_pair", "core_round_trip"});
}

// Takes every page of an arena one by one, then gives all back at once, which is not timed.
class CachedPages {
 public:
  CachedPages() {
    SPANPOOL_CHECK(pages_.Grow(PageRange{PageId(0), PageCount(kPagesPerArena)}).ok());
  }

  double NsPerPage() {
    const double start = NowNs(TimeOf::kThread);
    for (size_t i = 0; i < kPagesPerArena; ++i) {
      std::optional<PageAlloc::Run> run = cache_.Alloc(PageCount(1));
      if (!run.has_value()) {
        RankedMutexLock lock(&mu_);
        SPANPOOL_CHECK(cache_.Refill(&pages_));
        run = cache_.Alloc(PageCount(1));
      }
      benchmark::DoNotOptimize(run->first);
    }
    const double ns = (NowNs(TimeOf::kThread) - start) / kPagesPerArena;
    cache_.Flush(&pages_);
    pages_.Free(PageRange{PageId(0), PageCount(kPagesPerArena)});
    return ns;
  }

 private:
  RankedMutex mu_{LockRank::kHeap};
  PageAlloc pages_;
  PageCache cache_;
};

void AddPageCached(Suite& suite) {
  const auto pages = std::make_shared<CachedPages>();
  const int repeats = suite.quick() ? 8 : 64;
  suite.Add("page_cached", "spanpool", [pages, repeats]() -> absl::StatusOr<Metrics> {
    double sum = 0;
    for (int i = 0; i < repeats; ++i) sum += pages->NsPerPage();
    return Metrics{{"ns_per_op", "ns", sum / repeats}};
  });
  AddProbes(suite, "page_cached", {"mutex_pair"});
}

struct alignas(128) PairCount {
  std::atomic<int64_t> pairs{0};
};

// Lends and returns by threads, one for each (heap, class), at once for `time`. Pairs a nanosecond
// of all together: the ninth decile of short slices, for in the others a busy machine ran something
// else.
double PairsPerNs(const std::vector<std::pair<Heap*, SpanClass>>& lenders, absl::Duration time) {
  std::atomic<bool> stop{false};
  std::vector<PairCount> counts(lenders.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < lenders.size(); ++i) {
    threads.emplace_back([&stop, &count = counts[i], lender = lenders[i]] {
      int64_t n = 0;
      while (!stop.load(std::memory_order_relaxed)) {
        LendAndReturn(*lender.first, lender.second, 64);
        count.pairs.store(n += 64, std::memory_order_relaxed);
      }
    });
  }
  const auto total = [&counts] {
    int64_t sum = 0;
    for (const PairCount& count : counts) sum += count.pairs.load(std::memory_order_relaxed);
    return sum;
  };
  std::vector<double> slices;
  const double start = NowNs(TimeOf::kWall);
  double slice_start = start;
  int64_t pairs = total();
  // The first slices are the threads' start; the decile leaves them out.
  while (slice_start - start < absl::ToDoubleNanoseconds(time) || slices.size() < 10) {
    absl::SleepFor(absl::Milliseconds(1));
    const int64_t pairs_now = total();
    const double now = NowNs(TimeOf::kWall);
    slices.push_back(static_cast<double>(pairs_now - pairs) / (now - slice_start));
    pairs = pairs_now;
    slice_start = now;
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  std::sort(slices.begin(), slices.end());
  return slices[slices.size() * 9 / 10];
}

void AddLendTwoThreads(Suite& suite) {
  const auto first = std::make_shared<WarmHeap>();
  const auto second = std::make_shared<WarmHeap>();
  const absl::Duration time = suite.round_time();
  const auto speedup = [time](Heap* a, Heap* b) -> absl::StatusOr<Metrics> {
    const double one = PairsPerNs({{a, ClassOf(64)}}, time);
    const double two = PairsPerNs({{a, ClassOf(64)}, {b, ClassOf(128)}}, time);
    return Metrics{{"speedup", "ratio", two / one}};
  };
  suite.Add("lend_2_threads", "spanpool",
            [speedup, first] { return speedup(&first->heap, &first->heap); });
  // What two threads that share nothing get on this machine at this moment.
  suite.Add("lend_2_threads", "probe",
            [speedup, first, second] { return speedup(&first->heap, &second->heap); });
}

absl::StatusOr<Metrics> FreshArena() {
  MemfdArenaSource source("bench", /*table_bytes=*/0);
  const Clock::time_point start = Clock::now();
  absl::Status status = source.Create(ArenaIndex(0));
  const double create_ms = MsSince(start);
  if (!status.ok()) return status;
  const Clock::time_point backing = Clock::now();
  status = source.Populate(PageRange{PageId(0), PageCount(kPagesPerArena)});
  const double back_ms = MsSince(backing);
  if (!status.ok()) return status;
  return Metrics{{"ms", "ms", create_ms + back_ms},
                 {"create_and_seal_ms", "ms", create_ms},
                 {"back_ms", "ms", back_ms}};
}

absl::StatusOr<Metrics> TouchFreshMemory() {
  AnonymousArenaSource source(1);
  absl::Status status = source.Create(ArenaIndex(0));
  if (!status.ok()) return status;
  const Clock::time_point start = Clock::now();
  status = source.Populate(PageRange{PageId(0), PageCount(kPagesPerArena)});
  if (!status.ok()) return status;
  return Metrics{{"ms", "ms", MsSince(start)}};
}

// A heap on memfds that has used `bytes` and freed them all, and how much memory its files have.
class AfterPeak {
 public:
  static constexpr uint64_t kReserveBytes = uint64_t{64} << 20;

  explicit AfterPeak(uint64_t bytes)
      : peak_bytes_(bytes),
        heap_(
            PageHeapOptions{.limit_bytes = bytes, .reserve_bytes = kReserveBytes, .max_arenas = 64},
            &source_, MetadataSource::System()),
        scavenger_(&heap_, kReserveBytes, [this] { return Nanos(); }) {
    std::vector<Span*> spans;
    const SpanClass large(kLargeSizeClass, /*noscan=*/true);
    const PageCount pages(kPagesPerArena / 4);
    for (uint64_t used = 0; used < bytes; used += Bytes(pages)) {
      absl::StatusOr<Span*> span = heap_.Allocate(large, pages, PageCount(1));
      SPANPOOL_CHECK(span.ok()) << span.status();
      spans.push_back(*span);
    }
    for (Span* span : spans) heap_.Free(span);
    SPANPOOL_CHECK(FileBytes() >= bytes);
  }

  // Seconds of the scavenger's steps and the sleeps between them, which are counted, not slept.
  double FallSeconds() {
    const int64_t began = Nanos();
    while (true) {
      const absl::Duration sleep = scavenger_.Step();
      if (sleep == Scavenger::kIdle) return static_cast<double>(Nanos() - began) / 1e9;
      slept_ += sleep;
    }
  }
  double TrimMs() {
    const Clock::time_point start = Clock::now();
    scavenger_.Trim();
    return MsSince(start);
  }
  double FilesOverPeak() const {
    return static_cast<double>(FileBytes()) / static_cast<double>(peak_bytes_);
  }

 private:
  int64_t Nanos() const {
    return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count() +
           absl::ToInt64Nanoseconds(slept_);
  }
  uint64_t FileBytes() const {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < heap_.arenas_end(); ++i) {
      struct stat info;
      SPANPOOL_CHECK(fstat(source_.data_fd(ArenaIndex(i)), &info) == 0);
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
    }
    return bytes;
  }

  const uint64_t peak_bytes_;
  absl::Duration slept_;
  MemfdArenaSource source_{"bench", /*table_bytes=*/0};
  PageHeap heap_;
  Scavenger scavenger_;
};

absl::StatusOr<Metrics> Scavenge(uint64_t bytes) {
  AfterPeak peak(bytes);
  const double fall_s = peak.FallSeconds();
  const double kept = peak.FilesOverPeak();
  const double trim_ms = AfterPeak(bytes).TrimMs();
  return Metrics{{"fall_s", "s", fall_s}, {"kept", "fraction", kept}, {"trim_ms", "ms", trim_ms}};
}

// Puts no memory behind pages: the records of a heap over it are what they would be with it.
class NoMemory : public ArenaSource {
 public:
  absl::Status Create(ArenaIndex) override { return absl::OkStatus(); }
  absl::Status Populate(PageRange) override { return absl::OkStatus(); }
  absl::Status Discard(PageRange) override { return absl::OkStatus(); }
};

// Fills `bytes` of arenas with one-page spans: as many records as so much memory can have.
absl::StatusOr<Metrics> MetadataFraction(size_t block_bytes, uint64_t bytes) {
  NoMemory source;
  Heap heap(HeapOptions{.limit_bytes = bytes, .reserve_bytes = 0}, &source, nullptr);
  while (heap.Grant(ClassOf(block_bytes)).ok()) {
  }
  const HeapStats stats = heap.stats();
  return Metrics{
      {"fraction", "fraction",
       static_cast<double>(stats.metadata_bytes) / static_cast<double>(stats.reserved_bytes)}};
}

void Fill(Suite& suite, const std::vector<std::string>&) {
  AddSpanLendReturn(suite);
  AddPageCached(suite);
  AddLendTwoThreads(suite);
  suite.Add("fresh_arena", "spanpool", FreshArena);
  suite.Add("fresh_arena", "probe", TouchFreshMemory);
  const uint64_t bytes = kHeapBytes * (suite.quick() ? 1 : 4);
  suite.Add("scavenge", "spanpool", [bytes] { return Scavenge(bytes); });
  suite.Add("metadata", "spanpool", [bytes] { return MetadataFraction(64, bytes); });
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "heap", spanpool::bench::Fill);
}

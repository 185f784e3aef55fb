// What the heap's main steps cost, beside what a lock costs on the same machine in the same run.
//
//   bazel run //allocator:heap_benchmark -- --benchmark_repetitions=9

#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "allocator/check.h"
#include "allocator/faulty_arena_source.h"
#include "allocator/heap.h"
#include "allocator/lock_rank.h"
#include "allocator/memfd_arena_source.h"
#include "allocator/page_alloc.h"
#include "allocator/page_cache.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

void MutexPair(benchmark::State& state) {
  RankedMutex mu(LockRank::kLeaf);
  for (auto _ : state) {
    RankedMutexLock lock(&mu);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(MutexPair);

// One single-page span after another, granted and given back; every thread has its own class.
void GrantReturn(benchmark::State& state) {
  static FaultyArenaSource* source;
  static Heap* heap;
  if (state.thread_index() == 0) {
    source = new FaultyArenaSource();
    HeapOptions options;
    options.limit_bytes = 16 * kArenaBytes;
    options.reserve_bytes = kArenaBytes;
    heap = new Heap(options, source, nullptr);
    SPANPOOL_CHECK(heap->Replenish().ok());
  }
  const SpanClass span_class(SizeClassFor(8192), state.thread_index() % 2 == 0);
  for (auto _ : state) {
    absl::StatusOr<Span*> span = heap->Grant(span_class);
    heap->Return(*span);
  }
  if (state.thread_index() == 0) {
    delete heap;
    delete source;
  }
}
BENCHMARK(GrantReturn)->Threads(1)->Threads(2)->UseRealTime();

// The same, 64 spans at a time.
void GrantReturn64(benchmark::State& state) {
  FaultyArenaSource source;
  HeapOptions options;
  options.limit_bytes = 16 * kArenaBytes;
  options.reserve_bytes = kArenaBytes;
  Heap heap(options, &source, nullptr);
  SPANPOOL_CHECK(heap.Replenish().ok());
  std::vector<Span*> spans;
  for (auto _ : state) {
    for (int i = 0; i < 64; ++i) spans.push_back(*heap.Grant(SpanClass(SizeClassFor(64), true)));
    for (Span* span : spans) heap.Return(span);
    spans.clear();
  }
  state.SetItemsProcessed(state.iterations() * 64);
}
BENCHMARK(GrantReturn64);

// A heap of 1 GiB of one-page spans, half of them listed, made of what is known of them.
void Restore(benchmark::State& state) {
  constexpr uint32_t kArenas = 16;
  constexpr uint64_t kSpans = kArenas * kPagesPerArena;
  MemfdArenaSource source("benchmark", 0);
  std::vector<ArenaIndex> arenas;
  std::vector<SpanState> spans;
  for (uint32_t i = 0; i < kArenas; ++i) {
    arenas.emplace_back(i);
    SPANPOOL_CHECK(source.Create(arenas.back()).ok());
  }
  SPANPOOL_CHECK(source.Populate({PageId(0), PageCount(kSpans)}).ok());
  for (uint64_t page = 0; page < kSpans; ++page) {
    spans.push_back({PageId(page), PageCount(1),
                     SpanClass(SizeClassFor(static_cast<size_t>(state.range(0))), true),
                     page % 2 == 0 ? SpanState::Place::kOnLoan : SpanState::Place::kListed});
  }
  for (auto _ : state) {
    HeapOptions options;
    options.limit_bytes = kArenas * kArenaBytes;
    auto heap = std::make_unique<Heap>(options, &source, nullptr);
    SPANPOOL_CHECK(heap->Restore(arenas, spans).ok());
    state.PauseTiming();
    SPANPOOL_CHECK(heap->stats().on_loan_bytes == kArenas * kArenaBytes / 2);
    heap.reset();
    state.ResumeTiming();
  }
}
BENCHMARK(Restore)->Arg(8192)->Arg(64)->Arg(8)->Unit(benchmark::kMillisecond);

void PageCached(benchmark::State& state) {
  PageAlloc pages;
  SPANPOOL_CHECK(pages.Grow({PageId(0), PageCount(kPagesPerArena * 4)}).ok());
  PageCache cache;
  std::vector<PageId> taken;
  for (auto _ : state) {
    std::optional<PageAlloc::Run> run = cache.Alloc(PageCount(1));
    if (!run.has_value()) {
      cache.Flush(&pages);
      if (!cache.Refill(&pages)) {
        state.PauseTiming();
        for (const PageId page : taken) pages.Free({page, PageCount(1)});
        taken.clear();
        state.ResumeTiming();
        cache.Refill(&pages);
      }
      run = cache.Alloc(PageCount(1));
    }
    taken.push_back(run->first);
  }
}
BENCHMARK(PageCached);

}  // namespace
}  // namespace spanpool

BENCHMARK_MAIN();

#include "allocator/run_pool.h"

#include <bit>

#include "allocator/check.h"
#include "allocator/size_classes.h"

namespace spanpool {

RunOrder RunOrderFor(PageCount pages) {
  RunOrder order(0);
  while (order.value() < kRunOrders && RunPages(order) < pages) ++order;
  return order;
}

RunPool::~RunPool() { SPANPOOL_CHECK_EQ(taken(), PageCount(0)); }

// A manual span keeps its runs' order in blocks_in_use and their bitmap in its own word: bit i is
// run i, taken.
PageRange RunPool::TakeFromLocked(Span* span, RunOrder order) {
  const uint64_t i = static_cast<uint64_t>(std::countr_one(span->own_bits));
  span->own_bits |= uint64_t{1} << i;
  if (span->own_bits == AllRuns(order)) free_[order.value()].Remove(span);
  taken_ += RunPages(order);
  return {span->first_page + PageCount(i * RunPages(order).value()), RunPages(order)};
}

bool RunPool::TakeLocked(RunOrder order, PageRange* run) {
  Span* const span = free_[order.value()].First();
  if (span == nullptr) return false;
  *run = TakeFromLocked(span, order);
  return true;
}

absl::StatusOr<PageRange> RunPool::Alloc(RunOrder order) {
  SPANPOOL_CHECK_LT(order.value(), kRunOrders);
  {
    RankedMutexLock lock(&mu_);
    PageRange run;
    if (TakeLocked(order, &run)) return run;
  }
  // Several threads may come here at once and each make a span: all will be used.
  absl::StatusOr<Span*> span =
      heap_->Allocate(SpanClass(kLargeSizeClass, /*noscan=*/true), kSpanPages, PageCount(1));
  if (!span.ok()) return span.status();
  (*span)->blocks_in_use = order.value();
  (*span)->sweep_generation.store(Span::kManual, std::memory_order_relaxed);
  RankedMutexLock lock(&mu_);
  held_ += kSpanPages;
  free_[order.value()].Push(*span);
  return TakeFromLocked(*span, order);
}

void RunPool::Free(PageRange run) {
  Span* const span = heap_->SpanOf(run.first);
  SPANPOOL_CHECK(span != nullptr &&
                 span->sweep_generation.load(std::memory_order_relaxed) == Span::kManual)
      << "page " << run.first << " is of no manual span";
  const RunOrder order(static_cast<uint8_t>(span->blocks_in_use));
  SPANPOOL_CHECK_EQ(run.count, RunPages(order));
  const uint64_t offset = (run.first - span->first_page).value();
  SPANPOOL_CHECK_EQ(offset % run.count.value(), 0u);
  const uint64_t bit = uint64_t{1} << (offset / run.count.value());
  {
    RankedMutexLock lock(&mu_);
    SPANPOOL_CHECK((span->own_bits & bit) != 0) << "the run at page " << run.first << " is free";
    SpanSet& free = free_[order.value()];
    if (span->own_bits == AllRuns(order)) free.Push(span);
    span->own_bits &= ~bit;
    taken_ -= run.count;
    if (span->own_bits != 0) return;
    free.Remove(span);
    held_ -= kSpanPages;
  }
  heap_->Free(span);
}

PageCount RunPool::taken() const {
  RankedMutexLock lock(&mu_);
  return taken_;
}

PageCount RunPool::held() const {
  RankedMutexLock lock(&mu_);
  return held_;
}

void RunPool::CheckInvariants() const {
  RankedMutexLock lock(&mu_);
  PageCount free_pages;
  for (uint8_t k = 0; k < kRunOrders; ++k) {
    const RunOrder order(k);
    free_[k].CheckInvariants();
    free_[k].ForEach([&](const Span* span) {
      SPANPOOL_CHECK_EQ(span->sweep_generation.load(), Span::kManual);
      SPANPOOL_CHECK_EQ(span->blocks_in_use, k);
      SPANPOOL_CHECK_EQ(span->pages, kSpanPages);
      SPANPOOL_CHECK_NE(span->own_bits, 0u);
      SPANPOOL_CHECK_NE(span->own_bits, AllRuns(order));
      SPANPOOL_CHECK_EQ(span->own_bits & ~AllRuns(order), 0u);
      const uint64_t runs = static_cast<uint64_t>(std::popcount(AllRuns(order) & ~span->own_bits));
      free_pages += PageCount(runs * RunPages(order).value());
    });
  }
  SPANPOOL_CHECK_EQ(held_, taken_ + free_pages);
}

absl::StatusOr<PageRange> RunCache::Alloc(RunOrder order) {
  SPANPOOL_CHECK_LT(order.value(), kRunOrders);
  std::vector<PageRange>& runs = runs_[order.value()];
  // Filled when empty, and not before.
  const size_t wanted = runs.empty() ? Capacity(order) / 2 : 0;
  while (runs.size() < wanted) {
    absl::StatusOr<PageRange> run = pool_->Alloc(order);
    if (!run.ok()) {
      if (runs.empty()) return run;
      break;  // fewer will do
    }
    runs.push_back(*run);
  }
  const PageRange run = runs.back();
  runs.pop_back();
  return run;
}

void RunCache::Free(PageRange run) {
  const RunOrder order = RunOrderFor(run.count);
  SPANPOOL_CHECK_LT(order.value(), kRunOrders);
  if (runs_[order.value()].size() >= Capacity(order)) ReleaseDownTo(order, Capacity(order) / 2);
  runs_[order.value()].push_back(run);
}

void RunCache::ReleaseDownTo(RunOrder order, size_t size) {
  std::vector<PageRange>& runs = runs_[order.value()];
  // The oldest go: what was given back last is the warmest.
  const size_t surplus = runs.size() > size ? runs.size() - size : 0;
  for (size_t i = 0; i < surplus; ++i) pool_->Free(runs[i]);
  runs.erase(runs.begin(), runs.begin() + static_cast<std::ptrdiff_t>(surplus));
}

void RunCache::Flush() {
  for (uint8_t order = 0; order < kRunOrders; ++order) ReleaseDownTo(RunOrder(order), 0);
}

}  // namespace spanpool

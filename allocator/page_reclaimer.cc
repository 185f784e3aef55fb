#include "allocator/page_reclaimer.h"

#include <algorithm>
#include <bit>

#include "allocator/check.h"
#include "allocator/span.h"

namespace spanpool {

void PageReclaimer::Begin(uint64_t generation, uint32_t arenas) {
  generation_ = generation;
  end_ = uint64_t{arenas} * kPagesPerArena;
  // Sweepers see these three by joining the sweep, which is opened after.
  next_.store(0, std::memory_order_relaxed);
  credit_.store(0, std::memory_order_relaxed);
}

PageCount PageReclaimer::Reclaim(const ActiveSweep::Token& token, PageCount wanted) {
  SPANPOOL_CHECK(token);
  PageCount freed = TakeCredit(wanted);
  uint64_t swept = 0;
  while (freed < wanted && swept < kSpareTries + wanted.value()) {
    // The look before the claim keeps the index from running away.
    if (next_.load(std::memory_order_relaxed) >= end_) return freed;
    const uint64_t first = next_.fetch_add(kClaimPages, std::memory_order_relaxed);
    if (first >= end_) return freed;
    freed += ReclaimFrom(token, PageId(first), &swept);
  }
  if (freed > wanted) {
    credit_.fetch_add((freed - wanted).value(), std::memory_order_relaxed);
    freed = wanted;
  }
  return freed;
}

PageCount PageReclaimer::TakeCredit(PageCount wanted) {
  uint64_t credit = credit_.load(std::memory_order_relaxed);
  uint64_t taken;
  do {
    taken = std::min(credit, wanted.value());
    if (taken == 0) return PageCount(0);
  } while (!credit_.compare_exchange_weak(credit, credit - taken, std::memory_order_relaxed));
  return PageCount(taken);
}

PageCount PageReclaimer::ReclaimFrom(const ActiveSweep::Token& token, PageId first,
                                     uint64_t* swept) {
  const Arena* const arena = map_->Find(ArenaOf(first));
  if (arena == nullptr) return PageCount(0);  // a hole
  PageCount freed;
  uint64_t bits = arena->listed.word(first.value() % kPagesPerArena / 64);
  for (; bits != 0; bits &= bits - 1) {
    const PageId page = first + PageCount(static_cast<uint64_t>(std::countr_zero(bits)));
    // It may have been granted, swept or freed since the bits were read. Then its generation, or
    // that of the record's next span, is not that of an unswept span, and never will be again.
    Span* const span = map_->SpanOf(page);
    if (span == nullptr) continue;
    uint64_t expected = generation_ - 2;
    // acquire: pairs with the release in CentralList::ListLocked.
    if (span->sweep_generation.compare_exchange_strong(
            expected, generation_ - 1, std::memory_order_acquire, std::memory_order_relaxed)) {
      ++*swept;
      freed += lists_[span->span_class.value()]->SweepOwned(token, span);
    }
  }
  return freed;
}

}  // namespace spanpool

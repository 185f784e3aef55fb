#include "allocator/central_list.h"

#include <algorithm>
#include <bit>

#include "allocator/check.h"

namespace spanpool {
namespace {

// Spans that a grant may sweep before it asks for a new one.
constexpr int kSweepTries = 100;

}  // namespace

CentralList::CentralList(SpanClass span_class, PageHeap* heap, BlockStates* states,
                         Specials* specials)
    : span_class_(span_class), heap_(heap), states_(states), specials_(specials) {}

Span* CentralList::Take(ActiveSweep* sweep) {
  SPANPOOL_CHECK(!span_class_.large());
  // The common case of a list without spans costs no lock. A span that comes in meanwhile is
  // missed, as if it had come later.
  if (sets_[kPartial][0].empty() && sets_[kPartial][1].empty() && sets_[kFull][0].empty() &&
      sets_[kFull][1].empty()) {
    return nullptr;
  }
  {
    RankedMutexLock lock(&mu_);
    if (Span* const span = SweptSet(kPartial).Pop(); span != nullptr) {
      CountOut(*span);
      span->sweep_generation.store(Span::kOnLoan, std::memory_order_relaxed);
      return span;
    }
    if (UnsweptSet(kPartial).empty() && UnsweptSet(kFull).empty()) return nullptr;
  }
  const ActiveSweep::Token token = sweep->Begin();
  if (!token) return nullptr;
  for (int tries = 0; tries < kSweepTries; ++tries) {
    Span* span;
    {
      RankedMutexLock lock(&mu_);
      span = TakeUnsweptLocked(kPartial);
      if (span == nullptr) span = TakeUnsweptLocked(kFull);
    }
    if (span == nullptr) return nullptr;
    CountOut(*span);
    sweep->CountSwept(token, span->pages);
    const std::vector<FreedBlock> due = SweepBlocks(span);
    if (span->blocks_in_use < span->blocks) {
      span->sweep_generation.store(Span::kOnLoan, std::memory_order_relaxed);
      Report(due);
      return span;
    }
    RankedMutexLock lock(&mu_);
    ListLocked(span);
  }
  return nullptr;
}

void CentralList::Return(Span* span) {
  std::vector<FreedBlock> due;
  if (TakeBack(span, &due)) heap_->Free(span);
  Report(due);
}

bool CentralList::TakeBack(Span* span, std::vector<FreedBlock>* due) {
  uint64_t generation = Span::kOnLoan;
  SPANPOOL_CHECK(span->sweep_generation.compare_exchange_strong(generation, Span::kReturning,
                                                                std::memory_order_relaxed))
      << "returning a span that is not on loan; its generation is " << generation;
  SPANPOOL_CHECK_EQ(span->span_class, span_class_);
  span->needs_zero = true;  // its holder may have written anywhere
  const std::vector<FreedBlock> freed = SweepBlocks(span);
  due->insert(due->end(), freed.begin(), freed.end());
  if (span->blocks_in_use == 0) return true;
  if (SpanJournal* const journal = heap_->journal(); journal != nullptr) journal->Listed(*span);
  RankedMutexLock lock(&mu_);
  ListLocked(span);
  return false;
}

void CentralList::Restore(Span* span) {
  SPANPOOL_CHECK_EQ(span->sweep_generation.load(std::memory_order_relaxed), Span::kOnLoan);
  SPANPOOL_CHECK_EQ(span->span_class, span_class_);
  const absl::Span<uint64_t> bits(span->bits(), span->bitmap_words());
  std::fill(bits.begin(), bits.end(), ~uint64_t{0});
  if (span->blocks % 64 != 0) bits.back() = (uint64_t{1} << (span->blocks % 64)) - 1;
  span->blocks_in_use = static_cast<uint16_t>(span->blocks);
  RankedMutexLock lock(&mu_);
  ListLocked(span);
}

void CentralList::BeginCycle() {
  RankedMutexLock lock(&mu_);
  SPANPOOL_CHECK(UnsweptSet(kPartial).empty());
  SPANPOOL_CHECK(UnsweptSet(kFull).empty());
  generation_ += 2;
}

CentralList::Swept CentralList::SweepOne(const ActiveSweep::Token& token, Kind kind) {
  SPANPOOL_CHECK(token);
  if (sets_[kind][0].empty() && sets_[kind][1].empty()) return {};
  Span* span;
  {
    RankedMutexLock lock(&mu_);
    span = TakeUnsweptLocked(kind);
  }
  if (span == nullptr) return {};
  const PageCount pages = span->pages;
  return {pages, SweepListed(token, span)};
}

PageCount CentralList::SweepOwned(const ActiveSweep::Token& token, Span* span) {
  SPANPOOL_CHECK(token);
  {
    RankedMutexLock lock(&mu_);
    // A taker may have popped it before it saw that it is ours.
    if (span->set != nullptr) span->set->Remove(span);
  }
  return SweepListed(token, span);
}

Span* CentralList::TakeUnsweptLocked(Kind kind) {
  SpanSet& set = UnsweptSet(kind);
  while (Span* const span = set.Pop()) {
    uint64_t expected = generation_ - 2;
    // acquire: pairs with the release in ListLocked. Fails if the page reclaimer was first.
    if (span->sweep_generation.compare_exchange_strong(
            expected, generation_ - 1, std::memory_order_acquire, std::memory_order_relaxed)) {
      return span;
    }
    SPANPOOL_CHECK_EQ(expected, generation_ - 1);
  }
  return nullptr;
}

void CentralList::Report(const std::vector<FreedBlock>& due) {
  if (!due.empty()) specials_->Report(due);
}

std::vector<FreedBlock> CentralList::SweepBlocks(Span* span) {
  const absl::Span<uint64_t> bits(span->bits(), span->bitmap_words());
  std::fill(bits.begin(), bits.end(), 0);
  const uint32_t count = states_ == nullptr ? 0 : states_->Sweep(*span, bits);
  SPANPOOL_CHECK_LE(count, span->blocks);
#if SPANPOOL_DCHECK_IS_ON
  uint32_t set = 0;
  for (const uint64_t word : bits) set += static_cast<uint32_t>(std::popcount(word));
  SPANPOOL_CHECK_EQ(set, count);
  if (span->blocks % 64 != 0) SPANPOOL_CHECK_EQ(bits.back() >> (span->blocks % 64), 0u);
#endif
  span->blocks_in_use = static_cast<uint16_t>(count);
  return specials_ == nullptr ? std::vector<FreedBlock>() : specials_->TakeDue(span);
}

PageCount CentralList::SweepListed(const ActiveSweep::Token& token, Span* span) {
  const PageCount pages = span->pages;
  token.sweep().CountSwept(token, pages);
  CountOut(*span);
  const std::vector<FreedBlock> due = SweepBlocks(span);
  const bool empty = span->blocks_in_use == 0;
  if (empty) {
    heap_->Free(span);
  } else {
    RankedMutexLock lock(&mu_);
    ListLocked(span);
  }
  Report(due);
  return empty ? pages : PageCount(0);
}

void CentralList::ListLocked(Span* span) {
  SPANPOOL_DCHECK_GT(span->blocks_in_use, 0u);
  CountIn(*span);
  // release: pairs with the acquire of whoever swaps it to sweep the span.
  span->sweep_generation.store(generation_, std::memory_order_release);
  SweptSet(span->blocks_in_use < span->blocks ? kPartial : kFull).Push(span);
}

void CentralList::CountIn(const Span& span) {
  heap_->map().SetListed(span, true);
  listed_pages_.fetch_add(span.pages.value(), std::memory_order_relaxed);
  listed_spans_.fetch_add(1, std::memory_order_relaxed);
  live_blocks_.fetch_add(span.blocks_in_use, std::memory_order_relaxed);
}

void CentralList::CountOut(const Span& span) {
  heap_->map().SetListed(span, false);
  listed_pages_.fetch_sub(span.pages.value(), std::memory_order_relaxed);
  listed_spans_.fetch_sub(1, std::memory_order_relaxed);
  live_blocks_.fetch_sub(span.blocks_in_use, std::memory_order_relaxed);
}

void CentralList::CheckInvariants() const {
  RankedMutexLock lock(&mu_);
  const uint64_t generation = generation_;
  PageCount pages;
  uint64_t spans = 0;
  uint64_t live = 0;
  for (const Kind kind : {kPartial, kFull}) {
    for (const size_t parity : {0, 1}) {
      const SpanSet& set = sets_[kind][parity];
      set.CheckInvariants();
      const bool swept = parity == generation / 2 % 2;
      set.ForEach([&](const Span* span) {
        SPANPOOL_CHECK_EQ(span->sweep_generation.load(std::memory_order_relaxed),
                          swept ? generation : generation - 2);
        SPANPOOL_CHECK_EQ(span->span_class, span_class_);
        SPANPOOL_CHECK_EQ(heap_->SpanOf(span->first_page), span);
        SPANPOOL_CHECK_GT(span->blocks_in_use, 0u);
        SPANPOOL_CHECK_EQ(span->blocks_in_use < span->blocks, kind == kPartial);
        uint32_t set_bits = 0;
        for (const uint64_t word : span->in_use()) {
          set_bits += static_cast<uint32_t>(std::popcount(word));
        }
        SPANPOOL_CHECK_EQ(set_bits, span->blocks_in_use);
        live += span->blocks_in_use;
      });
      pages += set.pages();
      spans += set.size();
    }
  }
  SPANPOOL_CHECK_EQ(listed_pages(), pages);
  SPANPOOL_CHECK_EQ(listed_spans(), spans);
  SPANPOOL_CHECK_EQ(live_blocks(), live);
}

}  // namespace spanpool

#include "allocator/sweeper.h"

namespace spanpool {

bool Sweeper::BeginCycle() {
  const ActiveSweep::Token token = active_.Restart();
  if (!token) return false;
  PageCount listed;
  for (CentralList* list : lists_) {
    list->BeginCycle();
    listed += list->listed_pages();
  }
  const uint64_t generation = generation_.load(std::memory_order_relaxed) + 2;
  generation_.store(generation, std::memory_order_release);
  pacer_.Begin(listed, heap_->taken());
  reclaimer_.Begin(generation, heap_->arenas_end());
  cursor_.store(0, std::memory_order_relaxed);
  active_.Open(token);
  return true;
}

std::optional<CentralList::Swept> Sweeper::SweepOne() {
  const ActiveSweep::Token token = active_.Begin();
  if (!token) return std::nullopt;
  // relaxed: what is in a list is read under its lock; the cursor only saves looking.
  size_t at = cursor_.load(std::memory_order_relaxed);
  while (at < 2 * lists_.size()) {
    const CentralList::Swept swept =
        lists_[at / 2]->SweepOne(token, at % 2 == 0 ? CentralList::kFull : CentralList::kPartial);
    if (swept.pages > PageCount(0)) return swept;
    // Unswept sets only shrink: nobody need look here again. If the exchange fails, `at` is where
    // others have got to, which is never back within one cycle.
    if (cursor_.compare_exchange_strong(at, at + 1, std::memory_order_relaxed)) ++at;
  }
  active_.MarkDrained(token);
  return std::nullopt;
}

bool Sweeper::CycleDue() const {
  if (!active_.done() || !pacer_.Due(heap_->taken())) return false;
  for (const CentralList* list : lists_) {
    if (list->listed_pages() > PageCount(0)) return true;
  }
  return false;
}

void Sweeper::PayFor(PageCount pages) {
  if (active_.done()) return;  // the usual case costs one load
  // The cycle cannot end, and its pace not change, while we are in it.
  const ActiveSweep::Token token = active_.Begin();
  if (!token) return;
  const PageCount owed = pacer_.Owed(heap_->taken(), pages);
  while (active_.pages_swept() < owed && SweepOne().has_value()) {
  }
  reclaimer_.Reclaim(token, pages);
}

PageCount Sweeper::SweepAll() {
  PageCount freed;
  const auto sweep_rest = [&] {
    while (const std::optional<CentralList::Swept> swept = SweepOne()) freed += swept->freed;
  };
  sweep_rest();
  while (!BeginCycle()) {
    // Others are still at work on their last spans, or have just begun a cycle: then help.
    sweep_rest();
    active_.WaitUntilDone();
  }
  const uint64_t generation = generation_.load(std::memory_order_acquire);
  sweep_rest();
  while (!done() && generation_.load(std::memory_order_acquire) == generation) {
    active_.WaitUntilDone();
  }
  return freed;
}

}  // namespace spanpool

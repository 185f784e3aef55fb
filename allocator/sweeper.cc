#include "allocator/sweeper.h"

namespace spanpool {

bool Sweeper::BeginCycle() {
  const ActiveSweep::Token token = active_.Restart();
  if (!token) return false;
  for (CentralList* list : lists_) list->BeginCycle();
  generation_.fetch_add(2, std::memory_order_release);
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

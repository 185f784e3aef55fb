#include "client/slot_stocks.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "allocator/check.h"
#include "proto/layout/step.h"

namespace spanpool::internal {

// The stocks of the process's sessions by their number, and the end of threads.
struct SlotStocksRegistry {
  RankedMutex mu{LockRank::kSlotStocks};
  uint64_t next_id ABSL_GUARDED_BY(mu) = 1;
  absl::flat_hash_map<uint64_t, SlotStocks*> by_id ABSL_GUARDED_BY(mu);
  pthread_key_t key = 0;  // constant after construction; set in threads that have stocks

  SlotStocksRegistry() {
    SPANPOOL_CHECK_EQ(pthread_key_create(&key, &ThreadEnded), 0);
    SPANPOOL_CHECK_EQ(pthread_atfork(&BeforeFork, &AfterForkInParent, &AfterForkInChild), 0);
  }

  // Never destroyed: threads may end after static objects are gone.
  static SlotStocksRegistry& Get() {
    static auto* const registry = new SlotStocksRegistry;
    return *registry;
  }

  static void ThreadEnded(void*) {
    SlotStocksRegistry& registry = Get();
    RankedMutexLock lock(&registry.mu);
    for (SlotStocks::Known& known : SlotStocks::known_stocks.of) registry.Forget(&known);
  }

  void Forget(SlotStocks::Known* known) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const auto it = by_id.find(known->id);
    if (it != by_id.end()) it->second->Retire(known->stock);
    *known = SlotStocks::Known();
  }

  // A fork finds the registry whole; in the child every session is the parent's. Handlers run in
  // the reverse order of their registration before a fork, and a session makes its references
  // before its thread caches: so theirs runs, and takes its lock of the lower rank, first.
  static void BeforeFork() ABSL_NO_THREAD_SAFETY_ANALYSIS { Get().mu.Lock(); }
  static void AfterForkInParent() ABSL_NO_THREAD_SAFETY_ANALYSIS { Get().mu.Unlock(); }
  static void AfterForkInChild() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Get().by_id.clear();
    SlotStocks::known_stocks = SlotStocks::KnownStocks();
    Get().mu.Unlock();
  }
};

constinit thread_local SlotStocks::KnownStocks SlotStocks::known_stocks
    __attribute__((tls_model("initial-exec")));

namespace {

uint64_t Register(SlotStocks* stocks) {
  SlotStocksRegistry& registry = SlotStocksRegistry::Get();
  RankedMutexLock lock(&registry.mu);
  const uint64_t id = registry.next_id++;
  registry.by_id.emplace(id, stocks);
  return id;
}

}  // namespace

SlotStocks::SlotStocks(layout::SessionSegment* segment, uint32_t capacity)
    : id_(Register(this)),
      segment_(segment),
      capacity_(capacity),
      gathered_(!CanFenceAllThreads()) {}

SlotStocks::~SlotStocks() {
  SlotStocksRegistry& registry = SlotStocksRegistry::Get();
  RankedMutexLock lock(&registry.mu);
  registry.by_id.erase(id_);
}

SlotStocks::Stock& SlotStocks::FindMine() {
  Known* const first = known_stocks.of;
  Known* const end = first + std::size(known_stocks.of);
  Known* known = std::find_if(first, end, [this](const Known& of) { return of.id == id_; });
  if (known == end) {
    known = end - 1;  // not used for longest
    SlotStocksRegistry& registry = SlotStocksRegistry::Get();
    pthread_setspecific(registry.key, &registry);
    RankedMutexLock lock(&registry.mu);
    registry.Forget(known);
    RankedMutexLock list_lock(&mu_);
    if (spare_.empty()) {
      stocks_.push_back(std::make_unique<Stock>());
      spare_.push_back(stocks_.back().get());
    }
    *known = Known{id_, spare_.back()};
    spare_.pop_back();
  }
  std::rotate(first, known, known + 1);  // to the front
  return *first->stock;
}

bool SlotStocks::Refill(Stock& mine) {
  RankedMutexLock lock(&mu_);
  while (mine.size_ < Stock::kMost / 2 && !free_.empty()) {
    mine.slots_[mine.size_++] = free_.back();
    free_.pop_back();
  }
  if (mine.size_ != 0) return true;
  const uint32_t count = std::min(Stock::kMost / 2, capacity_ - used_);
  used_ += count;
  SPANPOOL_STEP("slots_used");
  // Before the slots are used. release: ahead of whatever is written to them.
  segment_->slots_used.store(used_, std::memory_order_release);
  for (uint32_t i = 1; i <= count; ++i) mine.slots_[mine.size_++] = used_ - i;
  return count != 0;
}

void SlotStocks::Empty(Stock& mine, uint32_t keep) {
  RankedMutexLock lock(&mu_);
  free_.insert(free_.end(), mine.slots_ + keep, mine.slots_ + mine.size_);
  mine.size_ = keep;
}

void SlotStocks::Retire(Stock* stock) {
  Empty(*stock, 0);
  RankedMutexLock lock(&mu_);
  spare_.push_back(stock);
}

int64_t SlotStocks::GatherOwners() {
  if (!gathered_.exchange(true, std::memory_order_seq_cst)) FenceAllThreads();
  RankedMutexLock lock(&mu_);
  if (std::exchange(summed_, true)) return 0;
  int64_t owners = 0;
  // A stock that is added later is of a thread that sees what was gathered.
  for (const std::unique_ptr<Stock>& stock : stocks_) {
    // Its thread needs no lock to come to the end of counting, only to run.
    int64_t twice;
    while (((twice = stock->owners_.load(std::memory_order_acquire)) & 1) != 0) sched_yield();
    owners += twice / 2;
  }
  return owners;
}

SlotStocks::Counts SlotStocks::counts() {
  Counts counts;
  RankedMutexLock lock(&mu_);
  for (const std::unique_ptr<Stock>& stock : stocks_) {
    counts.shares += ReadCount(&stock->shares_);
    counts.opens += ReadCount(&stock->opens_);
    counts.releases += ReadCount(&stock->releases_);
    counts.sends += ReadCount(&stock->sends_);
  }
  return counts;
}

uint32_t SlotStocks::slots_used() {
  RankedMutexLock lock(&mu_);
  return used_;
}

}  // namespace spanpool::internal

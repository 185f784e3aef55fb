#include "allocator/lock_rank.h"

#include <time.h>

#include <cerrno>

#include "allocator/check.h"

namespace spanpool {

const char* LockRankName(LockRank rank) {
  switch (rank) {
    case LockRank::kBuffer:
      return "buffer";
    case LockRank::kLink:
      return "link to the daemon";
    case LockRank::kSessionTable:
      return "session table";
    case LockRank::kSession:
      return "session";
    case LockRank::kSessionCache:
      return "session cache";
    case LockRank::kSlotStocks:
      return "slot stocks";
    case LockRank::kCentralList:
      return "central list";
    case LockRank::kPageCache:
      return "page cache";
    case LockRank::kHeap:
      return "heap";
    case LockRank::kRecords:
      return "records";
    case LockRank::kArenaSource:
      return "arena source";
    case LockRank::kLeaf:
      return "leaf";
  }
  return "unknown";
}

#ifdef SPANPOOL_DEBUG
namespace lock_rank_internal {
namespace {

// One bit per held rank: two locks of one rank are never held together.
thread_local uint32_t held = 0;

uint32_t Bit(LockRank rank) { return uint32_t{1} << static_cast<unsigned>(rank); }

}  // namespace

void Acquired(LockRank rank) {
  if (ABSL_PREDICT_FALSE(held >= Bit(rank))) {
    const int highest = 31 - __builtin_clz(held);
    SPANPOOL_CHECK(false) << "lock order: taking \"" << LockRankName(rank) << "\" while holding \""
                          << LockRankName(static_cast<LockRank>(highest)) << "\"";
  }
  held |= Bit(rank);
}

void Released(LockRank rank) {
  SPANPOOL_CHECK((held & Bit(rank)) != 0) << LockRankName(rank);
  held &= ~Bit(rank);
}

}  // namespace lock_rank_internal
#endif

bool RankedMutex::AwaitWithDeadline(const absl::Condition& condition, absl::Time deadline) {
  if (condition.Eval()) return true;
  // The remaining time counts on a clock that nobody sets.
  timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  const bool for_ever = deadline == absl::InfiniteFuture();
  if (!for_ever) {
    until = absl::ToTimespec(absl::DurationFromTimespec(until) + (deadline - absl::Now()));
  }
  WakeWaiters();  // others may wait for what this thread has changed
  Waiter self{condition, waiters_};
  waiters_ = &self;
  int error = 0;
  do {
    error = for_ever ? pthread_cond_wait(&self.may_hold, &mutex_)
                     : pthread_cond_clockwait(&self.may_hold, &mutex_, CLOCK_MONOTONIC, &until);
  } while (!condition.Eval() && error != ETIMEDOUT);
  Waiter** link = &waiters_;
  while (*link != &self) link = &(*link)->next;
  *link = self.next;
  return condition.Eval();
}

void RankedMutex::WakeWaiters() {
  for (Waiter* waiter = waiters_; waiter != nullptr; waiter = waiter->next) {
    if (waiter->condition.Eval()) pthread_cond_signal(&waiter->may_hold);
  }
}

}  // namespace spanpool

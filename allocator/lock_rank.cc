#include "allocator/lock_rank.h"

#include "allocator/check.h"

namespace spanpool {

const char* LockRankName(LockRank rank) {
  switch (rank) {
    case LockRank::kSessionTable:
      return "session table";
    case LockRank::kSession:
      return "session";
    case LockRank::kSessionCache:
      return "session cache";
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

}  // namespace spanpool

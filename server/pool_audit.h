// For tests: looks at everything in a pool and says what does not add up.
//
// When nobody is in the middle of anything and no dead session is left to reap, all of this holds:
//  1. Each slot is FREE, HELD or TRANSIT, and one that is not FREE names the first granule of a
//     block of a span that is on loan or in a list.
//  2. Each block word counts exactly the slots that name it, and is not FROZEN; SENT is on only if
//     a slot in transit has its number; FREED is on only without references.
//  3. No word counts anything where there is no block: in free pages, and within blocks.
//  4. Session 0 holds, beside what is in transit, one reference for each name, to the block and
//     generation that the name stands for.
//  5. Spans on loan are those that the sessions have, and the heap's statistics are their sums.
//
// What is on loan its session alone knows block by block; whether it loses one is seen when all
// sessions are gone, and nothing is in use any more.

#ifndef SPANPOOL_SERVER_POOL_AUDIT_H_
#define SPANPOOL_SERVER_POOL_AUDIT_H_

#include <string>
#include <vector>

#include "server/pool.h"

namespace spanpool {

enum class AuditDepth {
  kBooks,  // 4, and that no dead session is left: what clients cannot write
  kAll,
};

// What is wrong, one line each; at most 20. The daemon's own threads may be at work meanwhile, in
// which case it can find something that is over by now: audit again.
std::vector<std::string> AuditPool(Pool& pool, AuditDepth depth = AuditDepth::kAll);

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_POOL_AUDIT_H_

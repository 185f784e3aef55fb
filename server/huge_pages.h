// Whether there are the huge pages that pools with `arena_kind: HUGETLB` may come to use, and what
// the operator is to do if not.

#ifndef SPANPOOL_SERVER_HUGE_PAGES_H_
#define SPANPOOL_SERVER_HUGE_PAGES_H_

#include <vector>

#include "absl/status/status.h"
#include "server/config.h"
#include "server/memory_limit.h"

namespace spanpool {

// Whether all limits together, as WithDefaults leaves them, are within what is available. A pool
// that keeps less ready than its limit may find later that others have taken the rest: then
// allocations are refused.
//   FAILED_PRECONDITION  they are not; the message says how many are wanted, are there, and how to
//                        have more
absl::Status CheckHugePages(const std::vector<PoolConfig>& pools,
                            const MemoryLimit::HugePages& available);

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_HUGE_PAGES_H_

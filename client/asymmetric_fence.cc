#include "client/asymmetric_fence.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "allocator/check.h"

namespace spanpool::internal {

bool CanFenceAllThreads() {
  static const bool can =
      syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
  return can;
}

void FenceAllThreads() {
  const long done = syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
  SPANPOOL_CHECK_EQ(done, 0);  // registered
}

}  // namespace spanpool::internal

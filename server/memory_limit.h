// How much memory this process may still use before the kernel's OOM killer would act, and how many
// huge pages, which are no part of that memory.
//
// The smaller of what the machine has left (MemAvailable) and what the process's memory cgroup, or
// any ancestor of it, has left (version 1 and 2). Reclaimable page cache of a cgroup counts as
// left, as it does in MemAvailable.
//
// Stateless but for the root that files are looked up under; thread-safe.

#ifndef SPANPOOL_SERVER_MEMORY_LIMIT_H_
#define SPANPOOL_SERVER_MEMORY_LIMIT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace spanpool {

class MemoryLimit {
 public:
  // `root` stands before /proc and /sys; "" but in tests.
  explicit MemoryLimit(std::string root = "") : root_(std::move(root)) {}

  // Bytes left now.
  //   NOT_FOUND  /proc/meminfo cannot be read or has no MemAvailable
  absl::StatusOr<uint64_t> AvailableBytes() const;

  // Huge pages of 2 MiB now. Those that the kernel might yet make of other memory
  // (vm.nr_overcommit_hugepages) do not count.
  struct HugePages {
    uint64_t set_aside = 0;  // by the administrator; 0 where the kernel knows none
    uint64_t free = 0;       // neither used nor promised to anybody
    std::optional<uint64_t>
        allowed;  // by the process's hugetlb cgroup and its ancestors, if they do
  };
  HugePages AvailableHugePages() const;

 private:
  const std::string root_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_MEMORY_LIMIT_H_

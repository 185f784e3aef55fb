// How much memory this process may still use before the kernel's OOM killer would act.
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

 private:
  std::optional<uint64_t> CgroupAvailableBytes() const;

  const std::string root_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_MEMORY_LIMIT_H_

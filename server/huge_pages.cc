#include "server/huge_pages.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "allocator/memfd_arena_source.h"

namespace spanpool {

absl::Status CheckHugePages(const std::vector<PoolConfig>& pools,
                            const MemoryLimit::HugePages& available) {
  uint64_t needed = 0;
  std::vector<std::string> names;
  for (const PoolConfig& pool : pools) {
    if (pool.arena_kind != MemfdArenaSource::Kind::kHugePages) continue;
    needed += (pool.limit_bytes - 1) / MemfdArenaSource::kHugePageBytes + 1;
    names.push_back(pool.name);
  }
  if (names.empty()) return absl::OkStatus();
  const std::string want =
      absl::StrCat(names.size() == 1 ? "pool " : "pools ", absl::StrJoin(names, ", "),
                   names.size() == 1 ? " needs " : " need ", needed,
                   " huge pages of 2 MiB (arena_kind HUGETLB), and ");
  if (needed > available.free) {
    const uint64_t enough = available.set_aside + needed - available.free;
    return absl::FailedPreconditionError(absl::StrCat(
        want, available.free, " of the machine's ", available.set_aside,
        " are free. Set enough aside with `sysctl vm.nr_hugepages=", enough,
        "` or, where memory is too fragmented for that, hugepages=", enough,
        " on the kernel's command line; for a container do so on the host. Pages that an earlier "
        "daemon lent are free when its clients have ended or attached anew"));
  }
  if (available.allowed.has_value() && needed > *available.allowed) {
    return absl::FailedPreconditionError(absl::StrCat(
        want, *available.allowed, " are left within the limit of this process's cgroup, though ",
        available.free, " are free. Raise its hugetlb.2MB.max by ",
        (needed - *available.allowed) * MemfdArenaSource::kHugePageBytes,
        " bytes; in Kubernetes set resources.limits.hugepages-2Mi: ", 2 * needed, "Mi"));
  }
  return absl::OkStatus();
}

}  // namespace spanpool

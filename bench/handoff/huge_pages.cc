#include "bench/handoff/huge_pages.h"

#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "tests/support/process.h"

namespace spanpool::bench {

absl::StatusOr<std::unique_ptr<HugePages>> HugePages::Reserve(uint64_t pages) {
  auto set_aside = testing::HugePages::SetAside(pages);
  if (!set_aside.ok()) return set_aside.status();
  std::unique_ptr<HugePages> huge(new HugePages(*std::move(set_aside)));
  huge->folder_ = testing::TemporaryDirectory();
  if (mount("none", huge->folder_.c_str(), "hugetlbfs", 0, "pagesize=2M") != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("hugetlbfs cannot be mounted: ", std::strerror(errno)));
  }
  huge->mounted_ = true;
  return huge;
}

HugePages::~HugePages() {
  // Lazily: a process of the suite that is being killed may have files open yet.
  if (mounted_) umount2(folder_.c_str(), MNT_DETACH);
  if (!folder_.empty()) rmdir(folder_.c_str());
}

}  // namespace spanpool::bench

#include "bench/handoff/huge_pages.h"

#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "tests/support/process.h"

namespace spanpool::bench {

absl::StatusOr<std::unique_ptr<HugePages>> HugePages::Reserve(uint64_t pages) {
  std::string folder = testing::TemporaryDirectory();
  auto set_aside = testing::HugePages::SetAside(pages, folder);
  if (!set_aside.ok()) {
    rmdir(folder.c_str());
    return set_aside.status();
  }
  if (mount("none", folder.c_str(), "hugetlbfs", 0, "pagesize=2M") != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("hugetlbfs cannot be mounted: ", std::strerror(errno)));
  }
  return std::unique_ptr<HugePages>(new HugePages(std::move(folder), *std::move(set_aside)));
}

}  // namespace spanpool::bench

#include "bench/handoff/huge_pages.h"

#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/support/process.h"

namespace spanpool::bench {
namespace {

constexpr char kReserved[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

uint64_t Reserved() {
  uint64_t pages = 0;
  std::ifstream(kReserved) >> pages;
  return pages;
}

bool SetReserved(uint64_t pages) {
  std::ofstream file(kReserved);
  file << pages << std::flush;
  return file.good();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HugePages>> HugePages::Reserve(uint64_t pages) {
  std::unique_ptr<HugePages> huge(new HugePages(Reserved()));  // gives back what it got
  const uint64_t wanted = huge->before_ + pages;
  if (!SetReserved(wanted)) {
    return absl::PermissionDeniedError(
        absl::StrCat("huge pages cannot be reserved (", kReserved, "): run as root"));
  }
  if (const uint64_t got = Reserved(); got < wanted) {
    return absl::ResourceExhaustedError(absl::StrCat("the kernel found ", got - huge->before_,
                                                     " of ", pages, " huge pages of 2 MiB"));
  }
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
  (void)SetReserved(before_);
}

}  // namespace spanpool::bench

#include "bench/handoff/huge_pages.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/support/process.h"

namespace spanpool::bench {
namespace {

constexpr char kReserved[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

bool SetReserved(uint64_t pages) {
  std::ofstream file(kReserved);
  file << pages << std::flush;
  return file.good();
}

// The keeper's process: only calls that are allowed after a fork with threads.
[[noreturn]] void KeepUntilEnd(int wanted, const char* folder, const std::string& before) {
  // Not by the signals of a terminal, and with nothing open that others wait for the end of.
  setsid();
  dup2(wanted, STDIN_FILENO);
  close_range(STDOUT_FILENO, ~0U, 0);
  char byte;
  while (read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR) {
  }
  // Lazily: a process of the suite that is being killed may have files open yet.
  umount2(folder, MNT_DETACH);
  rmdir(folder);
  const int file = open(kReserved, O_WRONLY | O_CLOEXEC);
  const bool given_back =
      write(file, before.data(), before.size()) == static_cast<ssize_t>(before.size());
  _exit(given_back ? 0 : 1);
}

}  // namespace

uint64_t HugePages::Reserved() {
  uint64_t pages = 0;
  std::ifstream(kReserved) >> pages;
  return pages;
}

absl::StatusOr<std::unique_ptr<HugePages>> HugePages::Reserve(uint64_t pages) {
  const uint64_t before = Reserved();
  const std::string before_text = absl::StrCat(before);
  const std::string folder = testing::TemporaryDirectory();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  const pid_t keeper = fork();
  if (keeper < 0) return absl::ErrnoToStatus(errno, "fork");
  if (keeper == 0) {
    close(ends[1]);
    KeepUntilEnd(ends[0], folder.c_str(), before_text);
  }
  close(ends[0]);
  std::unique_ptr<HugePages> huge(
      new HugePages(folder, ends[1], keeper));  // gives back what it got
  const uint64_t wanted = before + pages;
  if (!SetReserved(wanted)) {
    return absl::PermissionDeniedError(
        absl::StrCat("huge pages cannot be reserved (", kReserved, "): run as root"));
  }
  if (const uint64_t got = Reserved(); got < wanted) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the kernel found ", got - before, " of ", pages, " huge pages of 2 MiB"));
  }
  if (mount("none", folder.c_str(), "hugetlbfs", 0, "pagesize=2M") != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("hugetlbfs cannot be mounted: ", std::strerror(errno)));
  }
  return huge;
}

HugePages::~HugePages() {
  close(wanted_);
  waitpid(keeper_, nullptr, 0);
}

}  // namespace spanpool::bench

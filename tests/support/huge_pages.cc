#include "tests/support/huge_pages.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <climits>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace spanpool::testing {
namespace {

constexpr char kSetAside[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
constexpr char kFree[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

// Also for a child of a process with threads: nothing here allocates.
uint64_t ReadCount(const char* path) {
  char text[32] = "";
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof(text));
  if (fd >= 0) close(fd);
  uint64_t count = 0;
  std::from_chars(text, text + (length > 0 ? length : 0), count);
  return count;
}

bool WriteSetAside(uint64_t pages) {
  char text[32];
  const char* const end = std::to_chars(std::begin(text), std::end(text), pages).ptr;
  const int fd = open(kSetAside, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool written = write(fd, text, static_cast<size_t>(end - text)) == end - text;
  close(fd);
  return written;
}

// Others may have set some aside, or given some back, meanwhile.
void GiveBack(uint64_t pages) {
  const uint64_t now = ReadCount(kSetAside);
  (void)WriteSetAside(now > pages ? now - pages : 0);
}

}  // namespace

uint64_t HugePages::Free() { return ReadCount(kFree); }

absl::StatusOr<std::unique_ptr<HugePages>> HugePages::SetAside(uint64_t pages,
                                                               const std::string& folder) {
  const uint64_t before = ReadCount(kSetAside);
  if (!WriteSetAside(before + pages)) {
    return absl::PermissionDeniedError(
        absl::StrCat("huge pages cannot be set aside (", kSetAside, "): run as root"));
  }
  const uint64_t now = ReadCount(kSetAside);
  const uint64_t got = now > before ? now - before : 0;
  int lifeline[2] = {-1, -1};
  const pid_t keeper = got < pages || pipe2(lifeline, O_CLOEXEC) != 0 ? -1 : fork();
  if (keeper < 0) {
    const int error = errno;
    GiveBack(got);
    close(lifeline[0]);
    close(lifeline[1]);
    if (got == pages) return absl::ErrnoToStatus(error, "a process that gives huge pages back");
    return absl::ResourceExhaustedError(
        absl::StrCat("the kernel found ", got, " of ", pages, " huge pages of 2 MiB"));
  }
  if (keeper == 0) {
    // Neither what ends the test nor what waits for the test's output is to meet this process.
    setsid();
    dup2(lifeline[0], STDIN_FILENO);
    close_range(STDIN_FILENO + 1, UINT_MAX, 0);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR) {
    }
    if (!folder.empty()) {
      // Lazily: a process that is being killed may have files open yet.
      umount2(folder.c_str(), MNT_DETACH);
      rmdir(folder.c_str());
    }
    GiveBack(got);
    _exit(0);
  }
  close(lifeline[0]);
  return std::unique_ptr<HugePages>(new HugePages(keeper, lifeline[1]));
}

HugePages::~HugePages() {
  close(lifeline_);
  waitpid(keeper_, nullptr, 0);
}

}  // namespace spanpool::testing

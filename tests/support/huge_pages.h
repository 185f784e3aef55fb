// Huge pages of 2 MiB for as long as a test or a benchmark wants them. Needs root.

#ifndef SPANPOOL_TESTS_SUPPORT_HUGE_PAGES_H_
#define SPANPOOL_TESTS_SUPPORT_HUGE_PAGES_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace spanpool::testing {

class HugePages {
 public:
  // Has the kernel set aside `pages` more than there are, until this object goes. If this process
  // ends before, however it does, they are given back then; before that, the file system that is
  // mounted on `folder`, if one is named, is unmounted and the folder removed: its files hold
  // pages.
  //   PERMISSION_DENIED   this user may not
  //   RESOURCE_EXHAUSTED  the kernel did not find so much memory in pieces of 2 MiB
  static absl::StatusOr<std::unique_ptr<HugePages>> SetAside(uint64_t pages,
                                                             const std::string& folder = "");
  ~HugePages();
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  // Those of the machine that nobody uses.
  static uint64_t Free();

 private:
  HugePages(pid_t keeper, int lifeline) : keeper_(keeper), lifeline_(lifeline) {}

  const pid_t keeper_;  // a child that gives them back when the lifeline is cut
  const int lifeline_;
};

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_HUGE_PAGES_H_

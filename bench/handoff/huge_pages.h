// Huge pages of 2 MiB for as long as a suite runs: reserved from the kernel and given back, with a
// folder of their own. Needs root.

#ifndef SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_
#define SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace spanpool::bench {

class HugePages {
 public:
  // Reserves `pages` more than there are.
  //   PERMISSION_DENIED   this user may not reserve or mount
  //   RESOURCE_EXHAUSTED  the kernel did not find so much memory in pieces of 2 MiB
  static absl::StatusOr<std::unique_ptr<HugePages>> Reserve(uint64_t pages);
  ~HugePages();
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  // Where files are made of huge pages.
  const std::string& folder() const { return folder_; }

 private:
  explicit HugePages(uint64_t before) : before_(before) {}

  const uint64_t before_;  // pages that were reserved by others
  std::string folder_;
  bool mounted_ = false;
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_

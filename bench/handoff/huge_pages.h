// Huge pages of 2 MiB for as long as a suite runs: reserved from the kernel and given back however
// the suite ends, with a folder of their own. Needs root.

#ifndef SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_
#define SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/support/huge_pages.h"

namespace spanpool::bench {

class HugePages {
 public:
  // Reserves `pages` more than there are.
  //   PERMISSION_DENIED   this user may not reserve or mount
  //   RESOURCE_EXHAUSTED  the kernel did not find so much memory in pieces of 2 MiB
  static absl::StatusOr<std::unique_ptr<HugePages>> Reserve(uint64_t pages);
  ~HugePages() = default;
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  // Where files are made of huge pages.
  const std::string& folder() const { return folder_; }

 private:
  HugePages(std::string folder, std::unique_ptr<testing::HugePages> pages)
      : folder_(std::move(folder)), pages_(std::move(pages)) {}

  const std::string folder_;
  const std::unique_ptr<testing::HugePages> pages_;  // also unmounts and removes the folder
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_

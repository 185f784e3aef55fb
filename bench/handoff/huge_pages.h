// Huge pages of 2 MiB for as long as a suite runs: reserved from the kernel and given back, with a
// folder of their own. Needs root.
//
// A process of their own gives them back, when they are not wanted any more or the suite's process
// has ended, by whatever signal.

#ifndef SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_
#define SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace spanpool::bench {

class HugePages {
 public:
  // How many are reserved now, by whomever.
  static uint64_t Reserved();
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
  HugePages(std::string folder, int wanted, pid_t keeper)
      : folder_(std::move(folder)), wanted_(wanted), keeper_(keeper) {}

  const std::string folder_;
  const int wanted_;  // a pipe: the keeper gives back at its end
  const pid_t keeper_;
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_HANDOFF_HUGE_PAGES_H_

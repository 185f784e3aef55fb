// For tests: keeps descriptors in the process itself, so that a pool or a daemon can be restarted
// in one process.
//
// Thread-safe. Lock rank: kLeaf.

#ifndef SPANPOOL_SERVER_MEMORY_FD_STORE_H_
#define SPANPOOL_SERVER_MEMORY_FD_STORE_H_

#include <fcntl.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "allocator/lock_rank.h"
#include "proto/layout/packet.h"
#include "server/fd_store.h"

namespace spanpool {

class MemoryFdStore : public FdStore {
 public:
  explicit MemoryFdStore(size_t most = SIZE_MAX) : most_(most) {}

  absl::Status Keep(absl::Span<const NamedFd> fds) override ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    for (const NamedFd& each : fds) {
      if (kept_.size() >= most_ && !kept_.contains(each.name)) {
        return absl::ResourceExhaustedError(absl::StrCat("the store has its ", most_));
      }
      layout::UniqueFd copy(fcntl(each.fd, F_DUPFD_CLOEXEC, 0));
      if (!copy.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("keeping ", each.name));
      kept_.insert_or_assign(each.name, std::move(copy));
    }
    return absl::OkStatus();
  }

  void Forget(const std::string& name) override ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    kept_.erase(name);
  }

  // What a successor would be handed: duplicates; what is kept stays so.
  KeptFds Copies() const ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    KeptFds copies;
    for (const auto& [name, fd] : kept_) {
      copies[name] = layout::UniqueFd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
    }
    return copies;
  }

  size_t size() const ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    return kept_.size();
  }

 private:
  const size_t most_;
  mutable RankedMutex mu_{LockRank::kLeaf};
  KeptFds kept_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_MEMORY_FD_STORE_H_

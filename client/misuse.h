// Reports memory misuse: each to the user's handler, or once per call site to stderr.
//
// Thread-safe. Lock rank: kLeaf; the handler is called without the lock, and with no other lock of
// the client held.

#ifndef SPANPOOL_CLIENT_MISUSE_H_
#define SPANPOOL_CLIENT_MISUSE_H_

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "allocator/lock_rank.h"
#include "spanpool/options.h"

namespace spanpool::internal {

class MisuseReporter {
 public:
  void SetHandler(MisuseHandler handler) ABSL_LOCKS_EXCLUDED(mu_);
  void Report(Misuse::Kind kind, const void* pointer, const void* call_site)
      ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t count() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable RankedMutex mu_{LockRank::kLeaf};
  // Shared, so that one being called outlives its replacement. Null: the default.
  std::shared_ptr<const MisuseHandler> handler_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<const void*> logged_sites_ ABSL_GUARDED_BY(mu_);
  uint64_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_MISUSE_H_

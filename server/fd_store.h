// Where descriptors outlive the worker: whoever restarts it hands them to its successor.
//
// Order of creation, everywhere: descriptor ─▶ kept ─▶ on record (pool_state.h) ─▶ in use. So what
// is on record is kept, and what is kept without being on record was never used: it is closed.

#ifndef SPANPOOL_SERVER_FD_STORE_H_
#define SPANPOOL_SERVER_FD_STORE_H_

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/layout/packet.h"

namespace spanpool {

struct NamedFd {
  std::string name;  // 1 to 200 of A-Z a-z 0-9 . _ - /
  int fd = -1;
};

// What a predecessor left, by name.
using KeptFds = absl::flat_hash_map<std::string, layout::UniqueFd>;

// Thread-safe.
class FdStore {
 public:
  virtual ~FdStore() = default;

  // Keeps duplicates of `fds` until they are forgotten; all are kept once this returns OK. May wait
  // for another process: not for a thread that serves many, nor under a lock. A name that is kept
  // already is replaced.
  //   RESOURCE_EXHAUSTED  the store is full
  //   UNAVAILABLE         there is nobody (any more) to keep them: a restart will lose everything
  virtual absl::Status Keep(absl::Span<const NamedFd> fds) = 0;

  // Closes what is kept by that name, if anything. Never waits.
  virtual void Forget(const std::string& name) = 0;

  // Whether a successor would get what is kept. Once false, it stays so. Cheap.
  virtual bool restart_safe() const { return true; }
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_FD_STORE_H_

// Where the names of a pool's blocks are kept: by the daemon, or a stand-in for it.
//
// Names are valid when they get here (proto/layout/block_name.h). Errors are those of
// spanpool/v1/pool.proto, and UNAVAILABLE if the daemon does not answer: then a change may or may
// not have been made.
//
// Thread-safe.

#ifndef SPANPOOL_CLIENT_NAME_SOURCE_H_
#define SPANPOOL_CLIENT_NAME_SOURCE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "spanpool/handle.h"
#include "spanpool/names.h"

namespace spanpool::internal {

struct NameFilter {
  std::string name;  // only this one; empty = any
  std::string prefix;
};

struct NameNews {
  bool reset = false;  // what was told before is void; the names there are follow
  std::vector<NameChange> changes;
  bool current = false;  // there is nothing else at the moment
};

// For one thread at a time.
class NameStream {
 public:
  virtual ~NameStream() = default;
  // What is new; waits for it until `deadline`.
  //   DEADLINE_EXCEEDED  nothing is
  virtual absl::StatusOr<NameNews> Next(absl::Time deadline) = 0;
};

class NameSource {
 public:
  virtual ~NameSource() = default;

  virtual absl::Status Publish(const std::string& name, const Handle& handle,
                               const PublishOptions& options) = 0;
  virtual absl::StatusOr<NamedBlock> Lookup(const std::string& name) = 0;
  virtual absl::Status Unpublish(const std::string& name) = 0;
  virtual absl::StatusOr<std::vector<NamedBlock>> List(const std::string& prefix) = 0;
  // What is wrong shows in Next.
  virtual std::unique_ptr<NameStream> Watch(const NameFilter& filter) = 0;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_NAME_SOURCE_H_

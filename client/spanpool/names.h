// Blocks by name: how processes that share nothing yet find each other.
//
//   session->Publish("camera/0", buffer)                 here
//   auto buffer = session->Open("camera/0")              there: the same bytes
//
// The daemon keeps the names and holds a reference of its own for each: a published block lives
// until it is unpublished or replaced, or its publisher's session ends. A name is 1 to 200 letters,
// digits, dots, underscores, hyphens and slashes; every session of the pool sees it.
//
// A NameWatch tells which names there are and what changes. As a name goes with its publisher, also
// when that is killed, a watch is also how to learn that a peer died: each peer publishes a name.

#ifndef SPANPOOL_NAMES_H_
#define SPANPOOL_NAMES_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "spanpool/handle.h"

namespace spanpool {

struct PublishOptions {
  // The name stays when the session ends, until somebody unpublishes it. Otherwise it goes as soon
  // as the session has ended, be it in order or by death.
  bool outlive_session = false;
  // If the name stands already, it stands for this block from now on. Otherwise that is an error.
  bool replace = false;
};

// A name that stands.
struct NamedBlock {
  std::string name{};
  Handle handle{};
  uint64_t version = 0;  // grows with each change to the names of the pool
  bool outlives_session = false;
  pid_t pid = 0;  // of its publisher, as the daemon sees it
  uid_t uid = 0;
};

struct NameChange {
  enum class Kind {
    kPublished,      // the name stands; also if it stood before, for another block
    kUnpublished,    // somebody unpublished it
    kPublisherLeft,  // its publisher's session ended
    kPublisherLost,  // its publisher died, or lost its session otherwise
  };
  Kind kind = Kind::kPublished;
  std::string name{};
  NamedBlock block{};  // kPublished only
};

// Made by Session::WatchNames. For one thread at a time. Keeps what it needs of the session alive,
// as Buffers do.
class NameWatch {
 public:
  ~NameWatch();
  NameWatch(const NameWatch&) = delete;
  NameWatch& operator=(const NameWatch&) = delete;

  // The next of: each name there is, then each change; waits for one until `deadline`. Of several
  // changes to one name between two calls only the last may be told. A handle it tells of holds
  // nothing: by the time it is opened the name may be gone, and the block freed.
  //   DEADLINE_EXCEEDED    there was none
  //   UNAVAILABLE          the daemon is gone, or does not answer
  //   UNAUTHENTICATED      the session has ended
  //   RESOURCE_EXHAUSTED   the session has as many watches as it may: 16
  //   FAILED_PRECONDITION  in a forked child
  // After an error other than DEADLINE_EXCEEDED the watch tells nothing more: make a new one.
  absl::StatusOr<NameChange> Next(absl::Time deadline);

 private:
  friend class Session;
  struct Impl;
  explicit NameWatch(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace spanpool

#endif  // SPANPOOL_NAMES_H_

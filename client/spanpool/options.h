// What can be chosen when attaching and allocating, and what a session counts.

#ifndef SPANPOOL_OPTIONS_H_
#define SPANPOOL_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/time/time.h"

namespace spanpool {

enum class Access {
  kReadWrite,
  kReadOnly,  // opens blocks, allocates none
};

// Whether a block may hold handles to other blocks (kScan) or is plain bytes (kNoscan).
enum class BlockKind { kNoscan, kScan };

// Every member of the structs below has an initialiser, so that `{.target = dir}` leaves the rest
// out without a warning.

// For a daemon on another machine.
struct TlsOptions {
  std::string certificate_file{};
  std::string key_file{};
  std::string server_ca_file{};
};

struct SessionOptions {
  // The daemon's run directory, or host:port. Empty: $SPANPOOL_TARGET, else $SPANPOOL_RUN_DIR,
  // else /run/spanpool for root and $XDG_RUNTIME_DIR/spanpool for others.
  std::string target{};
  std::string pool{};  // empty: $SPANPOOL_POOL, else "default"
  Access access = Access::kReadWrite;
  absl::Duration attach_timeout = absl::Seconds(5);
  TlsOptions tls{};
};

struct AllocateOptions {
  // How long to wait when the pool is full. While waiting the session gives back its own idle
  // memory and asks again, at most every 50 ms. While the daemon is away it is waited for so long,
  // and 5 s at least.
  absl::Duration timeout = absl::ZeroDuration();
  size_t alignment = 64;  // a power of two, up to 2 MiB
  bool zeroed = false;
  BlockKind kind = BlockKind::kNoscan;
};

// Where the daemon is, from a session's point of view.
enum class DaemonState {
  kConnected,
  // It is away: being restarted, or stopped. What is on loan is used as before; what needs the
  // daemon waits for it.
  kOffline,
  // It has ended for good, or has ended the session: attach again. Buffers stay readable.
  kLost,
};

// Counters since attaching, and three gauges. Taken thread by thread: exact when no thread of the
// process is allocating, else each counter is some value it had during the call.
struct SessionStats {
  uint64_t allocations = 0;    // blocks handed out: Allocate, Malloc and resource()
  uint64_t refills = 0;        // of those, the ones that waited for the daemon
  uint64_t exchanges = 0;      // messages sent to the daemon
  uint64_t opens = 0;          // handles opened
  uint64_t shares = 0;         // blocks shared for the first time
  uint64_t releases = 0;       // shared blocks this process let go of
  uint64_t misuses = 0;        // see MisuseHandler
  uint64_t bytes_on_loan = 0;  // spans the session holds
  uint64_t idle_bytes = 0;     // of those, spans no block of which is in use
  uint64_t spans_lost = 0;     // that the daemon did not know of when it came back: not used again
  DaemonState daemon = DaemonState::kConnected;  // as far as can be seen without waiting
};

struct Misuse {
  enum class Kind {
    kForeignPointer,   // Free of memory that is no block of this session
    kInteriorPointer,  // Free of an address inside a block
    kDoubleFree,       // Free of a block that was free already
  };
  Kind kind;
  const void* pointer;    // what was passed
  const void* call_site;  // where from; for a double free found late, where it was found
  std::string_view message;
};

// Called when memory was misused; the offending call does nothing else. It may be called from any
// thread that allocates or frees, and must not call into the session.
using MisuseHandler = std::function<void(const Misuse&)>;

}  // namespace spanpool

#endif  // SPANPOOL_OPTIONS_H_

// A session's way to its daemon: the attach socket and the Exchange stream.
//
// The attach socket (proto/layout/attach.h) is the session's lifeline; over it go the handshake,
// the descriptors of arenas, one request at a time, and the farewell; and the daemon's recalls, at
// any time. Spans travel on one gRPC stream, opened with the first exchange.
//
// The stream has no thread of its own. Whichever thread waits for an answer first also waits on the
// stream's completion queue, for all; when its own answer is there it passes the task on. So an
// answer reaches its thread without a switch between threads, and nothing runs when nobody waits.
//
// When a thread's patience ends before the daemon answers, the answer may still come: the spans it
// grants are nobody's then, and go back with the next message.
//
// Invariants
//  1. At most one thread is in the completion queue; at most one write and one read are under way.
//  2. A stream that failed is not used again. Its unanswered exchanges fail with UNAVAILABLE, and
//     what they wanted to return is returned by the next stream's first message: a return is
//     recognised by its sequence number, so one that is sent twice does no harm.
//
// Thread-safe. Locks: one for the attach socket (which serialises requests, and so is held while
// the daemon answers), one for the stream (released while waiting).

#ifndef SPANPOOL_CLIENT_DAEMON_LINK_H_
#define SPANPOOL_CLIENT_DAEMON_LINK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/session_core.h"
#include "client/span_source.h"
#include "spanpool/options.h"

namespace spanpool::internal {

// Attaches to `pool` of the daemon in `run_directory` and fills `facts` in. Errors are
// Session::Attach's.
absl::StatusOr<std::unique_ptr<SpanSource>> AttachToDaemon(const std::string& run_directory,
                                                           const std::string& pool, Access access,
                                                           absl::Duration timeout,
                                                           PoolFacts* facts);

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_DAEMON_LINK_H_

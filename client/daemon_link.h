// A session's way to its daemon: the attach socket and the Exchange stream.
//
// The attach socket is the session's lifeline (lifeline.h). Spans travel on one gRPC stream, opened
// with the first exchange.
//
// When a thread's patience ends before the daemon answers, the answer may still come: the spans it
// grants are nobody's then, and go back with the next message, which is due.
//
// When a stream ends, though the lifeline stands, the daemon is being restarted, or only a
// connection broke: nobody knows what became of the requests without an answer. The next stream
// begins with the inventory: the numbers of all grants that came here and were not given back. The
// daemon takes back all else, grants that never arrived and returns that it did not see; then what
// was wished for is asked for again. So nothing is granted twice, and a return, which has a number,
// cannot free what was granted later.
//
// Invariants
//  1. held_ has the grants of every answer before its thread sees it, and loses those that are
//     returned before they leave.
//  2. A stream that failed is not used again, and nothing of it arrives any more when the inventory
//     for the next one is drawn up.
//
// Thread-safe. Locks: the lifeline's, which is held while the daemon answers; one for the stream,
// released while waiting; one for the grants, a leaf.

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

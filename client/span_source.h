// Where a session's spans come from: the daemon, or a stand-in for it.
//
// The core of the client knows the daemon by this interface alone, so that it is tested (and
// checked for data races) without sockets or gRPC.

#ifndef SPANPOOL_CLIENT_SPAN_SOURCE_H_
#define SPANPOOL_CLIENT_SPAN_SOURCE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocator/size_classes.h"
#include "allocator/units.h"
#include "client/name_source.h"
#include "proto/layout/packet.h"
#include "spanpool/options.h"

namespace spanpool::internal {

// Names a grant, in the life of the pool.
using GrantSequence = Unit<struct GrantSequenceTag, uint64_t>;

struct SpanWish {
  SpanClass span_class;
  uint32_t spans = 1;
  PageCount pages;      // large spans only
  PageCount alignment;  // large spans only; a power of two
};

// What the daemon lends. Input: the session checks it before use.
struct SpanGrant {
  GrantSequence sequence;
  PageRange pages;
  SpanClass span_class;
  std::vector<uint64_t> in_use;  // bit i: block i lives on elsewhere; empty = none
};

struct ExchangeResult {
  std::vector<SpanGrant> grants;
  // Why less was granted than wished for; OK if everything was.
  //   RESOURCE_EXHAUSTED  the pool or the session is at its limit
  //   INVALID_ARGUMENT    larger than the pool can ever hold
  absl::Status shortfall;
};

struct ArenaFds {
  layout::UniqueFd data;
  layout::UniqueFd table;
};

// The daemon asks for what the session does not use.
struct RecallRequest {
  uint64_t number = 0;  // the recall's
  uint64_t bytes = 0;   // how much would do; UINT64_MAX = all of it
};

// Thread-safe.
class SpanSource {
 public:
  virtual ~SpanSource() = default;

  // Gives the named grants back, then asks for `wishes`; one message. While the daemon is away it
  // waits, for 5 s at most, and asks again when the daemon is back; that daemon and session are
  // then of one mind about what is on loan is the source's business.
  //   UNAVAILABLE  the daemon did not answer, or the pool is lost: nothing was granted. Returns
  //   need
  //                not be repeated.
  virtual absl::StatusOr<ExchangeResult> Exchange(absl::Span<const GrantSequence> returns,
                                                  absl::Span<const SpanWish> wishes) = 0;

  // The descriptors of an arena.
  //   NOT_FOUND    the pool has no such arena
  //   UNAVAILABLE  the daemon did not answer
  virtual absl::StatusOr<ArenaFds> OpenArena(ArenaIndex arena) = 0;

  // Ends the session, whose spans are returned and whose slots are free.
  //   FAILED_PRECONDITION  they are not; the daemon takes them back when the process ends
  //   UNAVAILABLE          the daemon did not answer
  virtual absl::Status Detach() = 0;

  // How things stand, as far as can be seen without waiting.
  virtual DaemonState state() { return DaemonState::kConnected; }
  // Whether an exchange, even of nothing, has become due since the last call: the daemon has said
  // that it is back, and is to know what is on loan; or grants came when nobody waited for them any
  // more, and go back.
  virtual bool TakeExchangeDue() { return false; }
  // Grants that the daemon does not know of, since the last call: lost with its memory, and perhaps
  // lent to others. Nothing of them may be handed out any more.
  virtual std::vector<GrantSequence> TakeUnknown() { return {}; }

  // What the daemon says unasked. `notice_fd` becomes readable, or is hung up, when there may be
  // something; -1: never. While another thread waits for an answer on the same connection, that
  // thread may come upon it first; then `wake` is called, which has been set before any other call.
  virtual int notice_fd() const { return -1; }
  // NOLINTNEXTLINE(performance-unnecessary-value-param): who overrides it keeps it
  virtual void SetNoticeCallback(std::function<void()> /*wake*/) {}
  // The recall that was asked for last and not yet taken, if any. Never waits.
  virtual std::optional<RecallRequest> TakeRecall() { return std::nullopt; }
  // Says that what was idle has been returned.
  virtual void AnswerRecall(const RecallRequest& /*recall*/) {}

  // The names of the pool's blocks; null if nobody keeps any. Lives as long as this object.
  virtual NameSource* names() { return nullptr; }

  // Called in a forked child, where the source must not be used or destroyed: closes what would
  // keep the parent's session alive. Async-signal-safe.
  virtual void AbandonInChild() {}
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_SPAN_SOURCE_H_

// Asks sessions for the memory they do not use, and knows which have answered.
//
// A recall goes to every attached session of a pool that has something on loan, to all at once. A
// session answers when what was idle there has been returned, so that waiting for the answers is
// waiting for the memory. Nobody is made to answer: a client that is stopped costs those who wait
// their patience and nothing else. How much came back is counted here, from the spans returned
// meanwhile; what the client says is not believed because it is not asked.
//
// There are two occasions: an operator's (Admin.Trim), who waits and is told, and a shortage, for
// which the other sessions of the pool are asked and nobody waits: what comes back is there for the
// next try.
//
// Thread-safe. Lock rank: kLeaf; not held while sessions are asked.

#ifndef SPANPOOL_SERVER_RECALLER_H_
#define SPANPOOL_SERVER_RECALLER_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "allocator/lock_rank.h"
#include "server/pool.h"
#include "server/session.h"
#include "server/session_table.h"

namespace spanpool {

class Recaller {
 public:
  // For a shortage a pool's sessions are asked at most this often.
  static constexpr absl::Duration kShortageInterval = absl::Milliseconds(100);

  // Sends notice number `recall` to a session, and later reports Answered or Gone. A notice that
  // has not been sent yet when the next one comes may be left out for it. Thread-safe; never waits.
  using Carrier = std::function<void(const Session& session, uint64_t recall, uint64_t bytes)>;

  // `sessions` outlives this object.
  explicit Recaller(const SessionTable* sessions) : sessions_(sessions) {}
  Recaller(const Recaller&) = delete;
  Recaller& operator=(const Recaller&) = delete;

  // Before the first session. Without one nobody can be asked, and nobody answers.
  void SetCarrier(Carrier carrier) { carrier_ = std::move(carrier); }

  // Before the first recall: recalls are numbered from here, above those of earlier workers.
  void StartAt(uint64_t recall) ABSL_LOCKS_EXCLUDED(mu_);

  // What became of one pool's recall.
  struct Outcome {
    uint64_t recalled_bytes = 0;  // returned by the sessions asked, between question and answer
    uint64_t asked = 0;
    uint64_t answered = 0;
    absl::Duration slowest;  // until the last answer
    // Neither answered nor gone in time.
    std::vector<std::shared_ptr<Session>> silent;
  };
  // Asks all sessions of `pools` for all that is idle, and waits until each has answered, has gone,
  // or `deadline`. One outcome for each pool.
  std::vector<Outcome> Recall(absl::Span<Pool* const> pools, absl::Time deadline);

  // `asker` was refused for want of `bytes`: asks the other sessions of its pool for them, unless
  // they were asked a moment ago, and returns at once. `now` is the time.
  void AskOthers(const Session& asker, uint64_t bytes, absl::Time now);

  // The session has answered this notice, and so those before it.
  void Answered(const Session& session, uint64_t recall) ABSL_LOCKS_EXCLUDED(mu_);
  // The session will answer nothing any more. The session itself may be gone.
  void Gone(uint32_t session_id) ABSL_LOCKS_EXCLUDED(mu_);

  // Nobody waits any longer, from now on.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // A session that was asked.
  struct Question {
    std::shared_ptr<Session> session;
    uint64_t returned_before = 0;
    bool open = true;
    bool answered = false;
    uint64_t returned = 0;  // since, when it was answered
    absl::Time answered_at;
  };
  // One wait.
  struct Round {
    uint64_t recall = 0;
    absl::flat_hash_map<uint32_t, Question> questions;  // by session
    size_t open = 0;
  };

  void Close(Round& round, uint32_t session_id, bool answered) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const SessionTable* const sessions_;
  Carrier carrier_ = [](const Session&, uint64_t, uint64_t) {};

  RankedMutex mu_{LockRank::kLeaf};
  uint64_t next_recall_ ABSL_GUARDED_BY(mu_) = 1;
  std::list<Round*> rounds_ ABSL_GUARDED_BY(mu_);  // on the stacks of those who wait
  absl::flat_hash_map<const Pool*, absl::Time> asked_for_shortage_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_RECALLER_H_

// The names of one pool: which blocks are published, and what has changed for whom to hear of it.
//
//   published ──unpublished, or its publisher's session ends──▶ gone
//       ╰──replaced: the same name, another block────▶ published
//
// Each name stands for a reference of the daemon's own (worker_references.h). This table only keeps
// its slot; whoever changes the table drops the references that it gives back.
//
// Every change has a version. The last change of each name is kept in the order of versions: the
// names that stand, and as many of those that are gone as there may be names. So a watch is no more
// than the version it has seen, however slow its reader is. If it falls so far behind that a
// removal which it has not seen is no longer kept, it starts anew.
//
// Invariants
//  1. A name that stands is in names_, and in changes_ under its version; one that is gone in
//     changes_ alone, if at all.
//  2. A name that goes with its session is in of_session_; its session was attached when it was
//     stored, and EndSession is called after each session has ended: none is left behind.
//  3. Every removal after horizon_ is in changes_.
//
// Thread-safe. Lock rank: kSessionTable; a session is looked at under it.

#ifndef SPANPOOL_SERVER_NAME_TABLE_H_
#define SPANPOOL_SERVER_NAME_TABLE_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "allocator/lock_rank.h"
#include "proto/layout/handle_bits.h"
#include "server/pool_state.h"
#include "server/session.h"

namespace spanpool {

struct PublishedBlock {
  std::string name;
  layout::HandleBits handle;
  uint64_t version = 0;
  bool outlives_session = false;
  // Who published it.
  uint32_t session = 0;
  pid_t pid = 0;
  uid_t uid = 0;
};

enum class NameRemoval : uint8_t { kUnpublished, kPublisherLeft, kPublisherLost };

struct ChangedName {
  std::string name;
  std::optional<PublishedBlock> published;  // or it is gone:
  NameRemoval removal = NameRemoval::kUnpublished;
};

// Which names a watch is about.
struct NameFilter {
  std::string name;  // only this one; empty = any
  std::string prefix;

  bool Matches(absl::string_view other) const {
    return name.empty() ? absl::StartsWith(other, prefix) : other == name;
  }
};

class NameTable {
 public:
  // One who wants to hear of changes, until the object goes.
  class Watch {
   public:
    // `wake` is called, from any thread and under no lock, when there may be something to Take.
    Watch(NameFilter filter, std::function<void()> wake)
        : filter_(std::move(filter)), wake_(std::move(wake)) {}

   private:
    friend class NameTable;
    const NameFilter filter_;
    const std::function<void()> wake_;
    // Guarded by the table's lock.
    bool started_ = false;
    uint64_t seen_ = 0;     // every version up to this one
    uint64_t nothing_ = 0;  // removals up to this version are of names that it was not told
  };

  // With `state`, which outlives the table, names are on record there, for the next worker.
  explicit NameTable(uint32_t max_names, PoolState* state = nullptr)
      : max_names_(max_names), state_(state) {}
  NameTable(const NameTable&) = delete;
  NameTable& operator=(const NameTable&) = delete;

  // Stores the name, in one step. `slot` is that of the reference, which is the table's from then
  // on. `replaced` gets a slot that is not needed (any more): the one of a block that was replaced,
  // or `slot` itself, if the same session has published the same block under the name before.
  // Returns the version. On an error nothing is done.
  //   UNAUTHENTICATED     the session is not attached
  //   ALREADY_EXISTS      the name stands otherwise, and `replace` is not set
  //   RESOURCE_EXHAUSTED  there are as many names as there may be
  absl::StatusOr<uint64_t> Publish(const Session& session, PublishedBlock block, uint32_t slot,
                                   bool replace, std::optional<uint32_t>* replaced)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Before anything else, after a restart: names that are on record, by version. Versions go on
  // from where they were.
  void Restore(const std::vector<PoolState::NameOnRecord>& names) ABSL_LOCKS_EXCLUDED(mu_);

  absl::StatusOr<PublishedBlock> Lookup(absl::string_view name) const ABSL_LOCKS_EXCLUDED(mu_);

  // Removes the name and returns its slot.
  //   NOT_FOUND  there is none
  absl::StatusOr<uint32_t> Unpublish(absl::string_view name) ABSL_LOCKS_EXCLUDED(mu_);

  // Removes what goes with a session that has ended, and returns the slots.
  std::vector<uint32_t> EndSession(const Session& session, NameRemoval why)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The same, after a restart, for all sessions that are not attached any more, `attached` being
  // those that are.
  std::vector<uint32_t> EndOthers(const absl::flat_hash_set<uint32_t>& attached)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Up to `most` names that begin with `prefix` and come after `after`, in order; and whether there
  // are more.
  std::vector<PublishedBlock> List(absl::string_view prefix, absl::string_view after, size_t most,
                                   bool* more) const ABSL_LOCKS_EXCLUDED(mu_);

  // The first Take begins with the names there are.
  std::shared_ptr<Watch> NewWatch(NameFilter filter, std::function<void()> wake)
      ABSL_LOCKS_EXCLUDED(mu_);

  struct News {
    bool reset = false;  // what was taken before is void; the names there are follow
    std::vector<ChangedName> changes;
    bool current = false;  // there is no more at the moment
  };
  // What is new to the watch, oldest first; at most `most` changes.
  News Take(Watch& watch, size_t most) ABSL_LOCKS_EXCLUDED(mu_);

  size_t size() const ABSL_LOCKS_EXCLUDED(mu_);
  // For an audit: the slots of all names, with what they stand for.
  std::vector<std::pair<uint32_t, PublishedBlock>> Slots() const ABSL_LOCKS_EXCLUDED(mu_);
  // Aborts if an invariant does not hold.
  void CheckInvariants() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    PublishedBlock block;
    uint32_t slot = 0;
    uint32_t record = 0;  // of the heap state
  };
  // The last that happened to a name. It stands if it is in names_ with this version.
  struct Change {
    std::string name;
    bool removed = false;
    NameRemoval removal = NameRemoval::kUnpublished;
  };
  using Names = absl::btree_map<std::string, Entry, std::less<>>;
  using Watches = std::vector<std::shared_ptr<Watch>>;

  // Notes what happened to a name whose last change was `before`; 0 = none is kept. Returns its
  // version, and adds to `to_wake` who is to be told once the lock is released.
  uint64_t NoteLocked(Change change, uint64_t before, Watches* to_wake)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes the name out and returns its slot.
  uint32_t RemoveLocked(Names::iterator it, NameRemoval why, Watches* to_wake)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint32_t max_names_;
  PoolState* const state_;

  mutable RankedMutex mu_{LockRank::kSessionTable};
  Names names_ ABSL_GUARDED_BY(mu_);
  absl::btree_set<std::pair<uint32_t, std::string>> of_session_ ABSL_GUARDED_BY(mu_);
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 0;  // of the last change
  absl::btree_map<uint64_t, Change> changes_ ABSL_GUARDED_BY(mu_);
  absl::btree_map<std::string, uint64_t> removals_ ABSL_GUARDED_BY(mu_);  // name → version
  absl::btree_set<uint64_t> removal_versions_ ABSL_GUARDED_BY(mu_);
  uint64_t horizon_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::weak_ptr<Watch>> watches_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_NAME_TABLE_H_

// The heap state of one pool: what a restarted worker rebuilds everything from.
//
// One memfd that only the worker ever maps, and that is never sent to a client. Whoever restarts
// the worker keeps it (fd_store.h), with the descriptors that are on record in it.
//
//   offset 0      StateHeader   constant part with a checksum; what only grows
//   then          arenas        a bit for each: it exists, and its two descriptors are kept
//                 quarantine    a bit for each page: its span is given up
//                 StateJournal  words that may be frozen
//                 SessionRecord, as many as there may be sessions
//                 NameRecord,   as many as there may be names, and one
//                 SpanEntry,    one for each page; in use is that of a span's first page
//
// It is sparse. What it costs: 16 bytes and a bit for each page of an arena, 128 KiB an arena
// (0.2 %), backed when the arena is made; 128 bytes a session, 256 a name, backed 4 KiB at a time
// when there first are so many; and half a MiB for the journal, so that a recount never lacks it.
//
// Every record becomes valid, and ends, by one store of 8 bytes at most, made after what it
// vouches for; and nothing is ever half valid, wherever the worker dies. So there is no clean stop:
// a worker that ended in order leaves the same behind as one that was killed.
//
//   span       fresh ──Loan──▶ on loan ──Listed──▶ listed ──Loan──▶ on loan ──Freed──▶ free
//              A span that was granted and is not on record is free after a restart, or listed, as
//              before; one that was returned is on loan until the heap says where it went.
//   session    the descriptors are kept, then the record is written, then the client is told
//   name       session 0 holds the block, then the name is written; it goes before the reference
//              does (rule 13 of tests/model/README.md)
//
// Thread-safe where the methods say nothing else; locks: a leaf. Numbers in records are
// host-endian.

#ifndef SPANPOOL_SERVER_POOL_STATE_H_
#define SPANPOOL_SERVER_POOL_STATE_H_

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "allocator/lock_rank.h"
#include "allocator/span.h"
#include "allocator/units.h"
#include "proto/layout/attach.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/packet.h"
#include "server/fd_store.h"
#include "server/recount_journal.h"

namespace spanpool {

inline constexpr uint64_t kStateMagic = 0x4554415453504153;  // "SAPSTATE"
// Raised whenever anything about the file changes.
inline constexpr uint32_t kStateVersion = 1;
inline constexpr size_t kMaxNameBytes = 200;
inline constexpr uint32_t kMaxJournalWords = 65536;
inline constexpr uint32_t kMaxSessionRecords = 1u << 20;  // what a span entry has room for

struct StateHeader {
  // Constant, and covered by the checksum.
  uint64_t magic = kStateMagic;
  uint32_t version = kStateVersion;
  uint32_t incarnation = 0;
  uint64_t file_bytes = 0;
  uint64_t config_hash = 0;
  uint64_t limit_bytes = 0;
  uint32_t max_arenas = 0;
  uint32_t max_sessions = 0;
  uint32_t max_names = 0;
  uint32_t arena_kind = 0;
  char pool[64] = {};  // its name, zero-terminated
  uint64_t checksum = 0;
  // Only grow.
  std::atomic<uint64_t> sequence_end{1};  // no grant has a number from here on
  std::atomic<uint64_t> name_version{0};  // of the last change
  std::atomic<uint32_t> session_end{1};   // no session has a number from here on
  std::atomic<uint32_t> worker{1};        // how many workers the pool had
  // Of the last worker: it was told to stop, and did. For the log only.
  std::atomic<uint32_t> stopped{0};
  uint32_t reserved = 0;
  std::byte padding[4096 - 160] = {};
};
static_assert(std::is_standard_layout_v<StateHeader> && sizeof(StateHeader) == 4096);
static_assert(offsetof(StateHeader, checksum) == 120);
static_assert(offsetof(StateHeader, sequence_end) == 128);

struct StateJournal {
  std::atomic<uint64_t> count;  // words that may be frozen; 0 = none is
  uint64_t reserved[511];
  uint64_t words[kMaxJournalWords];  // granules
};
static_assert(std::is_standard_layout_v<StateJournal> &&
              sizeof(StateJournal) == 4096 + (512 << 10));

enum class RecordedSession : uint32_t { kNone = 0, kAttached = 1, kDetached = 2, kDead = 3 };

struct SessionRecord {
  std::atomic<RecordedSession> state;  // kNone: nothing else here means anything
  uint32_t id;
  uint8_t token[layout::kTokenBytes];
  uint32_t pid;
  uint32_t uid;
  layout::AccessMode access;
  uint32_t reserved;
  uint64_t first_sequence;  // a loan with a lower number was somebody else's
  std::byte padding[128 - 48];
};
static_assert(std::is_standard_layout_v<SessionRecord> && sizeof(SessionRecord) == 128);

struct NameRecord {
  // Its length; 0: nothing else here means anything.
  std::atomic<uint32_t> name_bytes;
  uint32_t slot;  // of session 0
  uint64_t handle[2];
  uint64_t version;
  uint32_t session;  // its number
  uint32_t pid;
  uint32_t uid;
  uint32_t outlives_session;
  char name[kMaxNameBytes];
  uint64_t reserved;
};
static_assert(std::is_standard_layout_v<NameRecord> && sizeof(NameRecord) == 256);

enum class SpanPlace : uint8_t { kFree = 0, kOnLoan = 1, kListed = 2 };

// 63..62 place │ 59..40 session record │ 39..32 span class │ 31..0 pages
class SpanWord {
 public:
  constexpr SpanWord() = default;
  constexpr explicit SpanWord(uint64_t bits) : bits_(bits) {}
  constexpr SpanWord(SpanPlace place, SpanClass span_class, PageCount pages, uint32_t session)
      : bits_(uint64_t{static_cast<uint8_t>(place)} << 62 | uint64_t{session} << 40 |
              uint64_t{span_class.value()} << 32 | pages.value()) {}
  constexpr uint64_t bits() const { return bits_; }
  constexpr uint8_t place() const { return static_cast<uint8_t>(bits_ >> 62); }
  constexpr uint32_t session() const { return (bits_ >> 40) & (kMaxSessionRecords - 1); }
  constexpr uint8_t span_class() const { return static_cast<uint8_t>(bits_ >> 32); }
  constexpr PageCount pages() const { return PageCount(bits_ & UINT32_MAX); }

 private:
  uint64_t bits_ = 0;
};

struct SpanEntry {
  std::atomic<uint64_t> sequence;  // of the grant, while the span is on loan
  std::atomic<uint64_t> state;     // SpanWord
};
static_assert(std::is_standard_layout_v<SpanEntry> && sizeof(SpanEntry) == 16);

// What the descriptors of a pool are called where they are kept. All but the state's own are named
// by the pool's incarnation, and briefly, for there are four of each session and room for few
// names.
std::string KeptStateName(absl::string_view pool);
enum class ArenaFd : char { kData = 'd', kTable = 't' };
std::string KeptArenaName(uint32_t incarnation, ArenaIndex arena, ArenaFd which);
enum class SessionFd : char { kSegment = 's', kControl = 'c', kPidfd = 'p', kLifeline = 'l' };
std::string KeptSessionName(uint32_t incarnation, uint32_t id, SessionFd which);
std::string KeptWorkerName(uint32_t incarnation, SessionFd which);  // of session 0

class PoolState {
 public:
  struct Options {
    std::string pool;
    // Of all that must be as it was when the pool began.
    uint64_t config_hash = 0;
    uint64_t limit_bytes = 0;
    uint32_t incarnation = 0;
    uint32_t max_arenas = 0;
    uint32_t max_sessions = 0;
    uint32_t max_names = 0;
    uint32_t arena_kind = 0;
  };

  // Creates the file and has it kept. `store` outlives this object.
  //   RESOURCE_EXHAUSTED  no memory or descriptor, or the store is full
  static absl::StatusOr<std::unique_ptr<PoolState>> Create(const Options& options, FdStore* store);

  // Opens a file that was kept, for the pool's next worker. What is on record is checked when it is
  // read.
  //   DATA_LOSS  it cannot be used: it is no such file, of another version, size or configuration,
  //              or its checksum is wrong; the message says which, and what to do
  static absl::StatusOr<std::unique_ptr<PoolState>> Open(layout::UniqueFd fd,
                                                         absl::string_view pool,
                                                         uint64_t config_hash, FdStore* store);

  // What is in a file that was kept, for whoever gives it up.
  struct Inventory {
    uint32_t incarnation = 0;
    uint64_t sessions = 0;
    uint64_t on_loan_bytes = 0;
    uint64_t listed_bytes = 0;
    uint64_t names = 0;
  };
  //   DATA_LOSS  it is none of this version, or makes no sense
  static absl::StatusOr<Inventory> Look(layout::UniqueFd fd);

  ~PoolState();
  PoolState(const PoolState&) = delete;
  PoolState& operator=(const PoolState&) = delete;

  // Constant.
  const std::string& pool() const { return pool_; }
  uint32_t incarnation() const { return header_->incarnation; }
  uint64_t limit_bytes() const { return header_->limit_bytes; }
  uint32_t max_arenas() const { return header_->max_arenas; }
  uint32_t max_sessions() const { return header_->max_sessions; }
  uint32_t max_names() const { return header_->max_names; }
  uint32_t arena_kind() const { return header_->arena_kind; }
  int fd() const { return fd_.get(); }
  FdStore& store() const { return *store_; }

  // Which worker of the pool this is, from 1; it only grows, also over all pools of a daemon if the
  // first thing each worker does is to set it to one above the highest.
  uint32_t worker() const { return header_->worker.load(std::memory_order_relaxed); }
  void SetWorker(uint32_t worker);
  // Whether the last worker stopped in order; says that this one has not.
  bool TakeStopped();
  void SetStopped();

  // Has `fds` kept, at least one. If there is nobody to keep them, that is logged once and the pool
  // goes on: what a restart would lose, it loses.
  //   RESOURCE_EXHAUSTED  the store is full
  absl::Status Keep(absl::Span<const NamedFd> fds);

  // Arenas. KeepArena backs the entries of its pages, has the descriptors kept, and records it: the
  // arena may be used then. May wait.
  //   RESOURCE_EXHAUSTED  no memory, or the store is full
  absl::Status KeepArena(ArenaIndex arena, int data_fd, int table_fd);
  std::vector<ArenaIndex> Arenas() const;

  // Spans, of arenas on record. A store or two each. The caller sees to it that nobody else does
  // anything with the span meanwhile.
  void RecordLoan(const Span& span, uint32_t session_record, uint64_t sequence);
  void RecordListed(const Span& span);
  void RecordFreed(const Span& span);
  struct SpanOnRecord {
    PageId first_page = {};
    SpanPlace place = SpanPlace::kFree;  // never that
    SpanClass span_class = {};
    PageCount pages = {};
    uint32_t session_record = 0;  // if on loan, with
    uint64_t sequence = 0;
  };
  // All that are on loan or listed, by page. Before the pool is used.
  //   DATA_LOSS  an entry makes no sense
  absl::StatusOr<std::vector<SpanOnRecord>> Spans() const;

  // Numbers for grants: `count` from the result on, never given before, by any worker.
  uint64_t NewSequences(uint64_t count);
  uint64_t next_sequence() const { return next_sequence_.load(std::memory_order_relaxed); }

  // Sessions.
  struct SessionOnRecord {
    RecordedSession state = RecordedSession::kNone;
    uint32_t record = 0;
    uint32_t id = 0;
    std::array<uint8_t, layout::kTokenBytes> token{};
    pid_t pid = 0;
    uid_t uid = 0;
    layout::AccessMode access = layout::AccessMode::kWrite;
    uint64_t first_sequence = 0;
  };
  // Has a session's descriptors kept, and records it, attached; `record` and `first_sequence` are
  // filled in. Returns the record. May wait.
  //   RESOURCE_EXHAUSTED  no memory, no record or the store is full
  absl::StatusOr<uint32_t> KeepSession(SessionOnRecord session, int segment_fd, int control_fd,
                                       int pidfd, int lifeline) ABSL_LOCKS_EXCLUDED(mu_);
  // Notes what became of it. kNone: it has ended, and the record is free for the next one.
  void SetSession(uint32_t record, RecordedSession state) ABSL_LOCKS_EXCLUDED(mu_);
  // Afterwards: lets go of its lifeline, or of all its descriptors.
  void ForgetLifeline(uint32_t id);
  void ForgetSession(uint32_t id);
  // Before the pool is used.
  //   DATA_LOSS  a record makes no sense
  absl::StatusOr<std::vector<SessionOnRecord>> Sessions() const;
  uint32_t session_end() const { return header_->session_end.load(std::memory_order_relaxed); }

  // Names. For one thread at a time.
  struct NameOnRecord {
    uint32_t record = 0;
    std::string name;
    layout::HandleBits handle = {};
    uint32_t slot = 0;
    uint64_t version = 0;
    uint32_t session = 0;
    pid_t pid = 0;
    uid_t uid = 0;
    bool outlives_session = false;
  };
  // Records a name, of at most kMaxNameBytes; `name.record` is ignored. Returns the record.
  //   RESOURCE_EXHAUSTED  no memory, or no record
  absl::StatusOr<uint32_t> RecordName(const NameOnRecord& name) ABSL_LOCKS_EXCLUDED(mu_);
  void DropName(uint32_t record) ABSL_LOCKS_EXCLUDED(mu_);
  // Raises the version that no later worker starts below.
  void SetNameVersion(uint64_t version);
  uint64_t name_version() const { return header_->name_version.load(std::memory_order_relaxed); }
  // Before the pool is used. A name that is on record twice was being replaced: the older one is
  // dropped here.
  //   DATA_LOSS  a record makes no sense
  absl::StatusOr<std::vector<NameOnRecord>> Names();

  // Pages in quarantine.
  void RecordQuarantine(PageId page);
  std::vector<PageId> Quarantined() const;

  // Words that may be frozen, as RecountJournal has it. For one thread at a time.
  void BeginRecount(absl::Span<const GranuleId> words);
  void EndRecount();
  std::vector<GranuleId> UnfinishedRecount() const;

 private:
  // Where the parts are, in bytes; all are multiples of 4096.
  struct Layout {
    uint64_t arenas = 0;
    uint64_t quarantine = 0;
    uint64_t journal = 0;
    uint64_t sessions = 0;
    uint64_t names = 0;
    uint64_t spans = 0;
    uint64_t end = 0;
  };
  // Indices of records that are free; those from `used` on were never taken.
  struct FreeRecords {
    std::vector<uint32_t> free;
    uint32_t used = 0;
    uint32_t backed = 0;  // records below have memory
  };

  static Layout LayoutOf(uint32_t max_arenas, uint32_t max_sessions, uint32_t max_names);
  static uint64_t ChecksumOf(const StateHeader& header);

  // Without a pool or a configuration to compare with.
  static absl::StatusOr<std::unique_ptr<PoolState>> Map(layout::UniqueFd fd, absl::string_view pool,
                                                        FdStore* store);
  PoolState(layout::UniqueFd fd, std::byte* base, const Layout& layout, FdStore* store);
  absl::Status Back(uint64_t offset, uint64_t bytes) const;
  // Of records of `bytes` from `offset` on, `most` in all.
  absl::StatusOr<uint32_t> TakeRecord(FreeRecords* records, uint64_t offset, size_t bytes,
                                      uint32_t most) ABSL_LOCKS_EXCLUDED(mu_);
  void GiveRecord(FreeRecords* records, uint32_t record) ABSL_LOCKS_EXCLUDED(mu_);
  // Finds what is in use: `valid(i)` of record i. Asks the kernel which exist.
  void FindRecords(FreeRecords* records, uint64_t offset, size_t bytes, uint32_t most,
                   const std::function<bool(uint32_t)>& valid) ABSL_LOCKS_EXCLUDED(mu_);
  SpanEntry& EntryOf(PageId page) const { return spans_[page.value()]; }
  absl::Status Nonsense(absl::string_view what) const;

  // Constant.
  const layout::UniqueFd fd_;
  std::byte* const base_;
  const Layout layout_;
  FdStore* const store_;
  StateHeader* const header_;
  std::atomic<uint64_t>* const arenas_;
  std::atomic<uint64_t>* const quarantine_;
  StateJournal* const journal_;
  SessionRecord* const sessions_;
  NameRecord* const names_;
  SpanEntry* const spans_;
  const std::string pool_;

  std::atomic<uint64_t> next_sequence_{1};
  std::atomic<bool> nobody_keeps_{false};  // and the log has it

  mutable RankedMutex mu_{LockRank::kLeaf};
  FreeRecords free_sessions_ ABSL_GUARDED_BY(mu_);
  FreeRecords free_names_ ABSL_GUARDED_BY(mu_);
};

// Keeps a recount's words in the heap state.
class StateRecountJournal : public RecountJournal {
 public:
  // Outlives the journal.
  explicit StateRecountJournal(PoolState* state) : state_(state) {}
  void Begin(absl::Span<const GranuleId> words) override { state_->BeginRecount(words); }
  void End() override { state_->EndRecount(); }
  std::vector<GranuleId> Unfinished() const override { return state_->UnfinishedRecount(); }

 private:
  PoolState* const state_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_POOL_STATE_H_

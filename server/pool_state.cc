#include "server/pool_state.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "allocator/check.h"
#include "allocator/size_classes.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/step.h"
#include "server/log.h"

// Newer than the C library's headers.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace spanpool {
namespace {

constexpr uint64_t kFilePage = 4096;
// Numbers that are set aside for grants at a time.
constexpr uint64_t kSequencesAtOnce = 65536;

constexpr uint64_t RoundUp(uint64_t bytes) {
  return (bytes + kFilePage - 1) / kFilePage * kFilePage;
}

absl::Status NoMemory(absl::string_view what) {
  const int error = errno;
  return absl::ResourceExhaustedError(absl::StrCat("heap state: ", what, ": ", strerror(error)));
}

absl::Status Refused(absl::string_view pool, absl::string_view why) {
  return absl::DataLossError(absl::StrCat(
      "pool ", pool, ": the kept heap state cannot be used: ", why,
      ": start the spanpoold and the configuration that it is of, or give the pool and all that is "
      "in it up with --discard_state"));
}

}  // namespace

std::string KeptStateName(absl::string_view pool) { return absl::StrCat("pool/", pool); }
std::string KeptArenaName(uint32_t incarnation, ArenaIndex arena, ArenaFd which) {
  const char letter[] = {static_cast<char>(which), 0};
  return absl::StrCat(absl::Hex(incarnation), ".a", absl::Hex(arena.value()), ".", letter);
}
std::string KeptSessionName(uint32_t incarnation, uint32_t id, SessionFd which) {
  const char letter[] = {static_cast<char>(which), 0};
  return absl::StrCat(absl::Hex(incarnation), ".s", absl::Hex(id), ".", letter);
}
std::string KeptWorkerName(uint32_t incarnation, SessionFd which) {
  return KeptSessionName(incarnation, 0, which);
}

PoolState::Layout PoolState::LayoutOf(uint32_t max_arenas, uint32_t max_sessions,
                                      uint32_t max_names) {
  const uint64_t arenas = max_arenas;
  Layout layout;
  layout.arenas = sizeof(StateHeader);
  layout.quarantine = layout.arenas + RoundUp((arenas + 63) / 64 * 8);
  layout.journal = layout.quarantine + RoundUp(arenas * kPagesPerArena / 8);
  layout.sessions = layout.journal + sizeof(StateJournal);
  layout.names = layout.sessions + RoundUp(uint64_t{max_sessions} * sizeof(SessionRecord));
  layout.spans = layout.names + RoundUp((uint64_t{max_names} + 1) * sizeof(NameRecord));
  layout.end = layout.spans + arenas * kPagesPerArena * sizeof(SpanEntry);
  return layout;
}

// FNV-1a.
uint64_t PoolState::ChecksumOf(const StateHeader& header) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  uint64_t sum = 0xcbf29ce484222325;
  for (size_t i = 0; i < offsetof(StateHeader, checksum); ++i) {
    sum = (sum ^ bytes[i]) * 0x100000001b3;
  }
  return sum;
}

absl::StatusOr<std::unique_ptr<PoolState>> PoolState::Create(const Options& options,
                                                             FdStore* store) {
  SPANPOOL_CHECK_LE(options.max_sessions, kMaxSessionRecords);
  const std::string name = absl::StrCat("spanpool.", options.pool, ".state");
  int raw = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (raw < 0 && errno == EINVAL) {
    raw = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  }
  if (raw < 0) return NoMemory("memfd_create");
  layout::UniqueFd fd(raw);
  const Layout layout = LayoutOf(options.max_arenas, options.max_sessions, options.max_names);
  if (ftruncate(raw, static_cast<off_t>(layout.end)) != 0) return NoMemory("ftruncate");
  if (fchmod(raw, 0600) != 0) return NoMemory("fchmod");
  if (fcntl(raw, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return NoMemory("F_ADD_SEALS");
  }
  // All that stands before the sessions is small, and written at moments that may not fail.
  if (fallocate(raw, 0, 0, sizeof(StateHeader)) != 0 ||
      fallocate(raw, 0, static_cast<off_t>(layout.arenas),
                static_cast<off_t>(layout.quarantine - layout.arenas)) != 0 ||
      fallocate(raw, 0, static_cast<off_t>(layout.journal), sizeof(StateJournal)) != 0) {
    return NoMemory("fallocate");
  }
  void* const base = mmap(nullptr, layout.end, PROT_READ | PROT_WRITE, MAP_SHARED, raw, 0);
  if (base == MAP_FAILED) return NoMemory("mmap");

  auto* const header = new (base) StateHeader;
  header->incarnation = options.incarnation;
  header->file_bytes = layout.end;
  header->config_hash = options.config_hash;
  header->limit_bytes = options.limit_bytes;
  header->max_arenas = options.max_arenas;
  header->max_sessions = options.max_sessions;
  header->max_names = options.max_names;
  header->arena_kind = options.arena_kind;
  SPANPOOL_CHECK_LT(options.pool.size(), sizeof(header->pool));
  std::memcpy(header->pool, options.pool.data(), options.pool.size());
  header->checksum = ChecksumOf(*header);
  std::unique_ptr<PoolState> state(
      new PoolState(std::move(fd), static_cast<std::byte*>(base), layout, store));
  const NamedFd kept = {.name = KeptStateName(options.pool), .fd = raw};
  if (absl::Status status = state->Keep({kept}); !status.ok()) return status;
  return state;
}

absl::StatusOr<std::unique_ptr<PoolState>> PoolState::Open(layout::UniqueFd fd,
                                                           absl::string_view pool,
                                                           uint64_t config_hash, FdStore* store) {
  auto state = Map(std::move(fd), pool, store);
  if (!state.ok()) return state;
  if ((*state)->pool() != pool) {
    return Refused(pool, absl::StrCat("it is that of pool ", (*state)->pool()));
  }
  if ((*state)->header_->config_hash != config_hash) {
    return Refused(pool,
                   "the pool began with another configuration (of limit_bytes, arena_kind, "
                   "limits.sessions or limits.names)");
  }
  return state;
}

absl::StatusOr<PoolState::Inventory> PoolState::Look(layout::UniqueFd fd) {
  const auto state = Map(std::move(fd), "?", nullptr);
  if (!state.ok()) return state.status();
  const auto spans = (*state)->Spans();
  if (!spans.ok()) return spans.status();
  const auto sessions = (*state)->Sessions();
  if (!sessions.ok()) return sessions.status();
  const auto names = (*state)->Names();
  if (!names.ok()) return names.status();
  Inventory inventory{
      .incarnation = (*state)->incarnation(), .sessions = sessions->size(), .names = names->size()};
  for (const SpanOnRecord& span : *spans) {
    (span.place == SpanPlace::kOnLoan ? inventory.on_loan_bytes : inventory.listed_bytes) +=
        Bytes(span.pages);
  }
  return inventory;
}

absl::StatusOr<std::unique_ptr<PoolState>> PoolState::Map(layout::UniqueFd fd,
                                                          absl::string_view pool, FdStore* store) {
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return Refused(pool, "it cannot be looked at");
  const auto bytes = static_cast<uint64_t>(info.st_size);
  StateHeader header;
  if (bytes < sizeof(header) ||
      pread(fd.get(), static_cast<void*>(&header), sizeof(header), 0) != sizeof(header)) {
    return Refused(pool, absl::StrCat("it has ", bytes, " bytes"));
  }
  if (header.magic != kStateMagic) return Refused(pool, "it is no heap state");
  if (header.version != kStateVersion) {
    return Refused(pool, absl::StrCat("it is of version ", header.version,
                                      " and this spanpoold's is ", kStateVersion));
  }
  if (header.checksum != ChecksumOf(header)) return Refused(pool, "its checksum is wrong");
  const Layout layout = LayoutOf(header.max_arenas, header.max_sessions, header.max_names);
  if (header.file_bytes != bytes || layout.end != bytes) {
    return Refused(pool, absl::StrCat("it has ", bytes, " bytes, and should have ", layout.end));
  }
  void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return NoMemory("mmap");
  return std::unique_ptr<PoolState>(
      new PoolState(std::move(fd), static_cast<std::byte*>(base), layout, store));
}

PoolState::PoolState(layout::UniqueFd fd, std::byte* base, const Layout& layout, FdStore* store)
    : fd_(std::move(fd)),
      base_(base),
      layout_(layout),
      store_(store),
      header_(reinterpret_cast<StateHeader*>(base)),
      arenas_(reinterpret_cast<std::atomic<uint64_t>*>(base + layout.arenas)),
      quarantine_(reinterpret_cast<std::atomic<uint64_t>*>(base + layout.quarantine)),
      journal_(reinterpret_cast<StateJournal*>(base + layout.journal)),
      sessions_(reinterpret_cast<SessionRecord*>(base + layout.sessions)),
      names_(reinterpret_cast<NameRecord*>(base + layout.names)),
      spans_(reinterpret_cast<SpanEntry*>(base + layout.spans)),
      pool_(header_->pool),
      next_sequence_(header_->sequence_end.load(std::memory_order_relaxed)) {
  madvise(base_, layout_.end, MADV_DONTDUMP);
  madvise(base_, layout_.end, MADV_DONTFORK);
  FindRecords(&free_sessions_, layout_.sessions, sizeof(SessionRecord), max_sessions(),
              [this](uint32_t i) {
                return sessions_[i].state.load(std::memory_order_acquire) != RecordedSession::kNone;
              });
  FindRecords(&free_names_, layout_.names, sizeof(NameRecord), max_names() + 1, [this](uint32_t i) {
    return names_[i].name_bytes.load(std::memory_order_acquire) != 0;
  });
}

PoolState::~PoolState() { munmap(base_, layout_.end); }

absl::Status PoolState::Nonsense(absl::string_view what) const { return Refused(pool_, what); }

absl::Status PoolState::Back(uint64_t offset, uint64_t bytes) const {
  const uint64_t from = offset / kFilePage * kFilePage;
  while (fallocate(fd_.get(), 0, static_cast<off_t>(from),
                   static_cast<off_t>(RoundUp(offset + bytes) - from)) != 0) {
    if (errno != EINTR) return NoMemory("fallocate");
  }
  return absl::OkStatus();
}

void PoolState::FindRecords(FreeRecords* records, uint64_t offset, size_t bytes, uint32_t most,
                            const std::function<bool(uint32_t)>& valid) {
  RankedMutexLock lock(&mu_);
  const auto end = static_cast<off_t>(offset + uint64_t{most} * bytes);
  uint32_t known = 0;  // all below are in use, or in `free`
  for (off_t at = lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA); at >= 0 && at < end;) {
    const off_t hole = lseek(fd_.get(), at, SEEK_HOLE);
    const off_t stop = std::min(end, hole < 0 ? end : hole);
    const auto first = static_cast<uint32_t>((static_cast<uint64_t>(at) - offset) / bytes);
    const auto last = static_cast<uint32_t>((static_cast<uint64_t>(stop) - offset) / bytes);
    for (uint32_t i = first; i < last; ++i) {
      if (!valid(i)) continue;
      for (; known < i; ++known) records->free.push_back(known);
      known = i + 1;
    }
    at = lseek(fd_.get(), stop, SEEK_DATA);
  }
  records->used = known;
}

absl::StatusOr<uint32_t> PoolState::TakeRecord(FreeRecords* records, uint64_t offset, size_t bytes,
                                               uint32_t most) {
  RankedMutexLock lock(&mu_);
  if (records->free.empty()) {
    if (records->used == most) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the heap state has its ", most, " records"));
    }
    // Under the lock: a page at most, and there is nobody to wait for.
    if (records->used >= records->backed) {
      const uint64_t at = offset + uint64_t{records->used} * bytes;
      if (absl::Status status = Back(at, bytes); !status.ok()) return status;
      records->backed = static_cast<uint32_t>((RoundUp(at + bytes) - offset) / bytes);
    }
    return records->used++;
  }
  const uint32_t record = records->free.back();
  // Below one that was in use there may be a page that never was.
  if (absl::Status status = Back(offset + uint64_t{record} * bytes, bytes); !status.ok()) {
    return status;
  }
  records->free.pop_back();
  return record;
}

void PoolState::GiveRecord(FreeRecords* records, uint32_t record) {
  RankedMutexLock lock(&mu_);
  records->free.push_back(record);
}

void PoolState::SetWorker(uint32_t worker) {
  SPANPOOL_STEP("state.worker");
  header_->worker.store(worker, std::memory_order_relaxed);
}

bool PoolState::TakeStopped() { return header_->stopped.exchange(0) != 0; }
void PoolState::SetStopped() { header_->stopped.store(1); }

absl::Status PoolState::Keep(absl::Span<const NamedFd> fds) {
  SPANPOOL_STEP("state.keep");
  absl::Status status = store_->Keep(fds);
  if (!absl::IsUnavailable(status)) return status;
  if (!nobody_keeps_.exchange(true)) {
    Log().error("pool {}: nothing keeps what a restart would need: {}", pool_,
                std::string(status.message()));
  }
  return absl::OkStatus();
}

absl::Status PoolState::KeepArena(ArenaIndex arena, int data_fd, int table_fd) {
  SPANPOOL_CHECK_LT(arena.value(), max_arenas());
  const uint64_t entries = layout_.spans + FirstPageOf(arena).value() * sizeof(SpanEntry);
  if (absl::Status status = Back(entries, kPagesPerArena * sizeof(SpanEntry)); !status.ok()) {
    return status;
  }
  const uint64_t quarantine = layout_.quarantine + FirstPageOf(arena).value() / 8;
  if (absl::Status status = Back(quarantine, kPagesPerArena / 8); !status.ok()) return status;
  const std::array<NamedFd, 2> fds = {
      NamedFd{.name = KeptArenaName(incarnation(), arena, ArenaFd::kData), .fd = data_fd},
      NamedFd{.name = KeptArenaName(incarnation(), arena, ArenaFd::kTable), .fd = table_fd}};
  if (absl::Status status = Keep(fds); !status.ok()) return status;
  SPANPOOL_STEP("state.arena");
  arenas_[arena.value() / 64].fetch_or(uint64_t{1} << (arena.value() % 64),
                                       std::memory_order_release);
  return absl::OkStatus();
}

std::vector<ArenaIndex> PoolState::Arenas() const {
  std::vector<ArenaIndex> arenas;
  for (uint32_t i = 0; i < max_arenas(); ++i) {
    if ((arenas_[i / 64].load(std::memory_order_acquire) >> (i % 64) & 1) != 0) {
      arenas.push_back(ArenaIndex(i));
    }
  }
  return arenas;
}

void PoolState::RecordLoan(const Span& span, uint32_t session_record, uint64_t sequence) {
  SpanEntry& entry = EntryOf(span.first_page);
  SPANPOOL_STEP("state.loan.sequence");
  entry.sequence.store(sequence, std::memory_order_relaxed);
  SPANPOOL_STEP("state.loan");
  // release: its number comes before.
  entry.state.store(
      SpanWord(SpanPlace::kOnLoan, span.span_class, span.pages, session_record).bits(),
      std::memory_order_release);
}

void PoolState::RecordListed(const Span& span) {
  SPANPOOL_STEP("state.listed");
  EntryOf(span.first_page)
      .state.store(SpanWord(SpanPlace::kListed, span.span_class, span.pages, 0).bits(),
                   std::memory_order_release);
}

void PoolState::RecordFreed(const Span& span) {
  SPANPOOL_STEP("state.freed");
  EntryOf(span.first_page).state.store(0, std::memory_order_release);
}

absl::StatusOr<std::vector<PoolState::SpanOnRecord>> PoolState::Spans() const {
  std::vector<SpanOnRecord> spans;
  const PageId end_of_pool = FirstPageOf(ArenaIndex(max_arenas()));
  for (const ArenaIndex arena : Arenas()) {
    const PageId first = FirstPageOf(arena);
    for (PageId page = first; page < first + PageCount(kPagesPerArena); ++page) {
      const SpanEntry& entry = EntryOf(page);
      const SpanWord state(entry.state.load(std::memory_order_acquire));
      if (state.place() == static_cast<uint8_t>(SpanPlace::kFree)) continue;
      if (state.place() > static_cast<uint8_t>(SpanPlace::kListed) ||
          state.span_class() >= kNumSpanClasses || state.pages() == PageCount(0) ||
          state.pages() > end_of_pool - page) {
        return Nonsense(absl::StrCat("its entry for page ", page.value(), " is ",
                                     absl::Hex(state.bits(), absl::kZeroPad16)));
      }
      spans.push_back({.first_page = page,
                       .place = static_cast<SpanPlace>(state.place()),
                       .span_class = SpanClass::FromValue(state.span_class()),
                       .pages = state.pages(),
                       .session_record = state.session(),
                       .sequence = entry.sequence.load(std::memory_order_relaxed)});
    }
  }
  return spans;
}

uint64_t PoolState::NewSequences(uint64_t count) {
  const uint64_t first = next_sequence_.fetch_add(count, std::memory_order_relaxed);
  uint64_t end = header_->sequence_end.load(std::memory_order_relaxed);
  while (end < first + count) {
    SPANPOOL_STEP("state.sequences");
    header_->sequence_end.compare_exchange_weak(end, first + count + kSequencesAtOnce,
                                                std::memory_order_relaxed);
  }
  return first;
}

absl::StatusOr<uint32_t> PoolState::KeepSession(SessionOnRecord session, int segment_fd,
                                                int control_fd, int pidfd, int lifeline) {
  const std::array<NamedFd, 4> fds = {
      NamedFd{.name = KeptSessionName(incarnation(), session.id, SessionFd::kSegment),
              .fd = segment_fd},
      NamedFd{.name = KeptSessionName(incarnation(), session.id, SessionFd::kControl),
              .fd = control_fd},
      NamedFd{.name = KeptSessionName(incarnation(), session.id, SessionFd::kPidfd), .fd = pidfd},
      NamedFd{.name = KeptSessionName(incarnation(), session.id, SessionFd::kLifeline),
              .fd = lifeline}};
  if (absl::Status status = Keep(fds); !status.ok()) {
    ForgetSession(session.id);
    return status;
  }
  absl::StatusOr<uint32_t> index =
      TakeRecord(&free_sessions_, layout_.sessions, sizeof(SessionRecord), max_sessions());
  if (!index.ok()) {
    ForgetSession(session.id);
    return index;
  }
  uint32_t end = header_->session_end.load(std::memory_order_relaxed);
  while (end <= session.id) {
    SPANPOOL_STEP("state.session.number");
    header_->session_end.compare_exchange_weak(end, session.id + 1, std::memory_order_relaxed);
  }
  SessionRecord& record = sessions_[*index];
  record.id = session.id;
  std::copy(session.token.begin(), session.token.end(), record.token);
  record.pid = static_cast<uint32_t>(session.pid);
  record.uid = session.uid;
  record.access = session.access;
  record.first_sequence = next_sequence_.load(std::memory_order_relaxed);
  SPANPOOL_STEP("state.session");
  // release: the rest of the record comes before.
  record.state.store(RecordedSession::kAttached, std::memory_order_release);
  return index;
}

void PoolState::SetSession(uint32_t record, RecordedSession state) {
  SPANPOOL_STEP("state.session.state");
  sessions_[record].state.store(state, std::memory_order_release);
  if (state == RecordedSession::kNone) GiveRecord(&free_sessions_, record);
}

void PoolState::ForgetLifeline(uint32_t id) {
  SPANPOOL_STEP("state.forget.lifeline");
  store_->Forget(KeptSessionName(incarnation(), id, SessionFd::kLifeline));
}

void PoolState::ForgetSession(uint32_t id) {
  for (const SessionFd which :
       {SessionFd::kLifeline, SessionFd::kPidfd, SessionFd::kControl, SessionFd::kSegment}) {
    SPANPOOL_STEP("state.forget");
    store_->Forget(KeptSessionName(incarnation(), id, which));
  }
}

absl::StatusOr<std::vector<PoolState::SessionOnRecord>> PoolState::Sessions() const {
  uint32_t used;
  {
    RankedMutexLock lock(&mu_);
    used = free_sessions_.used;
  }
  std::vector<SessionOnRecord> sessions;
  for (uint32_t i = 0; i < used; ++i) {
    const SessionRecord& record = sessions_[i];
    const RecordedSession state = record.state.load(std::memory_order_acquire);
    if (state == RecordedSession::kNone) continue;
    if (state > RecordedSession::kDead || record.id == 0 || record.id >= session_end() ||
        (record.access != layout::AccessMode::kRead &&
         record.access != layout::AccessMode::kWrite)) {
      return Nonsense(absl::StrCat("its session record ", i, " makes no sense"));
    }
    SessionOnRecord& session = sessions.emplace_back();
    session.state = state;
    session.record = i;
    session.id = record.id;
    std::copy(std::begin(record.token), std::end(record.token), session.token.begin());
    session.pid = static_cast<pid_t>(record.pid);
    session.uid = record.uid;
    session.access = record.access;
    session.first_sequence = record.first_sequence;
  }
  return sessions;
}

absl::StatusOr<uint32_t> PoolState::RecordName(const NameOnRecord& name) {
  SPANPOOL_CHECK(!name.name.empty() && name.name.size() <= kMaxNameBytes);
  absl::StatusOr<uint32_t> index =
      TakeRecord(&free_names_, layout_.names, sizeof(NameRecord), max_names() + 1);
  if (!index.ok()) return index;
  NameRecord& record = names_[*index];
  record.slot = name.slot;
  record.handle[0] = name.handle.low();
  record.handle[1] = name.handle.high();
  record.version = name.version;
  record.session = name.session;
  record.pid = static_cast<uint32_t>(name.pid);
  record.uid = name.uid;
  record.outlives_session = name.outlives_session ? 1 : 0;
  std::memcpy(record.name, name.name.data(), name.name.size());
  SPANPOOL_STEP("state.name");
  // release: the rest of the record comes before.
  record.name_bytes.store(static_cast<uint32_t>(name.name.size()), std::memory_order_release);
  return index;
}

void PoolState::DropName(uint32_t record) {
  SPANPOOL_STEP("state.name.gone");
  names_[record].name_bytes.store(0, std::memory_order_release);
  GiveRecord(&free_names_, record);
}

void PoolState::SetNameVersion(uint64_t version) {
  SPANPOOL_STEP("state.name.version");
  header_->name_version.store(version, std::memory_order_relaxed);
}

absl::StatusOr<std::vector<PoolState::NameOnRecord>> PoolState::Names() {
  uint32_t used;
  {
    RankedMutexLock lock(&mu_);
    used = free_names_.used;
  }
  absl::flat_hash_map<std::string, NameOnRecord> by_name;
  std::vector<uint32_t> replaced;
  for (uint32_t i = 0; i < used; ++i) {
    const NameRecord& record = names_[i];
    const uint32_t bytes = record.name_bytes.load(std::memory_order_acquire);
    if (bytes == 0) continue;
    if (bytes > kMaxNameBytes || record.slot >= layout::kSlotCapacity ||
        record.outlives_session > 1) {
      return Nonsense(absl::StrCat("its name record ", i, " makes no sense"));
    }
    NameOnRecord name{.record = i,
                      .name = std::string(record.name, bytes),
                      .handle = layout::HandleBits::Unpack(record.handle[0], record.handle[1]),
                      .slot = record.slot,
                      .version = record.version,
                      .session = record.session,
                      .pid = static_cast<pid_t>(record.pid),
                      .uid = record.uid,
                      .outlives_session = record.outlives_session != 0};
    const auto [found, is_new] = by_name.try_emplace(name.name, name);
    if (is_new) continue;
    if (found->second.version < name.version) std::swap(found->second, name);
    replaced.push_back(name.record);
  }
  for (const uint32_t record : replaced) DropName(record);
  std::vector<NameOnRecord> names;
  names.reserve(by_name.size());
  for (auto& [text, name] : by_name) names.push_back(std::move(name));
  std::sort(names.begin(), names.end(),
            [](const NameOnRecord& a, const NameOnRecord& b) { return a.version < b.version; });
  return names;
}

void PoolState::RecordQuarantine(PageId page) {
  SPANPOOL_STEP("state.quarantine");
  quarantine_[page.value() / 64].fetch_or(uint64_t{1} << (page.value() % 64),
                                          std::memory_order_release);
}

std::vector<PageId> PoolState::Quarantined() const {
  std::vector<PageId> pages;
  for (const ArenaIndex arena : Arenas()) {
    for (uint64_t i = 0; i < kPagesPerArena / 64; ++i) {
      const uint64_t first = FirstPageOf(arena).value() + i * 64;
      for (uint64_t bits = quarantine_[first / 64].load(std::memory_order_acquire); bits != 0;
           bits &= bits - 1) {
        pages.push_back(PageId(first + static_cast<uint64_t>(__builtin_ctzll(bits))));
      }
    }
  }
  return pages;
}

void PoolState::BeginRecount(absl::Span<const GranuleId> words) {
  SPANPOOL_CHECK_LE(words.size(), size_t{kMaxJournalWords});
  for (size_t i = 0; i < words.size(); ++i) journal_->words[i] = words[i].value();
  SPANPOOL_STEP("state.8a");
  // seq_cst: which words they are comes before, and it comes before any of them is frozen.
  journal_->count.store(words.size());
}

void PoolState::EndRecount() {
  SPANPOOL_STEP("state.8b");
  // release: every word was thawed before.
  journal_->count.store(0, std::memory_order_release);
}

std::vector<GranuleId> PoolState::UnfinishedRecount() const {
  const uint64_t count = std::min<uint64_t>(journal_->count.load(), kMaxJournalWords);
  std::vector<GranuleId> words;
  for (uint64_t i = 0; i < count; ++i) words.push_back(GranuleId(journal_->words[i]));
  return words;
}

}  // namespace spanpool

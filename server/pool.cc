#include "server/pool.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "allocator/check.h"
#include "allocator/size_classes.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"
#include "server/long_step.h"
#include "server/session_memory.h"

namespace spanpool {
namespace {

using layout::Slot;
using layout::SlotState;

constexpr absl::Duration kFutileSweepPause = absl::Milliseconds(1);

template <typename T>
T Random() {
  T value;
  auto* bytes = reinterpret_cast<char*>(&value);
  for (size_t done = 0; done < sizeof(T);) {
    const ssize_t got = getrandom(bytes + done, sizeof(T) - done, 0);
    if (got > 0) done += static_cast<size_t>(got);
  }
  return value;
}

uint32_t NewIncarnation() {
  for (;;) {
    if (const auto value = Random<uint32_t>(); value != 0) return value;
  }
}

std::string Mib(uint64_t bytes) {
  return absl::StrCat(bytes >> 20, ".", (bytes >> 10 & 1023) * 10 >> 10, " MiB");
}

uint32_t MaxArenas(const PoolConfig& config) {
  return std::min<uint32_t>(Heap::MaxArenas(config.limit_bytes), kMaxPoolBytes / kArenaBytes);
}

// Null if there is no memory: the pool then holds no references itself.
std::unique_ptr<SessionMemory> NewSessionMemory(uint64_t epoch) {
  auto memory = SessionMemory::Create(epoch);
  return memory.ok() ? *std::move(memory) : nullptr;
}

uint64_t EpochOf(uint32_t incarnation, uint32_t worker) {
  return uint64_t{incarnation} << 32 | worker;
}

// Takes it out of `kept`; invalid if it is not there.
layout::UniqueFd Take(KeptFds* kept, const std::string& name) {
  auto node = kept->extract(name);
  return node.empty() ? layout::UniqueFd() : std::move(node.mapped());
}

// Writes down what becomes of spans that were returned.
class StateSpanJournal : public SpanJournal {
 public:
  explicit StateSpanJournal(PoolState* state) : state_(state) {}
  void Listed(const Span& span) override { state_->RecordListed(span); }
  void Freed(const Span& span) override { state_->RecordFreed(span); }

 private:
  PoolState* const state_;
};

std::unique_ptr<RecountJournal> NewRecountJournal(PoolState* state) {
  if (state == nullptr) return std::make_unique<MemoryRecountJournal>();
  return std::make_unique<StateRecountJournal>(state);
}

// Requires a want that CheckBatch let pass.
PageCount PagesOf(const ExchangeWant& want) {
  const SpanClass span_class = SpanClass::FromValue(static_cast<uint8_t>(want.span_class));
  return span_class.large() ? PageCount(want.pages) : SpanPages(span_class.size_class());
}

std::vector<uint64_t> TrimmedBitmap(absl::Span<const uint64_t> words) {
  size_t length = words.size();
  while (length != 0 && words[length - 1] == 0) --length;
  return std::vector<uint64_t>(words.begin(), words.begin() + static_cast<ptrdiff_t>(length));
}

}  // namespace

Pool::Pool(const PoolConfig& config, const MemoryLimit* memory, SessionTable* sessions)
    : Pool(config, memory, sessions, NewIncarnation(), MaxArenas(config), nullptr, nullptr) {}

Pool::Pool(const PoolConfig& config, const MemoryLimit* memory, SessionTable* sessions,
           uint32_t incarnation, uint32_t max_arenas, std::unique_ptr<PoolState> state,
           std::unique_ptr<SessionMemory> worker_memory)
    : config_(config),
      sessions_(sessions),
      incarnation_(incarnation),
      max_arenas_(max_arenas),
      state_(std::move(state)),
      journal_(NewRecountJournal(state_.get())),
      span_journal_(state_ == nullptr ? nullptr : std::make_unique<StateSpanJournal>(state_.get())),
      arenas_(config.name, max_arenas_, memory, config.arena_kind, state_.get()),
      quarantine_(state_.get()),
      block_states_(&arenas_, &quarantine_),
      heap_(HeapOptions{.limit_bytes = config.limit_bytes,
                        .reserve_bytes = config.reserve_bytes.value_or(0),
                        .max_arenas = max_arenas_,
                        .journal = span_journal_.get()},
            &arenas_, &block_states_),
      worker_references_(&arenas_, worker_memory != nullptr ? std::move(worker_memory)
                                                            : NewSessionMemory(incarnation_)),
      names_(config.max_names, state_.get()),
      recounter_({.sessions = [this] { return Sessions(); },
                  .worker = &worker_references_,
                  .arenas = &arenas_,
                  .journal = journal_.get(),
                  .lie = [this](Session& session, const char* what) { NoteLie(session, what); }}),
      session_reaper_(
          {.arenas = &arenas_,
           .heap = &heap_,
           .worker = &worker_references_,
           .recounter = &recounter_,
           .transit_grace = config.transit_grace,
           .lie = [this](Session& session, const char* what) { NoteLie(session, what); },
           .quarantine = [this](GranuleId granule, const char* why) { GiveUpSpan(granule, why); },
           .lost_transit = [this](const Session& session,
                                  const absl::Status& why) { NoteLostTransit(session, why); },
           .returned =
               [this](uint64_t spans) {
                 returns_total_.fetch_add(spans, std::memory_order_relaxed);
               }}) {}

absl::StatusOr<std::unique_ptr<Pool>> Pool::Create(const PoolConfig& config,
                                                   const MemoryLimit* memory,
                                                   SessionTable* sessions, FdStore* store,
                                                   uint64_t config_hash) {
  const uint32_t incarnation = NewIncarnation();
  const uint32_t max_arenas = MaxArenas(config);
  auto state = PoolState::Create({.pool = config.name,
                                  .config_hash = config_hash,
                                  .limit_bytes = config.limit_bytes,
                                  .incarnation = incarnation,
                                  .max_arenas = max_arenas,
                                  .max_sessions = sessions->max_sessions(),
                                  .max_names = config.max_names,
                                  .arena_kind = static_cast<uint32_t>(config.arena_kind)},
                                 store);
  if (!state.ok()) return state.status();
  auto worker_memory = SessionMemory::Create(EpochOf(incarnation, (*state)->worker()));
  if (!worker_memory.ok()) return worker_memory.status();
  const std::array<NamedFd, 2> fds = {
      NamedFd{.name = KeptWorkerName(incarnation, SessionFd::kSegment),
              .fd = (*worker_memory)->session_fd()},
      NamedFd{.name = KeptWorkerName(incarnation, SessionFd::kControl),
              .fd = (*worker_memory)->control_fd()}};
  if (absl::Status status = (*state)->Keep(fds); !status.ok()) return status;
  (*worker_memory)->CloseWritableControlFd();
  return std::unique_ptr<Pool>(new Pool(config, memory, sessions, incarnation, max_arenas,
                                        *std::move(state), *std::move(worker_memory)));
}

absl::StatusOr<std::unique_ptr<Pool>> Pool::Restore(const PoolConfig& config,
                                                    const MemoryLimit* memory,
                                                    SessionTable* sessions,
                                                    std::unique_ptr<PoolState> state,
                                                    KeptFds* kept) {
  SPANPOOL_CHECK_EQ(config.limit_bytes, state->limit_bytes());
  const uint32_t incarnation = state->incarnation();
  const uint32_t max_arenas = state->max_arenas();
  auto worker_memory =
      SessionMemory::Adopt(Take(kept, KeptWorkerName(incarnation, SessionFd::kSegment)),
                           Take(kept, KeptWorkerName(incarnation, SessionFd::kControl)),
                           EpochOf(incarnation, state->worker()));
  if (!worker_memory.ok()) return worker_memory.status();
  (*worker_memory)->CloseWritableControlFd();
  std::unique_ptr<Pool> pool(new Pool(config, memory, sessions, incarnation, max_arenas,
                                      std::move(state), *std::move(worker_memory)));
  if (absl::Status status = pool->RestoreArenas(kept); !status.ok()) return status;
  absl::StatusOr<SessionsByRecord> by_record = pool->RestoreSessions(kept);
  absl::Status status = by_record.status();
  if (status.ok()) status = pool->RestoreSpans(*by_record);
  if (status.ok()) status = pool->RestoreReferences();
  if (!status.ok()) {
    // The table may outlive this attempt.
    for (const std::shared_ptr<Session>& session : pool->Sessions()) sessions->Remove(*session);
    return status;
  }
  return pool;
}

absl::Status Pool::RestoreArenas(KeptFds* kept) {
  for (const ArenaIndex arena : state_->Arenas()) {
    layout::UniqueFd data = Take(kept, KeptArenaName(incarnation_, arena, ArenaFd::kData));
    layout::UniqueFd table = Take(kept, KeptArenaName(incarnation_, arena, ArenaFd::kTable));
    if (!data.valid() || !table.valid()) {
      return absl::DataLossError(absl::StrCat("pool ", name(), ": arena ", arena.value(),
                                              " is on record, and was not kept"));
    }
    if (absl::Status status = arenas_.Adopt(arena, std::move(data), std::move(table));
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Pool::SessionsByRecord> Pool::RestoreSessions(KeptFds* kept) {
  SessionsByRecord by_record;
  absl::StatusOr<std::vector<PoolState::SessionOnRecord>> records = state_->Sessions();
  if (!records.ok()) return records.status();
  sessions_->RaiseNextId(state_->session_end());
  for (const PoolState::SessionOnRecord& record : *records) {
    const auto take = [&](SessionFd which) {
      return Take(kept, KeptSessionName(incarnation_, record.id, which));
    };
    layout::UniqueFd pidfd = take(SessionFd::kPidfd);
    layout::UniqueFd lifeline = take(SessionFd::kLifeline);
    auto memory =
        SessionMemory::Adopt(take(SessionFd::kSegment), take(SessionFd::kControl), epoch());
    if (!memory.ok() || !pidfd.valid()) {
      return absl::DataLossError(absl::StrCat("pool ", name(), ": session ", record.id,
                                              " is on record, and was not kept"));
    }
    (*memory)->CloseWritableControlFd();
    auto session = std::make_shared<Session>(
        this, record.id, record.token,
        PeerIdentity{.pid = record.pid, .uid = record.uid, .gids = {}}, record.access,
        config_.session_limit_bytes, std::move(pidfd), *std::move(memory));
    session->SetRecord(state_.get(), record.record);
    switch (record.state) {
      case RecordedSession::kNone:
      case RecordedSession::kAttached:
        break;
      case RecordedSession::kDetached:
        session->Restore(SessionState::kDetached);
        break;
      case RecordedSession::kDead:
        session->Restore(SessionState::kDead);
        break;
    }
    sessions_->Restore(session);
    if (session->state() == SessionState::kAttached) {
      lifelines_.push_back({session, std::move(lifeline)});
    } else {
      ForgetLifeline(*session);
    }
    by_record[record.record] = {session, record.first_sequence};
  }
  return by_record;
}

absl::Status Pool::RestoreSpans(const SessionsByRecord& sessions) {
  absl::StatusOr<std::vector<PoolState::SpanOnRecord>> records = state_->Spans();
  if (!records.ok()) return records.status();
  std::vector<SpanState> spans;
  std::vector<const PoolState::SpanOnRecord*> loans;  // null: listed
  spans.reserve(records->size());
  loans.reserve(records->size());
  for (const PoolState::SpanOnRecord& record : *records) {
    bool on_loan = record.place == SpanPlace::kOnLoan;
    if (on_loan) {
      // Its session may have ended in order, while the heap was still looking where the span, which
      // it had returned, goes.
      const auto found = sessions.find(record.session_record);
      on_loan = found != sessions.end() && record.sequence >= found->second.second;
    }
    spans.push_back({.first_page = record.first_page,
                     .pages = record.pages,
                     .span_class = record.span_class,
                     .place = on_loan ? SpanState::Place::kOnLoan : SpanState::Place::kListed});
    loans.push_back(on_loan ? &record : nullptr);
  }
  absl::StatusOr<std::vector<Span*>> restored = heap_.Restore(state_->Arenas(), spans);
  if (!restored.ok()) {
    if (absl::IsResourceExhausted(restored.status())) return restored.status();
    return absl::DataLossError(
        absl::StrCat("pool ", name(), ": the heap cannot be: ", restored.status().message()));
  }
  for (size_t i = 0; i < spans.size(); ++i) {
    arenas_.AdoptTable(*heap_.SpanOf(spans[i].first_page));
    if (loans[i] == nullptr) continue;
    sessions.at(loans[i]->session_record).first->RestoreLoan({loans[i]->sequence, (*restored)[i]});
  }
  return absl::OkStatus();
}

absl::Status Pool::RestoreReferences() {
  // Rule 8 of tests/model/README.md: the words, then session 0.
  recounter_.Resume();
  absl::StatusOr<std::vector<PoolState::NameOnRecord>> names = state_->Names();
  if (!names.ok()) return names.status();
  absl::flat_hash_set<uint32_t> named;
  for (const PoolState::NameOnRecord& name : *names) named.insert(name.slot);
  worker_references_.Resume(named, absl::Now() + config_.transit_grace);
  RecountUnclear();
  names_.Restore(*names);
  absl::flat_hash_set<uint32_t> attached;
  for (const std::shared_ptr<Session>& session : Sessions()) {
    if (session->state() == SessionState::kAttached) attached.insert(session->id());
  }
  DropNamed(names_.EndOthers(attached));
  return absl::OkStatus();
}

void Pool::RecountUnclear() {
  const std::vector<GranuleId> granules = worker_references_.Unclear();
  if (granules.empty()) return;
  const std::vector<Recounter::Result> results = recounter_.Recount(granules);
  absl::flat_hash_set<GranuleId> lost;
  for (size_t i = 0; i < granules.size(); ++i) {
    if (results[i] != Recounter::Result::kLost) continue;
    GiveUpSpan(granules[i], "somebody writes over its word");
    lost.insert(granules[i]);
  }
  worker_references_.SettleUnclear(lost);
}

uint64_t Pool::epoch() const {
  return state_ == nullptr ? incarnation_ : EpochOf(incarnation_, state_->worker());
}

uint64_t Pool::NewSequence() {
  return state_ != nullptr ? state_->NewSequences(1)
                           : next_sequence_.fetch_add(1, std::memory_order_relaxed);
}

void Pool::ForgetSession(const Session& session) {
  if (state_ != nullptr) state_->ForgetSession(session.id());
}

void Pool::ForgetLifeline(const Session& session) {
  if (state_ != nullptr) state_->ForgetLifeline(session.id());
}

absl::StatusOr<std::shared_ptr<Session>> Pool::Attach(const PeerIdentity& peer,
                                                      layout::AccessMode access,
                                                      layout::UniqueFd pidfd, int lifeline) {
  auto memory = SessionMemory::Create(epoch());
  if (!memory.ok()) return memory.status();
  auto session =
      std::make_shared<Session>(this, sessions_->NextId(), Random<SessionToken>(), peer, access,
                                config_.session_limit_bytes, std::move(pidfd), *std::move(memory));
  if (state_ != nullptr) {
    if (absl::Status status = sessions_->RoomFor(peer.uid); !status.ok()) return status;
    absl::StatusOr<uint32_t> record = state_->KeepSession(
        {.state = RecordedSession::kAttached,
         .record = 0,
         .id = session->id(),
         .token = session->token(),
         .pid = peer.pid,
         .uid = peer.uid,
         .access = access,
         .first_sequence = 0},
        session->memory().session_fd(), session->memory().control_fd(), session->pidfd(), lifeline);
    if (!record.ok()) return record.status();
    session->SetRecord(state_.get(), *record);
  }
  session->memory().CloseWritableControlFd();
  if (absl::Status status = sessions_->Add(session); !status.ok()) {
    if (session->EndClean()) ForgetSession(*session);
    return status;
  }
  sessions_attached_total_.fetch_add(1, std::memory_order_relaxed);
  return session;
}

absl::Status Pool::CheckBatch(const ExchangeBatch& batch) const {
  if (batch.returns.size() > kMaxReturns) {
    return absl::InvalidArgumentError(
        absl::StrCat(batch.returns.size(), " returns in one request; at most ", kMaxReturns));
  }
  if (batch.wants.size() > kMaxWants) {
    return absl::InvalidArgumentError(
        absl::StrCat(batch.wants.size(), " wants in one request; at most ", kMaxWants));
  }
  for (size_t i = 0; i < batch.wants.size(); ++i) {
    const ExchangeWant& want = batch.wants[i];
    if (want.span_class >= kNumSpanClasses) {
      return absl::InvalidArgumentError(absl::StrCat("want ", i, ": span class ", want.span_class,
                                                     "; expected 0 to ", kNumSpanClasses - 1));
    }
    if (want.spans == 0 || want.spans > kMaxSpansPerWant) {
      return absl::InvalidArgumentError(
          absl::StrCat("want ", i, ": ", want.spans, " spans; expected 1 to ", kMaxSpansPerWant));
    }
    if (!SpanClass::FromValue(static_cast<uint8_t>(want.span_class)).large()) continue;
    if (want.pages == 0) {
      return absl::InvalidArgumentError(absl::StrCat("want ", i, ": a large span of no pages"));
    }
    if (want.alignment_pages != 0 &&
        (!std::has_single_bit(want.alignment_pages) || want.alignment_pages > kMaxAlignmentPages)) {
      return absl::InvalidArgumentError(
          absl::StrCat("want ", i, ": alignment of ", want.alignment_pages,
                       " pages; expected a power of two up to ", kMaxAlignmentPages));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ExchangeResult> Pool::Exchange(Session& session, const ExchangeBatch& batch) {
  exchange_messages_total_.fetch_add(1, std::memory_order_relaxed);
  if (session.state() != SessionState::kAttached) {
    return absl::UnauthenticatedError("the session is not attached; attach again");
  }
  if (absl::Status status = CheckBatch(batch); !status.ok()) return status;

  uint64_t returned = 0;
  for (const uint64_t sequence : batch.returns) {
    Span* span = session.TakeLoan(sequence);
    if (span == nullptr) continue;  // an old message; the grant it names is gone
    heap_.Return(span);
    ++returned;
  }
  returns_total_.fetch_add(returned, std::memory_order_relaxed);

  ExchangeResult result;
  std::vector<Session::Loan> loans;
  uint64_t reserved_bytes = 0;
  absl::Status shortage;  // described once per message
  uint64_t short_bytes = 0;
  const auto fall_short = [&](uint32_t want, uint32_t missing, absl::Status status) {
    refusals_total_.fetch_add(1, std::memory_order_relaxed);
    result.shortfalls.push_back({want, missing, std::move(status)});
  };
  for (uint32_t w = 0; w < batch.wants.size(); ++w) {
    const ExchangeWant& want = batch.wants[w];
    if (session.access() == layout::AccessMode::kRead) {
      fall_short(w, want.spans,
                 absl::PermissionDeniedError("the session is attached for reading; attach with "
                                             "write access to allocate"));
      continue;
    }
    const uint64_t most_pages = config_.limit_bytes / kPageBytes;
    if (PagesOf(want).value() > most_pages || Bytes(PagesOf(want)) > session.limit_bytes()) {
      fall_short(w, want.spans,
                 absl::InvalidArgumentError(
                     absl::StrCat(PagesOf(want).value(), " pages of 8 KiB are more than pool ",
                                  name(), " can ever lend: its limit is ", config_.limit_bytes,
                                  " bytes, ", session.limit_bytes(), " to one session")));
      continue;
    }
    const uint64_t span_bytes = Bytes(PagesOf(want));
    for (uint32_t n = 0; n < want.spans; ++n) {
      const uint32_t missing = want.spans - n;
      if (loans.size() == kMaxGrants) {
        fall_short(w, missing,
                   absl::ResourceExhaustedError(absl::StrCat(
                       "one message grants at most ", kMaxGrants, " spans; ask again for more")));
        break;
      }
      if (!session.Reserve(span_bytes)) {
        // A session that may have the whole pool is not held back by a limit of its own.
        const bool own_limit = session.limit_bytes() < config_.limit_bytes;
        fall_short(w, missing,
                   absl::ResourceExhaustedError(absl::StrCat(
                       session.Describe(), " holds ", Mib(session.loan_bytes()), " and ",
                       own_limit ? "its" : "the pool's", " limit is ", Mib(session.limit_bytes()),
                       ": give back idle spans, or raise ",
                       own_limit ? "session_limit_bytes" : "limit_bytes", " of pool ", name())));
        break;
      }
      absl::StatusOr<Span*> span = GrantOne(want);
      if (!span.ok()) {
        session.Unreserve(span_bytes);
        if (shortage.ok()) shortage = DescribeShortage(span.status());
        short_bytes += missing * span_bytes;
        fall_short(w, missing, shortage);
        break;
      }
      SPANPOOL_CHECK_EQ((*span)->pages.value(), PagesOf(want).value());
      reserved_bytes += span_bytes;
      const uint64_t sequence = NewSequence();
      loans.push_back({sequence, *span});
      result.grants.push_back({.sequence = sequence,
                               .first_page = (*span)->first_page,
                               .pages = (*span)->pages,
                               .span_class = (*span)->span_class,
                               .in_use = TrimmedBitmap((*span)->in_use()),
                               .want = w});
    }
  }
  // Before the answer, so that whatever becomes of it, the spans are known to be the session's.
  if (!session.Record(loans, reserved_bytes)) {
    for (const Session::Loan& loan : loans) heap_.Return(loan.span);
    return absl::UnauthenticatedError("the session ended meanwhile; attach again");
  }
  grants_total_.fetch_add(loans.size(), std::memory_order_relaxed);
  NoteWork(reserved_bytes, returned != 0);
  if (short_bytes != 0) shortage_(session, short_bytes);
  return result;
}

absl::StatusOr<std::vector<uint64_t>> Pool::CheckInventory(
    const InventoryPart& part, const InventoryProgress& progress) const {
  const size_t count = part.sequence_deltas.size();
  if (count > kMaxInventory) {
    return absl::InvalidArgumentError(
        absl::StrCat(count, " numbers in one part of an inventory; at most ", kMaxInventory));
  }
  if (count == 0 && part.more) {
    return absl::InvalidArgumentError("an empty part of an inventory, and it is not the last");
  }
  if (progress.count + count > config_.limit_bytes / kPageBytes) {
    return absl::InvalidArgumentError("the inventory has more spans than the pool has pages");
  }
  const uint64_t never_granted =
      state_ != nullptr ? state_->next_sequence() : next_sequence_.load(std::memory_order_relaxed);
  std::vector<uint64_t> sequences;
  sequences.reserve(count);
  uint64_t last = progress.last;
  for (const uint64_t delta : part.sequence_deltas) {
    if (delta == 0) {
      return absl::InvalidArgumentError(absl::StrCat("the inventory does not ascend after ", last));
    }
    if (delta >= never_granted || last >= never_granted - delta) {
      return absl::InvalidArgumentError(absl::StrCat("the inventory has a number after ", last,
                                                     " that the pool has not given out"));
    }
    last += delta;
    sequences.push_back(last);
  }
  return sequences;
}

absl::StatusOr<std::vector<uint64_t>> Pool::Reconcile(Session& session, const InventoryPart& part,
                                                      InventoryProgress* progress) {
  // The last part's message is counted when the rest of it is carried out.
  if (part.more) exchange_messages_total_.fetch_add(1, std::memory_order_relaxed);
  if (session.state() != SessionState::kAttached) {
    return absl::UnauthenticatedError("the session is not attached; attach again");
  }
  absl::StatusOr<std::vector<uint64_t>> sequences = CheckInventory(part, *progress);
  if (!sequences.ok()) return sequences.status();
  std::vector<uint64_t> unknown = session.NotOnLoan(*sequences);
  const uint64_t last = part.more ? sequences->back() : UINT64_MAX;
  uint64_t returned = 0;
  for (;;) {
    const std::vector<Span*> spans =
        session.TakeLoansBut(*sequences, progress->last, last, kMaxReturns);
    for (Span* span : spans) heap_.Return(span);
    returned += spans.size();
    if (spans.size() < kMaxReturns) break;
    AnnounceLongStep();
  }
  returns_total_.fetch_add(returned, std::memory_order_relaxed);
  progress->last = last;
  progress->count += sequences->size();
  if (returned != 0 || !unknown.empty()) {
    uint64_t suppressed = 0;
    if (inventory_log_.Allow(absl::Now(), &suppressed)) {
      Log().info(
          "pool {}: {} is back: {} spans that it never learned of, or had returned, were taken "
          "back; {} that it names are not on record ({} such lines suppressed)",
          name(), session.Describe(), returned, unknown.size(), suppressed);
    }
    NoteWork(0, returned != 0);
  }
  return unknown;
}

absl::StatusOr<Span*> Pool::GrantOne(const ExchangeWant& want) {
  const SpanClass span_class = SpanClass::FromValue(static_cast<uint8_t>(want.span_class));
  const auto grant = [&] {
    return span_class.large()
               ? heap_.GrantLarge(PageCount(want.pages), !span_class.noscan(),
                                  PageCount(std::max<uint64_t>(want.alignment_pages, 1)))
               : heap_.Grant(span_class);
  };
  absl::StatusOr<Span*> span = grant();
  if (absl::IsResourceExhausted(span.status()) && HasListedSpans()) {
    // Blocks that others dropped since the last sweep may be all it takes.
    const int64_t now = absl::GetCurrentTimeNanos();
    const int64_t since = now - futile_sweep_nanos_.load(std::memory_order_relaxed);
    if (since < 0 || since >= absl::ToInt64Nanoseconds(kFutileSweepPause)) {
      AnnounceLongStep();
      heap_.Sweep();
      span = grant();
      if (!span.ok()) futile_sweep_nanos_.store(now, std::memory_order_relaxed);
    }
  }
  if (!span.ok()) return span;
  if (absl::Status status = arenas_.PrepareTable(**span); !status.ok()) {
    heap_.Return(*span);
    return status;
  }
  return span;
}

absl::Status Pool::DescribeShortage(const absl::Status& cause) const {
  const HeapStats heap = heap_.stats();
  std::string most;
  uint64_t most_bytes = 0;
  for (const std::shared_ptr<Session>& session : sessions_->Snapshot(this)) {
    const uint64_t bytes = session->loan_bytes();
    if (bytes <= most_bytes) continue;
    most_bytes = bytes;
    most = absl::StrCat("; ", session->Describe(), " holds most, ", Mib(bytes));
  }
  return absl::Status(
      cause.code(),
      absl::StrCat("pool ", name(), ": ", cause.message(), "; limit ", Mib(heap.limit_bytes),
                   ", on loan ", Mib(heap.on_loan_bytes), ", in shared blocks ",
                   Mib(heap.in_lists_bytes), most,
                   ": give back idle spans and retry, or provide more of what is short"));
}

void Pool::NoteWork(uint64_t granted_bytes, bool returned) {
  if (granted_bytes != 0) {
    // An eighth of the reserve may be used up before it is worth a wake-up.
    const uint64_t granted =
        granted_since_work_.fetch_add(granted_bytes, std::memory_order_relaxed) + granted_bytes;
    if (granted >= config_.reserve_bytes.value_or(0) / 8) {
      granted_since_work_.store(0, std::memory_order_relaxed);
      work_(Work::kReplenish);
    }
  }
  if (returned && HasListedSpans()) work_(Work::kSweep);
}

absl::StatusOr<uint64_t> Pool::Publish(Session& session, const PublishRequest& request) {
  if (session.access() == layout::AccessMode::kRead) {
    return absl::PermissionDeniedError(
        "the session is attached for reading; attach with write access to publish");
  }
  const layout::HandleBits& handle = request.handle;
  if (handle.incarnation != incarnation_) {
    return absl::FailedPreconditionError(
        absl::StrCat("the handle is of pool incarnation ", handle.incarnation, ", pool ", name(),
                     " is ", incarnation_, ": another pool, or this one before it was lost"));
  }
  if (handle.length > layout::kMaxHandleLength) {
    return absl::InvalidArgumentError("no pool gave out this handle");
  }
  absl::StatusOr<uint32_t> slot = worker_references_.Open(handle.granule, handle.generation);
  if (!slot.ok()) return slot.status();
  std::optional<uint32_t> replaced;
  absl::StatusOr<uint64_t> version = names_.Publish(session,
                                                    {.name = request.name,
                                                     .handle = handle,
                                                     .version = 0,
                                                     .outlives_session = request.outlive_session,
                                                     .session = 0,
                                                     .pid = 0,
                                                     .uid = 0},
                                                    *slot, request.replace, &replaced);
  if (!version.ok()) replaced = *slot;
  if (replaced.has_value()) DropNamed({*replaced});
  return version;
}

absl::StatusOr<PublishedBlock> Pool::Lookup(const std::string& name) const {
  return names_.Lookup(name);
}

absl::Status Pool::Unpublish(const std::string& name) {
  absl::StatusOr<uint32_t> slot = names_.Unpublish(name);
  if (!slot.ok()) return slot.status();
  DropNamed({*slot});
  return absl::OkStatus();
}

void Pool::DropNamed(const std::vector<uint32_t>& slots) {
  for (const uint32_t slot : slots) worker_references_.Release(slot);
  // Whether there is anything to sweep is not for every caller to ask the heap.
  if (worker_references_.TookLast()) work_(Work::kSweep);
}

absl::Status Pool::Detach(Session& session) {
  SessionMemory& memory = session.memory();
  bool in_transit = false;
  for (SessionMemory::SlotRange range = memory.WrittenSlots(0); range.first < layout::kSlotCapacity;
       range = memory.WrittenSlots(range.end)) {
    for (uint32_t i = range.first; i < range.end; ++i) {
      const Slot slot(memory.slot(i).load());
      if (slot.state() == SlotState::kTransit) {
        in_transit = true;
      } else if (slot.state() != SlotState::kFree) {
        return absl::FailedPreconditionError(
            absl::StrCat("slot ", i, " still names a reference; release every buffer first"));
      }
    }
  }
  if (!(in_transit ? session.Retire() : session.EndClean())) {
    return absl::FailedPreconditionError(
        absl::StrCat(session.loan_count(), " spans are still on loan; return them first"));
  }
  if (in_transit) {
    ForgetLifeline(session);
  } else {
    sessions_->Remove(session);
    ForgetSession(session);
  }
  DropNamed(names_.EndSession(session, NameRemoval::kPublisherLeft));
  return absl::OkStatus();
}

void Pool::LifelineEnded(Session& session) {
  if (!session.Detach(absl::UnauthenticatedError("the attach connection ended; attach again"))) {
    return;
  }
  ForgetLifeline(session);
  DropNamed(names_.EndSession(session, NameRemoval::kPublisherLost));
}

void Pool::Evict(Session& session, const absl::Status& why) {
  if (!session.Detach(why)) return;
  ForgetLifeline(session);
  DropNamed(names_.EndSession(session, NameRemoval::kPublisherLost));
  evictions_total_.fetch_add(1, std::memory_order_relaxed);
  uint64_t suppressed = 0;
  if (eviction_log_.Allow(absl::Now(), &suppressed)) {
    Log().warn("pool {}: {} evicted: {} ({} such lines suppressed)", name(), session.Describe(),
               Printable(why.message()), suppressed);
  }
  evicted_(session);
}

bool Pool::ProcessDied(Session& session) {
  if (!session.Kill()) return false;
  ForgetLifeline(session);
  DropNamed(names_.EndSession(session, NameRemoval::kPublisherLost));
  return true;
}

ReapProgress Pool::ReapSome(Session& session, uint32_t budget) {
  const ReapProgress progress = session_reaper_.Reap(session, budget);
  if (progress == ReapProgress::kDone && session.EndReaped()) {
    sessions_->Remove(session);
    ForgetSession(session);
    sessions_reaped_total_.fetch_add(1, std::memory_order_relaxed);
    NoteWork(0, true);
  }
  return progress;
}

absl::Time Pool::SettleReferences(absl::Time now) {
  RecountUnclear();
  const absl::Time next = worker_references_.Settle(now);
  if (worker_references_.TookLast()) NoteWork(0, true);
  return next;
}

void Pool::NoteLie(Session& session, const char* what) {
  lies_total_.fetch_add(1, std::memory_order_relaxed);
  uint64_t suppressed = 0;
  // Once for each session, so that none of many liars hides another.
  if (!std::exchange(session.reaping.lied, true) && lie_log_.Allow(absl::Now(), &suppressed)) {
    Log().warn("pool {}: {} left {} ({} such lines suppressed)", name(), session.Describe(), what,
               suppressed);
  }
  if (session.state() == SessionState::kAttached) {
    Evict(session, absl::InvalidArgumentError(absl::StrCat("its segment has ", what)));
  }
}

void Pool::NoteLostTransit(const Session& session, const absl::Status& why) {
  uint64_t suppressed = 0;
  if (lost_log_.Allow(absl::Now(), &suppressed)) {
    Log().warn("pool {}: a handle that {} had sent is lost with it: {} ({} such lines suppressed)",
               name(), session.Describe(), std::string(why.message()), suppressed);
  }
}

void Pool::GiveUpSpan(GranuleId granule, const char* why) {
  if (!quarantine_.Add(granule)) return;
  uint64_t suppressed = 0;
  if (suspect_log_.Allow(absl::Now(), &suppressed)) {
    Log().warn(
        "pool {}: the span of the block at granule {} is in quarantine, never to be used again: "
        "{}. "
        "Some process of the pool wrote over the block table ({} such lines suppressed)",
        name(), granule.value(), why, suppressed);
  }
}

PageCount Pool::Sweep() { return heap_.Sweep(); }

uint64_t Pool::Trim() {
  heap_.Sweep();
  return Bytes(heap_.Trim());
}

PoolStats Pool::stats() const {
  PoolStats stats;
  stats.heap = heap_.stats();
  stats.table_bytes = arenas_.table_bytes();
  for (const std::shared_ptr<Session>& session : sessions_->Snapshot(this)) {
    switch (session->state()) {
      case SessionState::kDetached:
        stats.quarantined_bytes += session->loan_bytes();
        ++stats.sessions;
        break;
      case SessionState::kAttached:
        ++stats.sessions;
        break;
      case SessionState::kDead:
      case SessionState::kEnded:
        break;
    }
  }
  const auto get = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  stats.sessions_attached_total = get(sessions_attached_total_);
  stats.sessions_reaped_total = get(sessions_reaped_total_);
  stats.exchange_messages_total = get(exchange_messages_total_);
  stats.grants_total = get(grants_total_);
  stats.returns_total = get(returns_total_);
  stats.suspect_blocks = quarantine_.size();
  stats.recounts_total = recounter_.recounts();
  stats.names = names_.size();
  stats.adopted_references = worker_references_.transits();
  stats.refusals_total = get(refusals_total_);
  stats.lies_total = get(lies_total_);
  stats.evictions_total = get(evictions_total_);
  return stats;
}

}  // namespace spanpool

#include "server/session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "allocator/check.h"
#include "allocator/units.h"

namespace spanpool {
namespace {

RecordedSession Recorded(SessionState state) {
  switch (state) {
    case SessionState::kAttached:
      return RecordedSession::kAttached;
    case SessionState::kDetached:
      return RecordedSession::kDetached;
    case SessionState::kDead:
      return RecordedSession::kDead;
    case SessionState::kEnded:
      break;
  }
  return RecordedSession::kNone;
}

}  // namespace

Session::Session(Pool* pool, uint32_t id, const SessionToken& token, PeerIdentity peer,
                 layout::AccessMode access, uint64_t limit_bytes, layout::UniqueFd pidfd,
                 std::unique_ptr<SessionMemory> memory)
    : pool_(pool),
      id_(id),
      token_(token),
      peer_(std::move(peer)),
      access_(access),
      limit_bytes_(limit_bytes),
      pidfd_(std::move(pidfd)),
      memory_(std::move(memory)) {}

void Session::SetRecord(PoolState* pool_state, uint32_t record) {
  pool_state_ = pool_state;
  record_ = record;
}

void Session::Restore(SessionState state) {
  RankedMutexLock lock(&mu_);
  state_ = state;
}

void Session::RestoreLoan(const Loan& loan) {
  RankedMutexLock lock(&mu_);
  AddLoanLocked(loan);
}

std::string Session::Describe() const {
  return absl::StrCat("session ", id_, " (pid ", peer_.pid, ", uid ", peer_.uid, ")");
}

SessionState Session::state() const {
  RankedMutexLock lock(&mu_);
  return state_;
}

uint64_t Session::loan_bytes() const {
  RankedMutexLock lock(&mu_);
  return loan_bytes_;
}

size_t Session::loan_count() const {
  RankedMutexLock lock(&mu_);
  return loans_.size();
}

void Session::SetStateLocked(SessionState next) {
  if (pool_state_ != nullptr) pool_state_->SetSession(record_, Recorded(next));
  state_ = next;
}

void Session::AddLoanLocked(const Loan& loan) {
  const size_t before = loans_.size();
  // A grant of this moment is usually the newest.
  loans_.emplace_hint(loans_.end(), loan.sequence, loan.span);
  SPANPOOL_CHECK_EQ(loans_.size(), before + 1) << "sequence " << loan.sequence;
  loan.span->loan_session = id_;
  loan.span->loan_sequence = loan.sequence;
  loan_bytes_ += Bytes(loan.span->pages);
}

Session::Streams Session::MoveTo(SessionState next) {
  SetStateLocked(next);
  Streams streams;
  watches_.push_back(std::exchange(stream_, {}));
  for (const std::weak_ptr<SessionStream>& each : std::exchange(watches_, {})) {
    if (std::shared_ptr<SessionStream> stream = each.lock()) streams.push_back(std::move(stream));
  }
  return streams;
}

void Session::EndAll(const Streams& streams, const absl::Status& why) {
  for (const std::shared_ptr<SessionStream>& stream : streams) stream->End(why);
}

bool Session::Detach(const absl::Status& why) {
  Streams streams;
  {
    RankedMutexLock lock(&mu_);
    if (state_ != SessionState::kAttached) return false;
    streams = MoveTo(SessionState::kDetached);
  }
  EndAll(streams, why);
  return true;
}

bool Session::Kill() {
  Streams streams;
  {
    RankedMutexLock lock(&mu_);
    if (state_ != SessionState::kAttached && state_ != SessionState::kDetached) return false;
    streams = MoveTo(SessionState::kDead);
  }
  EndAll(streams, absl::UnauthenticatedError("the session's process is dead"));
  return true;
}

bool Session::Leave(SessionState next) {
  Streams streams;
  {
    RankedMutexLock lock(&mu_);
    if (state_ != SessionState::kAttached || !loans_.empty() || pending_bytes_ != 0) return false;
    streams = MoveTo(next);
  }
  EndAll(streams, absl::UnauthenticatedError("the session was detached"));
  return true;
}

bool Session::EndClean() { return Leave(SessionState::kEnded); }
bool Session::Retire() { return Leave(SessionState::kDead); }

bool Session::EndReaped() {
  RankedMutexLock lock(&mu_);
  if (state_ != SessionState::kDead || !loans_.empty()) return false;
  SetStateLocked(SessionState::kEnded);
  return true;
}

bool Session::Reserve(uint64_t bytes) {
  RankedMutexLock lock(&mu_);
  const uint64_t used = loan_bytes_ + pending_bytes_;
  if (used > limit_bytes_ || bytes > limit_bytes_ - used) return false;
  pending_bytes_ += bytes;
  return true;
}

void Session::Unreserve(uint64_t bytes) {
  RankedMutexLock lock(&mu_);
  SPANPOOL_CHECK_GE(pending_bytes_, bytes);
  pending_bytes_ -= bytes;
}

bool Session::Record(const std::vector<Loan>& loans, uint64_t reserved_bytes) {
  RankedMutexLock lock(&mu_);
  SPANPOOL_CHECK_GE(pending_bytes_, reserved_bytes);
  pending_bytes_ -= reserved_bytes;
  if (state_ != SessionState::kAttached) return false;
  for (const Loan& loan : loans) {
    if (pool_state_ != nullptr) pool_state_->RecordLoan(*loan.span, record_, loan.sequence);
    AddLoanLocked(loan);
  }
  return true;
}

Span* Session::TakeLoan(uint64_t sequence) {
  RankedMutexLock lock(&mu_);
  if (state_ != SessionState::kAttached) return nullptr;
  auto it = loans_.find(sequence);
  if (it == loans_.end()) return nullptr;
  return TakeLocked(&it);
}

Span* Session::TakeLocked(Loans::iterator* loan) {
  Span* const span = (*loan)->second;
  *loan = loans_.erase(*loan);
  loan_bytes_ -= Bytes(span->pages);
  returned_bytes_.fetch_add(Bytes(span->pages), std::memory_order_relaxed);
  span->loan_session = 0;
  span->loan_sequence = 0;
  return span;
}

std::vector<uint64_t> Session::NotOnLoan(absl::Span<const uint64_t> sequences) const {
  std::vector<uint64_t> missing;
  if (sequences.empty()) return missing;
  RankedMutexLock lock(&mu_);
  auto loan = loans_.lower_bound(sequences.front());
  for (const uint64_t sequence : sequences) {
    while (loan != loans_.end() && loan->first < sequence) ++loan;
    if (loan == loans_.end() || loan->first != sequence) missing.push_back(sequence);
  }
  return missing;
}

std::vector<Span*> Session::TakeLoansBut(absl::Span<const uint64_t> kept, uint64_t after,
                                         uint64_t last, size_t most) {
  std::vector<Span*> spans;
  RankedMutexLock lock(&mu_);
  if (state_ != SessionState::kAttached) return spans;
  auto loan = loans_.upper_bound(after);
  auto next_kept = kept.begin();
  while (loan != loans_.end() && loan->first <= last && spans.size() < most) {
    while (next_kept != kept.end() && *next_kept < loan->first) ++next_kept;
    if (next_kept != kept.end() && *next_kept == loan->first) {
      ++loan;
    } else {
      spans.push_back(TakeLocked(&loan));
    }
  }
  return spans;
}

std::vector<Span*> Session::TakeLoans(size_t most) {
  std::vector<Span*> spans;
  RankedMutexLock lock(&mu_);
  SPANPOOL_CHECK(state_ == SessionState::kDead) << "loans of a live session";
  spans.reserve(std::min(most, loans_.size()));
  auto end = loans_.begin();
  for (; end != loans_.end() && spans.size() < most; ++end) {
    __builtin_prefetch(end->second, 1);  // nobody has looked at most of them for long
    spans.push_back(end->second);
  }
  loans_.erase(loans_.begin(), end);
  for (Span* span : spans) {
    loan_bytes_ -= Bytes(span->pages);
    span->loan_session = 0;
    span->loan_sequence = 0;
  }
  return spans;
}

bool Session::SetStream(const std::shared_ptr<SessionStream>& stream) {
  std::shared_ptr<SessionStream> before;
  bool begins = false;
  {
    RankedMutexLock lock(&mu_);
    if (state_ != SessionState::kAttached) return false;
    before = stream_.lock();
    stream_ = stream;
    begins = carrier_.expired();
    if (begins) carrier_ = stream;
  }
  if (before != nullptr) before->End(absl::AbortedError("the session opened another stream"));
  if (begins) stream->MayBegin();
  return true;
}

void Session::StreamIsOver(const SessionStream* stream) {
  std::shared_ptr<SessionStream> next;
  {
    RankedMutexLock lock(&mu_);
    if (carrier_.lock().get() != stream) return;
    next = stream_.lock();
    if (next.get() == stream) next = nullptr;
    carrier_ = next;
  }
  if (next != nullptr) next->MayBegin();
}

absl::Status Session::AddWatch(const std::shared_ptr<SessionStream>& stream) {
  RankedMutexLock lock(&mu_);
  if (state_ != SessionState::kAttached) {
    return absl::UnauthenticatedError("the session is not attached; attach again");
  }
  std::erase_if(watches_, [](const auto& watch) { return watch.expired(); });
  if (watches_.size() == kMaxWatches) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the session has ", kMaxWatches, " watches already; end some, or watch more names in one"));
  }
  watches_.push_back(stream);
  return absl::OkStatus();
}

}  // namespace spanpool

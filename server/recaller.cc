#include "server/recaller.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace spanpool {

std::vector<Recaller::Outcome> Recaller::Recall(absl::Span<Pool* const> pools,
                                                absl::Time deadline) {
  const absl::Time began = absl::Now();
  Round round;
  for (const Pool* pool : pools) {
    for (std::shared_ptr<Session>& session : sessions_->Snapshot(pool)) {
      if (session->state() != SessionState::kAttached || session->loan_bytes() == 0) continue;
      Question& question = round.questions[session->id()];
      question.returned_before = session->returned_bytes();
      question.session = std::move(session);
    }
  }
  round.open = round.questions.size();
  // Before the first is asked, so that no answer comes too early.
  {
    RankedMutexLock lock(&mu_);
    round.recall = next_recall_++;
    rounds_.push_back(&round);
  }
  for (const auto& [id, question] : round.questions) {
    carrier_(*question.session, round.recall, UINT64_MAX);
  }
  {
    RankedMutexLock lock(&mu_);
    const auto settled = [&]()
                             ABSL_NO_THREAD_SAFETY_ANALYSIS { return round.open == 0 || stopped_; };
    mu_.AwaitWithDeadline(absl::Condition(&settled), deadline);
    rounds_.remove(&round);
  }

  std::vector<Outcome> outcomes(pools.size());
  for (auto& [id, question] : round.questions) {
    const auto pool = std::find(pools.begin(), pools.end(), &question.session->pool());
    Outcome& outcome = outcomes[static_cast<size_t>(pool - pools.begin())];
    ++outcome.asked;
    if (question.answered) {
      ++outcome.answered;
      outcome.recalled_bytes += question.returned;
      outcome.slowest = std::max(outcome.slowest, question.answered_at - began);
      continue;
    }
    outcome.recalled_bytes += question.session->returned_bytes() - question.returned_before;
    if (question.open) outcome.silent.push_back(std::move(question.session));
  }
  for (Outcome& outcome : outcomes) {
    std::sort(outcome.silent.begin(), outcome.silent.end(),
              [](const auto& a, const auto& b) { return a->id() < b->id(); });
  }
  return outcomes;
}

void Recaller::AskOthers(const Session& asker, uint64_t bytes, absl::Time now) {
  uint64_t recall;
  {
    RankedMutexLock lock(&mu_);
    const auto [last, first] = asked_for_shortage_.try_emplace(&asker.pool(), now);
    // A clock that was set back must not silence the pool.
    if (!first && now >= last->second && now - last->second < kShortageInterval) return;
    last->second = now;
    recall = next_recall_++;
  }
  for (const std::shared_ptr<Session>& session : sessions_->Snapshot(&asker.pool())) {
    if (session->id() == asker.id() || session->state() != SessionState::kAttached ||
        session->loan_bytes() == 0) {
      continue;
    }
    carrier_(*session, recall, bytes);
  }
}

void Recaller::StartAt(uint64_t recall) {
  RankedMutexLock lock(&mu_);
  next_recall_ = recall;
}

void Recaller::Answered(const Session& session, uint64_t recall) {
  RankedMutexLock lock(&mu_);
  for (Round* round : rounds_) {
    if (round->recall <= recall) Close(*round, session.id(), /*answered=*/true);
  }
}

void Recaller::Gone(uint32_t session_id) {
  RankedMutexLock lock(&mu_);
  for (Round* round : rounds_) Close(*round, session_id, /*answered=*/false);
}

void Recaller::Close(Round& round, uint32_t session_id, bool answered) {
  const auto it = round.questions.find(session_id);
  if (it == round.questions.end() || !it->second.open) return;
  Question& question = it->second;
  question.open = false;
  question.answered = answered;
  question.returned = question.session->returned_bytes() - question.returned_before;
  question.answered_at = absl::Now();
  --round.open;
}

void Recaller::Stop() {
  RankedMutexLock lock(&mu_);
  stopped_ = true;
}

}  // namespace spanpool

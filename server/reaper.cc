#include "server/reaper.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "server/log.h"

namespace spanpool {
namespace {

constexpr uint32_t kPiece = 4096;  // slots, or spans in proportion: a few tenths of a millisecond
// A recount that had to be put off waits for a process that is stopped.
constexpr absl::Duration kPutOff = absl::Milliseconds(20);

}  // namespace

Reaper::Reaper(std::vector<Pool*> pools) : pools_(std::move(pools)), thread_([this] { Run(); }) {}

Reaper::~Reaper() {
  {
    RankedMutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void Reaper::ProcessDied(std::shared_ptr<Session> session) {
  if (!session->pool().ProcessDied(*session)) return;
  Log().debug("pool {}: the process of {} is dead; taking back {} spans", session->pool().name(),
              session->Describe(), session->loan_count());
  Reap(std::move(session));
}

void Reaper::Reap(std::shared_ptr<Session> session) {
  session->reaping.died = std::chrono::steady_clock::now();
  RankedMutexLock lock(&mu_);
  dead_.push_back(std::move(session));
}

void Reaper::LogReaped(const Session& session) {
  const Session::Reaping& reaping = session.reaping;
  const std::chrono::duration<double, std::milli> took =
      std::chrono::steady_clock::now() - reaping.died;
  // Of one that had given everything back there is nothing to tell.
  const bool held = reaping.references != 0 || reaping.spans != 0;
  Log().log(held ? spdlog::level::info : spdlog::level::debug,
            "pool {}: {} is dead; its {} references and {} spans came back in {:.3f} ms",
            session.pool().name(), session.Describe(), reaping.references, reaping.spans,
            took.count());
}

void Reaper::SettlePools() {
  const absl::Time now = absl::Now();
  settle_at_ = absl::InfiniteFuture();
  for (Pool* pool : pools_) settle_at_ = std::min(settle_at_, pool->SettleReferences(now));
}

void Reaper::Run() {
  SettlePools();
  absl::Time retry_at = absl::InfiniteFuture();
  for (;;) {
    std::shared_ptr<Session> session;
    {
      RankedMutexLock lock(&mu_);
      mu_.AwaitWithDeadline(absl::Condition(
                                +[](Reaper* reaper) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reaper->mu_) {
                                  return reaper->stopping_ || !reaper->dead_.empty();
                                },
                                this),
                            std::min(settle_at_, retry_at));
      if (stopping_) return;
      if (absl::Now() >= retry_at) {
        dead_.insert(dead_.end(), put_off_.begin(), put_off_.end());
        put_off_.clear();
        retry_at = absl::InfiniteFuture();
      }
      if (!dead_.empty()) {
        session = std::move(dead_.front());
        dead_.pop_front();
      }
    }
    if (session != nullptr) {
      const ReapProgress progress = session->pool().ReapSome(*session, kPiece);
      if (progress == ReapProgress::kDone) {
        LogReaped(*session);
      } else {
        RankedMutexLock lock(&mu_);
        if (progress == ReapProgress::kMore) {
          dead_.push_back(std::move(session));
        } else {
          put_off_.push_back(std::move(session));
          retry_at = std::min(retry_at, absl::Now() + kPutOff);
        }
      }
      // It may have left something to look after, or a recount may be over. Not after each piece: a
      // look at all that is under way takes longer than one.
      if (progress != ReapProgress::kMore || absl::Now() >= settle_at_) SettlePools();
    } else if (absl::Now() >= settle_at_) {
      SettlePools();
    }
  }
}

}  // namespace spanpool

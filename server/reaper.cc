#include "server/reaper.h"

#include <utility>

#include "absl/time/clock.h"
#include "server/log.h"
#include "server/pool.h"

namespace spanpool {
namespace {

constexpr uint32_t kPiece = 4096;  // slots or spans, about a tenth of a millisecond

}  // namespace

Reaper::Reaper() : thread_([this] { Run(); }) {}

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
  RankedMutexLock lock(&mu_);
  dead_.push_back(std::move(session));
}

void Reaper::Run() {
  for (;;) {
    std::shared_ptr<Session> session;
    {
      RankedMutexLock lock(&mu_);
      mu_.Await(absl::Condition(
          +[](Reaper* reaper) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reaper->mu_) {
            return reaper->stopping_ || !reaper->dead_.empty();
          },
          this));
      if (stopping_) return;
      session = std::move(dead_.front());
      dead_.pop_front();
    }
    if (!session->pool().ReapSome(*session, kPiece)) {
      RankedMutexLock lock(&mu_);
      dead_.push_back(std::move(session));
    }
  }
}

}  // namespace spanpool

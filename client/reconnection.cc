#include "client/reconnection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace spanpool::internal {

Reconnection::Reconnection(std::string path, std::function<bool()> lost)
    : path_(std::move(path)), lost_(std::move(lost)) {}

bool Reconnection::TakeTurn() {
  const absl::Time now = absl::Now();
  RankedMutexLock lock(&mu_);
  if (now < next_) return false;
  next_ = now + pause_;
  pause_ = std::clamp(2 * pause_, kFirstPause, kLongestPause);
  troubled_.store(true, std::memory_order_relaxed);
  return true;
}

absl::Status Reconnection::Await(absl::Time deadline, const absl::Status& why) {
  if (lost_()) return Lost(why);
  if (absl::Now() < deadline) {
    RankedMutexLock lock(&mu_);
    const uint64_t seen = wakes_;
    const auto woken = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return wakes_ != seen; };
    mu_.AwaitWithDeadline(absl::Condition(&woken), std::min(next_, deadline));
  }
  if (lost_()) return Lost(why);
  if (absl::Now() < deadline) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the daemon at ", path_, " is away (", why.message(),
                   "); what is on loan stays valid, and so does the session: try again"));
}

void Reconnection::Calm() {
  RankedMutexLock lock(&mu_);
  next_ = absl::InfinitePast();
  pause_ = absl::ZeroDuration();
  ++wakes_;
  troubled_.store(false, std::memory_order_relaxed);
}

void Reconnection::WakeAll() {
  RankedMutexLock lock(&mu_);
  next_ = absl::InfinitePast();
  pause_ = absl::ZeroDuration();
  ++wakes_;
}

absl::Status Reconnection::NoAnswer() const {
  return absl::UnavailableError(absl::StrCat(
      "the daemon at ", path_,
      " does not answer; what is on loan stays valid, and so does the session: try again"));
}

absl::Status Reconnection::Lost(const absl::Status& why) const {
  return absl::UnavailableError(absl::StrCat(
      "the pool was lost; attach again: the daemon at ", path_, " ended, or ended this session (",
      why.message(), "). Buffers stay readable until they are dropped"));
}

absl::Status Reconnection::LostIfRefused(const absl::Status& answer) const {
  switch (answer.code()) {
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
      return Lost(answer);
    default:
      return absl::OkStatus();
  }
}

}  // namespace spanpool::internal

#include "client/shared_event.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>

#include "proto/layout/step.h"

namespace spanpool::internal {
namespace {

// Without FUTEX_PRIVATE_FLAG: processes map the word at different addresses.
long Futex(std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* timeout) {
  static_assert(sizeof(*word) == sizeof(uint32_t));
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, timeout, nullptr,
                 0);
}

}  // namespace

uint32_t SharedEvent::Announce() {
  SPANPOOL_STEP("event.announce");
  uint32_t seen = word_->load(std::memory_order_relaxed);
  uint32_t announced;
  do {
    announced = (seen + kOne) | kAsleep;
    // seq_cst: before the look that follows; see invariant 1.
  } while (!word_->compare_exchange_weak(seen, announced, std::memory_order_seq_cst,
                                         std::memory_order_relaxed));
  return announced;
}

void SharedEvent::Sleep(uint32_t announced, absl::Duration at_most) {
  if (at_most <= absl::ZeroDuration()) return;
  const timespec timeout = absl::ToTimespec(std::min(at_most, kLongestSleep));
  (void)Futex(word_, FUTEX_WAIT, announced, &timeout);
}

void SharedEvent::WakeOne() {
  SPANPOOL_STEP("event.count");
  uint32_t counted = word_->fetch_add(kOne, std::memory_order_seq_cst) + kOne;
  SPANPOOL_STEP("event.wake");
  if (Futex(word_, FUTEX_WAKE, 1, nullptr) > 0) return;
  SPANPOOL_STEP("event.calm");
  // Fails if somebody announced himself after the count: he may be asleep by now.
  word_->compare_exchange_strong(counted, counted & ~kAsleep, std::memory_order_seq_cst);
}

void SharedEvent::NotifyAll() {
  SPANPOOL_STEP("event.count");
  word_->fetch_add(kOne, std::memory_order_seq_cst);
  SPANPOOL_STEP("event.wake");
  (void)Futex(word_, FUTEX_WAKE, INT_MAX, nullptr);
}

}  // namespace spanpool::internal

// Sleeping until another process has done something, on a word of shared memory.
//
//   31..1 count of announcements and wakes │ 0 ASLEEP: somebody may be asleep
//
//   who waits                                  who has done something
//     look; if it is there: done                 do it
//     announced = Announce()                     Notify: ASLEEP is off: done
//     look again; if it is there: done                   count + 1; wake one sleeper
//     Sleep(announced), and again                        none was there: ASLEEP off, if the
//                                                        word is still what it was made
//
//  1. No wake is lost between a look and a Sleep: doing comes before Notify's load, and Announce
//     before the second look; so either that look sees what was done, or Notify sees ASLEEP and
//     changes the count, and Sleep does not sleep.
//  2. ASLEEP is taken off only if nobody announced himself since the sleepers were counted.
//  3. Where nobody sleeps, Notify is one load.
//
// One sleeper is woken, for one thing done. It may be killed or stopped before it gets to it; so
// may who did the thing, before the wake; and a member of the pool that means ill may write
// anything here. All that does is delay: each sleeper looks by itself at least every kLongestSleep.
// A wake for everybody would not do better, since the second death would lose that one too.
//
// Thread-safe, and between processes.

#ifndef SPANPOOL_CLIENT_SHARED_EVENT_H_
#define SPANPOOL_CLIENT_SHARED_EVENT_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

namespace spanpool::internal {

class SharedEvent {
 public:
  static constexpr absl::Duration kLongestSleep = absl::Milliseconds(50);

  // `word` outlives this; 0 at first.
  explicit SharedEvent(std::atomic<uint32_t>* word) : word_(word) {}

  // The caller will look once more, and then Sleep.
  uint32_t Announce();

  // Sleeps until Notify; but no longer than `at_most` and kLongestSleep, and perhaps not at all.
  // Look again.
  void Sleep(uint32_t announced, absl::Duration at_most);

  // What is waited for was done once, by an atomic change with seq_cst.
  void Notify() {
    if ((word_->load(std::memory_order_seq_cst) & kAsleep) != 0) WakeOne();
  }
  // It was done for everybody.
  void NotifyAll();

 private:
  static constexpr uint32_t kAsleep = 1;
  static constexpr uint32_t kOne = 2;

  void WakeOne();

  std::atomic<uint32_t>* word_;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_SHARED_EVENT_H_

// The hand-over that every system does, and the main() of the programs that do it.
//
// A program is two processes, each on a processor of its own: the sender, which the suite talks to,
// and the receiver, its child, forked before anything else is done. For each message
//
//   the sender    gets a block, writes its number into the first and the last 8 bytes, passes it on
//   the receiver  gets it, reads both numbers, checks them, lets the block go
//
// At most kWindow messages are under way. The sender spins while there are more, the receiver while
// there are none, in all systems; so the figures are those of the hand-over and not of the kernel's
// waking processes up.
//
// A program stays alive for all cases and measures on command:
//
//   in    BYTES MS            what a message is, and about how long to measure
//   out   READY               after as many messages as it takes to fill all stocks
//   in    GO
//   out   MESSAGES NS         how many were measured, and nanoseconds each: from when the first is
//                             begun until the last has been let go
//   or    ABSENT WHY          it cannot
//
// When it starts it prints READY, or ABSENT and why.

#ifndef SPANPOOL_BENCH_HANDOFF_TWO_SIDES_H_
#define SPANPOOL_BENCH_HANDOFF_TWO_SIDES_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace spanpool::bench {

inline constexpr size_t kWindow = 64;

// One side of a system. Made in the process that it is for.
class Side {
 public:
  virtual ~Side() = default;
  // Messages are of `bytes` bytes from now on, a multiple of 64. The sender's Prepare is called and
  // returns before the receiver's, while nothing is under way.
  virtual absl::Status Prepare(size_t bytes) = 0;
  // Sends, or receives, messages 0 to `messages` - 1.
  virtual void Run(uint64_t messages) = 0;
};
// Makes a side. `shared` is memory of both processes, zeros at first.
using MakeSide = std::function<absl::StatusOr<std::unique_ptr<Side>>(void* shared)>;

// The whole main() of a program. `shared_bytes` is how much memory both sides share; what is not
// touched costs nothing.
int RunTwoSides(size_t shared_bytes, const MakeSide& make_sender, const MakeSide& make_receiver);

// Says that the program cannot measure anything, and why.
int RunAbsent(const std::string& why);

// Ends the program, and with it the measurement: a side cannot go on.
[[noreturn]] void GiveUp(const std::string& why);

// What the sender writes to a block.
inline void WriteEnds(void* block, size_t bytes, uint64_t number) {
  auto* const first = static_cast<std::byte*>(block);
  std::memcpy(first, &number, sizeof(number));
  std::memcpy(first + bytes - sizeof(number), &number, sizeof(number));
}
// What the receiver does with it.
inline void CheckEnds(const void* block, size_t bytes, uint64_t number) {
  const auto* const first = static_cast<const std::byte*>(block);
  uint64_t ends[2];
  std::memcpy(&ends[0], first, sizeof(number));
  std::memcpy(&ends[1], first + bytes - sizeof(number), sizeof(number));
  if (__builtin_expect(ends[0] != number || ends[1] != number, 0)) {
    GiveUp("message " + std::to_string(number) + " is not what was sent");
  }
}

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_HANDOFF_TWO_SIDES_H_

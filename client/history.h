// Whether what threads saw of a bounded queue can be explained: by some order of their operations
// that respects time, and in which each did what a queue does (linearisability).
//
// The search is that of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with
// Lowe's memory of where it has been ("Testing for linearizability", 2017).
//
// For tests. Record is thread-safe if each thread has a log of its own.

#ifndef SPANPOOL_CLIENT_HISTORY_H_
#define SPANPOOL_CLIENT_HISTORY_H_

#include <cstdint>
#include <string>
#include <vector>

namespace spanpool::internal {

struct Operation {
  enum class Kind : uint8_t { kSend, kReceive, kClose };
  enum class Result : uint8_t {
    kDone,
    kNothing,  // the queue was full, or empty
    kClosed,   // send: closed; receive: closed and empty
    kUnknown,  // it never came back: its process died in it
  };
  static constexpr uint64_t kNever = UINT64_MAX;

  Kind kind = Kind::kSend;
  Result result = Result::kUnknown;
  uint32_t value = 0;  // of a send, and of a receive that is done; no two sends have the same
  int process = 0;
  // Moments, all different: begin < end.
  uint64_t begin = 0;
  uint64_t end = kNever;
};

// At most 64 operations; close, if at all, is among them.
//
// A queue here is
//   send     done: it was not full, and nobody was told that it is closed and empty
//            nothing: it was full       closed: it was closed
//   receive  done: `value` was first    nothing: it was empty, and not closed
//            closed: it was closed and empty; from now on nothing is sent
//   close    done
// and who died in an operation did all of it at some instant, or nothing. In addition, no send is
// done that began after a close had ended.
bool IsExplained(const std::vector<Operation>& history, uint32_t capacity);

// For messages.
std::string ToString(const std::vector<Operation>& history);

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_HISTORY_H_

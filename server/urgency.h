// A restarted worker is urgent until its pools are back: whoever needs the daemon waits for it, and
// clients that have stock may keep every processor busy meanwhile. So it runs until then at the
// highest priority that it may have: where the keeper is root or has CAP_SYS_NICE; elsewhere
// nothing changes.
//
// The two functions are called in the same thread of a process that has no others, before and after
// it executes the worker: priority is a thread's own on Linux, and new threads inherit it.

#ifndef SPANPOOL_SERVER_URGENCY_H_
#define SPANPOOL_SERVER_URGENCY_H_

#include <sys/resource.h>

#include <cerrno>
#include <cstdlib>
#include <string>

namespace spanpool {

// What the priority was, for the program that is executed next.
inline constexpr char kPriorityVariable[] = "SPANPOOL_PRIORITY";

inline void BeginUrgency() {
  errno = 0;
  const int usual = getpriority(PRIO_PROCESS, 0);
  if (errno != 0 || setpriority(PRIO_PROCESS, 0, -20) != 0) return;
  setenv(kPriorityVariable, std::to_string(usual).c_str(), 1);
}

// Nothing, if nothing was begun.
inline void EndUrgency() {
  const char* const usual = std::getenv(kPriorityVariable);
  if (usual == nullptr) return;
  setpriority(PRIO_PROCESS, 0, std::atoi(usual));
  unsetenv(kPriorityVariable);
}

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_URGENCY_H_

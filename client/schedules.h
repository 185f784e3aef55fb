// Runs a few short programs in every order in which their steps can follow each other, with a
// bounded number of preemptions, and with one of them dying at every step.
//
// Each program runs on a thread of its own, but only one at a time: at each SPANPOOL_STEP the
// thread asks what comes next. Most bugs of such code show with two or three preemptions (Musuvathi
// and Qadeer, "Iterative context bounding", 2007); three programs of ten steps have half a million
// orders with three.
//
// For tests, built with SPANPOOL_STEPS. One at a time in a process: the hook of the steps is
// global.

#ifndef SPANPOOL_CLIENT_SCHEDULES_H_
#define SPANPOOL_CLIENT_SCHEDULES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace spanpool::internal {

class Schedules {
 public:
  struct Options {
    int preemptions = 2;
    int deaths = 0;
  };

  // Thrown out of a program that dies: it does nothing any more. Do not catch it.
  struct Death {};

  // A run: `prepare` makes everything new; each of `programs` runs to its end, or dies; then
  // `check` looks at the outcome. Returns how many runs there were. Stops early if `check` says
  // false. Programs must not wait for each other.
  static uint64_t RunAll(const Options& options, const std::function<void()>& prepare,
                         const std::vector<std::function<void()>>& programs,
                         const std::function<bool()>& check);
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_SCHEDULES_H_

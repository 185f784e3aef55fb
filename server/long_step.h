// Says that a thread is about to wait for the kernel, so that nobody has to wait for the thread.
//
// A thread that serves many clients sets a handler, which passes what it was doing to another
// thread. Code further down begins what may take long (backing memory with pages takes
// milliseconds) with AnnounceLongStep(). In a thread without a handler that does nothing.

#ifndef SPANPOOL_SERVER_LONG_STEP_H_
#define SPANPOOL_SERVER_LONG_STEP_H_

#include <functional>

namespace spanpool {

// The calling thread's handler, for as long as the object lives. One at a time.
class LongStepHandler {
 public:
  explicit LongStepHandler(std::function<void()> handler);
  ~LongStepHandler();
  LongStepHandler(const LongStepHandler&) = delete;
  LongStepHandler& operator=(const LongStepHandler&) = delete;

 private:
  friend void AnnounceLongStep();
  const std::function<void()> handler_;
};

// Under no lock that the handler takes.
void AnnounceLongStep();

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_LONG_STEP_H_

// Marks each step of the reference protocol, so that tests can kill or stop a process at every one.
//
// In a normal build SPANPOOL_STEP is nothing. Libraries that are compiled a second time for tests,
// with SPANPOOL_STEPS defined, call step_hook at each; it may never return.
//
// A step stands right before the write to shared memory that it names: "open.2d" is the moment
// before rule 2d of tests/model/README.md.

#ifndef SPANPOOL_PROTO_LAYOUT_STEP_H_
#define SPANPOOL_PROTO_LAYOUT_STEP_H_

#ifdef SPANPOOL_STEPS

#include <atomic>

namespace spanpool::layout {

using StepHook = void (*)(const char* step);
inline std::atomic<StepHook> step_hook{nullptr};

inline void PassStep(const char* step) {
  if (const StepHook hook = step_hook.load(std::memory_order_acquire); hook != nullptr) hook(step);
}

}  // namespace spanpool::layout

#define SPANPOOL_STEP(step) ::spanpool::layout::PassStep(step)

#else

#define SPANPOOL_STEP(step) static_cast<void>(0)

#endif

#endif  // SPANPOOL_PROTO_LAYOUT_STEP_H_

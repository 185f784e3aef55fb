// A fence of which one side costs nothing.
//
// The frequent side writes, then reads, with only the compiler kept from turning the two around.
// The rare side writes, calls FenceAllThreads(), and reads. Then one of them sees what the other
// wrote: every thread of the process that is running passes a barrier (membarrier), and one that is
// not has passed one when it stopped. That costs a microsecond or two.
//
// ThreadSanitizer knows nothing of membarrier; it is shown the full order instead.

#ifndef SPANPOOL_CLIENT_ASYMMETRIC_FENCE_H_
#define SPANPOOL_CLIENT_ASYMMETRIC_FENCE_H_

#include <atomic>

namespace spanpool::internal {

// Whether the kernel has such a fence (Linux 4.14, unless a sandbox forbids it). Asked once.
bool CanFenceAllThreads();
// Requires CanFenceAllThreads().
void FenceAllThreads();

// The frequent side's order, of its write and of its read.
#if defined(__SANITIZE_THREAD__)
inline constexpr std::memory_order kFencedStore = std::memory_order_seq_cst;
inline constexpr std::memory_order kFencedLoad = std::memory_order_seq_cst;
#else
inline constexpr std::memory_order kFencedStore = std::memory_order_relaxed;
inline constexpr std::memory_order kFencedLoad = std::memory_order_relaxed;
#endif
// Between the two.
inline void LightFence() { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_ASYMMETRIC_FENCE_H_

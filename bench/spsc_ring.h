// A ring of small values from one thread to one other, of this process or, if the ring lies in
// shared memory, of another.
//
// Each side keeps a copy of where it last saw the other, so that the cache line of the other's
// counter moves once per turn of the ring or so, and not once per value. Waiting spins; after a
// while it lets others run.
//
// The receiver may look at a value before it takes it out. While it has not, the sender knows that
// it is not done with it: what was pushed `kCapacity` values ago was taken out once WaitForRoom
// returns.

#ifndef SPANPOOL_BENCH_SPSC_RING_H_
#define SPANPOOL_BENCH_SPSC_RING_H_

#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace spanpool::bench {

// Calls `ready` until it returns true.
template <typename Ready>
void SpinUntil(Ready ready) {
  for (int tries = 0; !ready(); ++tries) {
    if (tries % 1024 == 1023) sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// kCapacity: a power of two. Memory of zeros is an empty ring.
template <typename T, size_t kCapacity>
class SpscRing {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // The producer's. Waits while the ring is full.
  void WaitForRoom() {
    if (tail_ - head_seen_ == kCapacity) {
      SpinUntil([this] {
        // acquire: pairs with the release in Pop; the slot has been read.
        head_seen_ = shared_head_.load(std::memory_order_acquire);
        return tail_ - head_seen_ < kCapacity;
      });
    }
  }
  // The same, and adds a value.
  void Push(T value) {
    WaitForRoom();
    slots_[tail_ % kCapacity] = value;
    // release: pairs with the acquire in Front; the slot, and what it speaks of, are written.
    shared_tail_.store(++tail_, std::memory_order_release);
  }

  // The consumer's. Waits while the ring is empty; the value stays in it.
  T Front() {
    if (head_ == tail_seen_) {
      SpinUntil([this] {
        tail_seen_ = shared_tail_.load(std::memory_order_acquire);
        return head_ != tail_seen_;
      });
    }
    return slots_[head_ % kCapacity];
  }
  // Takes out what Front() returned.
  void DropFront() { shared_head_.store(++head_, std::memory_order_release); }
  T Pop() {
    const T value = Front();
    DropFront();
    return value;
  }

 private:
  alignas(64) std::atomic<uint64_t> shared_tail_{0};
  alignas(64) std::atomic<uint64_t> shared_head_{0};
  alignas(64) uint64_t tail_ = 0;  // the producer's own
  uint64_t head_seen_ = 0;
  alignas(64) uint64_t head_ = 0;  // the consumer's own
  uint64_t tail_seen_ = 0;
  alignas(64) T slots_[kCapacity] = {};
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_SPSC_RING_H_

// A ring of pointers from one thread to one other.
//
// Each side keeps a copy of where it last saw the other, so that the cache line of the other's
// counter moves once per turn of the ring or so, and not once per pointer. Waiting spins; after a
// while it lets others run.

#ifndef SPANPOOL_BENCH_ALLOC_SPSC_RING_H_
#define SPANPOOL_BENCH_ALLOC_SPSC_RING_H_

#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace spanpool::bench {

template <size_t kCapacity>  // a power of two
class SpscRing {
 public:
  // The producer's. Waits while the ring is full.
  void Push(void* pointer) {
    if (tail_ - head_seen_ == kCapacity) {
      Wait([this] {
        // acquire: pairs with the release in Pop; the slot has been read.
        head_seen_ = shared_head_.load(std::memory_order_acquire);
        return tail_ - head_seen_ < kCapacity;
      });
    }
    slots_[tail_ % kCapacity] = pointer;
    // release: pairs with the acquire in Pop; the slot, and what it points to, are written.
    shared_tail_.store(++tail_, std::memory_order_release);
  }

  // The consumer's. Waits while the ring is empty.
  void* Pop() {
    if (head_ == tail_seen_) {
      Wait([this] {
        tail_seen_ = shared_tail_.load(std::memory_order_acquire);
        return head_ != tail_seen_;
      });
    }
    void* const pointer = slots_[head_ % kCapacity];
    shared_head_.store(++head_, std::memory_order_release);
    return pointer;
  }

 private:
  template <typename Ready>
  static void Wait(Ready ready) {
    for (int tries = 0; !ready(); ++tries) {
      if (tries % 1024 == 1023) sched_yield();
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  alignas(64) std::atomic<uint64_t> shared_tail_{0};
  alignas(64) std::atomic<uint64_t> shared_head_{0};
  alignas(64) uint64_t tail_ = 0;  // the producer's own
  uint64_t head_seen_ = 0;
  alignas(64) uint64_t head_ = 0;  // the consumer's own
  uint64_t tail_seen_ = 0;
  alignas(64) void* slots_[kCapacity] = {};
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_ALLOC_SPSC_RING_H_

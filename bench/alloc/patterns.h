// What every allocator is asked to do, and the main() of the programs that ask it.
//
// One program per way of calling (malloc, spanpool, DPDK, Boost), so that each allocator is called
// as its users call it: malloc through the dynamic linker, the others inline as far as their
// headers go. A program stays alive for all cases of a suite and measures on command, one line in,
// one line out:
//
//   in    PATTERN BYTES MS     measure for about MS milliseconds
//   out   NS                   nanoseconds per pair of an allocation and a free
//   or    ABSENT WHY           it cannot
//
// When it starts it prints READY, or ABSENT and why.
//
// The patterns, the same code for everybody:
//
//   pair       allocate, write 8 bytes, free
//   churn256   of 256 live blocks free a random one, allocate it anew, write 8 bytes
//   local_2    two threads do `pair`, each for itself
//   cross_2    one thread allocates and writes 8 bytes, a ring carries the block to another thread,
//              which reads them and frees it
//   instructions  `pair`, counted by callgrind instead of timed; the program runs under it
//
// The size is hidden from the compiler at each allocation, as are blocks at each free, for it could
// otherwise take work out of the loop that a real program has to do.

#ifndef SPANPOOL_BENCH_ALLOC_PATTERNS_H_
#define SPANPOOL_BENCH_ALLOC_PATTERNS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "bench/alloc/instructions.h"
#include "bench/harness.h"
#include "bench/spsc_ring.h"

namespace spanpool::bench {

// What an allocator's program gives: a small value, copied into each loop as a program would keep
// the pointer to its session or pool in a register.
//   struct Allocator {
//     // Before each case: `threads` threads will have up to `live` blocks of `bytes` bytes.
//     absl::Status Prepare(size_t bytes, size_t live, int threads);
//     void EnterThread(), LeaveThread();  // around the life of a second or third thread
//     void* Alloc(size_t bytes);          // nullptr: out of memory
//     void Free(void* block);
//   };

inline constexpr size_t kChurnBlocks = 256;
inline constexpr size_t kRingBlocks = 256;

// A value the compiler cannot know.
template <typename T>
inline T Hidden(T value) {
  asm volatile("" : "+r"(value) : : "memory");
  return value;
}

template <typename Allocator>
inline void* AllocAndWrite(Allocator allocator, size_t bytes, int64_t value) {
  void* const block = allocator.Alloc(Hidden(bytes));
  if (__builtin_expect(block == nullptr, 0)) {
    std::fprintf(stderr, "out of memory\n");
    std::_Exit(1);
  }
  *static_cast<int64_t*>(block) = value;
  return Hidden(block);
}

template <typename Allocator>
[[gnu::noinline]] void Pairs(Allocator allocator, size_t bytes, int64_t n) {
  for (; n > 0; --n) allocator.Free(AllocAndWrite(allocator, bytes, n));
}

// Which block is next: random, and the same for all.
struct ChurnOrder {
  static constexpr size_t kLength = 8192;  // a power of two
  uint8_t block[kLength];

  ChurnOrder() {
    std::mt19937 random(1);
    for (uint8_t& i : block) i = static_cast<uint8_t>(random() % kChurnBlocks);
  }
};

template <typename Allocator>
[[gnu::noinline]] void Churn(Allocator allocator, size_t bytes, void** blocks,
                             const ChurnOrder& order, int64_t n) {
  for (; n > 0; --n) {
    void*& slot = blocks[order.block[static_cast<size_t>(n) % ChurnOrder::kLength]];
    allocator.Free(Hidden(slot));
    slot = AllocAndWrite(allocator, bytes, n);
  }
}

// Nanoseconds in which both threads did their n: from when both are ready until the last is done.
template <typename Allocator>
double RunTwo(Allocator allocator, const std::function<void()>& warm_up,
              const std::function<void()>& first, const std::function<void()>& second) {
  std::atomic<int> ready{0};
  std::atomic<double> start{0};
  const auto run = [&](const std::function<void()>& work) {
    allocator.EnterThread();
    if (warm_up) warm_up();
    if (ready.fetch_add(1) == 1) start.store(NowNs(TimeOf::kWall));
    while (start.load() == 0) sched_yield();
    work();
    allocator.LeaveThread();
  };
  std::thread other(run, std::cref(second));
  std::thread one(run, std::cref(first));
  one.join();
  other.join();
  return NowNs(TimeOf::kWall) - start.load();
}

template <typename Allocator>
double Local2(Allocator allocator, size_t bytes, int64_t n) {
  const auto pairs = [&] { Pairs(allocator, bytes, n); };
  return RunTwo(
      allocator, [&] { Pairs(allocator, bytes, 1000); }, pairs, pairs);
}

template <typename Allocator>
double Cross2(Allocator allocator, size_t bytes, int64_t n) {
  const auto ring = std::make_unique<SpscRing<void*, kRingBlocks>>();
  return RunTwo(
      allocator, nullptr,
      [=, &ring] {
        for (int64_t i = 0; i < n; ++i) ring->Push(AllocAndWrite(allocator, bytes, i));
      },
      [=, &ring]() mutable {
        for (int64_t i = 0; i < n; ++i) {
          void* const block = ring->Pop();
          if (*static_cast<const int64_t*>(block) != i) std::abort();
          allocator.Free(Hidden(block));
        }
      });
}

template <typename Allocator>
class Measurement {
 public:
  explicit Measurement(Allocator& allocator) : allocator_(allocator) {}

  // One line of the protocol, answered.
  std::string Answer(const std::string& pattern, size_t bytes, int milliseconds) {
    const std::string name = pattern + " " + std::to_string(bytes);
    if (name != name_) {
      FreeLive();
      timer_.reset();
      name_ = name;
      if (absl::Status status = Begin(pattern, bytes, absl::Milliseconds(milliseconds));
          !status.ok()) {
        name_.clear();
        return "ABSENT " + std::string(status.message());
      }
    }
    if (pattern == "instructions") return Instructions(bytes);
    return std::to_string(timer_->NsPerOperation());
  }

 private:
  absl::Status Begin(const std::string& pattern, size_t bytes, absl::Duration time) {
    const bool two = pattern.ends_with("_2");
    const size_t live = pattern == "churn256"  ? kChurnBlocks
                        : pattern == "cross_2" ? kRingBlocks + 2
                                               : 2;
    if (absl::Status status = allocator_.Prepare(bytes, live, two ? 2 : 1); !status.ok()) {
      return status;
    }
    if (pattern == "pair" || pattern == "instructions") {
      timer_ = std::make_unique<Timer>(time, TimeOf::kThread,
                                       [=, this](int64_t n) { Pairs(allocator_, bytes, n); });
    } else if (pattern == "churn256") {
      live_.resize(kChurnBlocks);
      for (void*& block : live_) block = AllocAndWrite(allocator_, bytes, 0);
      timer_ = std::make_unique<Timer>(time, TimeOf::kThread, [=, this](int64_t n) {
        Churn(allocator_, bytes, live_.data(), order_, n);
      });
    } else if (pattern == "local_2") {
      timer_ = std::make_unique<Timer>(
          time, [=, this](int64_t n) { return Local2(allocator_, bytes, n); });
    } else if (pattern == "cross_2") {
      timer_ = std::make_unique<Timer>(
          time, [=, this](int64_t n) { return Cross2(allocator_, bytes, n); });
    } else {
      return absl::InvalidArgumentError("there is no pattern " + pattern);
    }
    return absl::OkStatus();
  }

  // Instructions of a pair, less those of the same loop around an allocator that does nothing.
  std::string Instructions(size_t bytes) {
    struct Nothing {
      void* Alloc(size_t) { return Hidden(&block); }
      void Free(void*) {}
      int64_t block = 0;
    } nothing;
    constexpr int64_t kPairs = 10'000;
    Pairs(allocator_, bytes, 1000);
    const auto count = CountInstructions([&] { Pairs(allocator_, bytes, kPairs); });
    const auto loop = CountInstructions([&] { Pairs(nothing, bytes, kPairs); });
    if (!count.ok()) return "ABSENT " + std::string(count.status().message());
    if (!loop.ok()) return "ABSENT " + std::string(loop.status().message());
    return std::to_string((*count - *loop) / kPairs);
  }

  void FreeLive() {
    for (void* block : live_) allocator_.Free(block);
    live_.clear();
  }

  Allocator& allocator_;
  const ChurnOrder order_;
  std::string name_;
  std::vector<void*> live_;
  std::unique_ptr<Timer> timer_;
};

// The main() of a program, once its allocator stands.
template <typename Allocator>
int Serve(Allocator& allocator) {
  std::cout << "READY" << std::endl;
  Measurement<Allocator> measurement(allocator);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string pattern;
    size_t bytes = 0;
    int milliseconds = 0;
    words >> pattern >> bytes >> milliseconds;
    std::cout << measurement.Answer(pattern, bytes, milliseconds) << std::endl;
  }
  std::cout.flush();
  return 0;
}

inline int ServeAbsent(const std::string& why) {
  std::cout << "ABSENT " << why << std::endl;
  return 0;
}

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_ALLOC_PATTERNS_H_

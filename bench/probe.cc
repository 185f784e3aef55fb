#include "bench/probe.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "allocator/check.h"
#include "benchmark/benchmark.h"

namespace spanpool::bench {
namespace {

struct alignas(128) Line {
  std::atomic<uint64_t> word{0};
};

void Xadd(int64_t n) {
  static Line line;
  for (int64_t i = 0; i < n; ++i) line.word.fetch_add(1, std::memory_order_seq_cst);
}

void CasPair(int64_t n) {
  static Line line;
  for (int64_t i = 0; i < n; ++i) {
    uint64_t value = line.word.load(std::memory_order_relaxed);
    line.word.compare_exchange_strong(value, value + 1, std::memory_order_seq_cst);
    value = line.word.load(std::memory_order_relaxed);
    line.word.compare_exchange_strong(value, value - 1, std::memory_order_seq_cst);
  }
}

void MutexPair(int64_t n) {
  static absl::Mutex mu;
  for (int64_t i = 0; i < n; ++i) {
    mu.Lock();
    benchmark::ClobberMemory();
    mu.Unlock();
  }
}

// The CPUs this process may run on.
std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

// Two threads pass a number to and fro; odd ones are for the second.
void CoreRoundTrips(int64_t n, int first_cpu, int second_cpu) {
  static Line there;
  static Line back;
  there.word.store(0, std::memory_order_relaxed);
  back.word.store(0, std::memory_order_relaxed);
  std::thread second([n, second_cpu] {
    PinTo(second_cpu);
    for (int64_t i = 1; i <= n; ++i) {
      while (there.word.load(std::memory_order_acquire) != static_cast<uint64_t>(i)) {
      }
      back.word.store(static_cast<uint64_t>(i), std::memory_order_release);
    }
  });
  std::thread first([n, first_cpu] {
    PinTo(first_cpu);
    for (int64_t i = 1; i <= n; ++i) {
      there.word.store(static_cast<uint64_t>(i), std::memory_order_release);
      while (back.word.load(std::memory_order_acquire) != static_cast<uint64_t>(i)) {
      }
    }
  });
  first.join();
  second.join();
}

}  // namespace

void AddProbes(Suite& suite, const std::string& case_name, const std::vector<std::string>& which) {
  std::vector<std::pair<std::string, std::shared_ptr<Timer>>> timers;
  const absl::Duration time = suite.round_time() / 2;
  for (const std::string& name : which) {
    if (name == "xadd") {
      timers.emplace_back(name, std::make_shared<Timer>(time, Xadd));
    } else if (name == "cas_pair") {
      timers.emplace_back(name, std::make_shared<Timer>(time, CasPair));
    } else if (name == "mutex_pair") {
      timers.emplace_back(name, std::make_shared<Timer>(time, MutexPair));
    } else {
      SPANPOOL_CHECK(name == "core_round_trip") << name;
      const std::vector<int> cpus = AllowedCpus();
      if (cpus.size() < 2) {
        suite.Absent(case_name, "probe", "core_round_trip needs two CPUs");
        continue;
      }
      timers.emplace_back(name, std::make_shared<Timer>(time, [cpus](int64_t n) {
                            CoreRoundTrips(n, cpus[0], cpus[1]);
                          }));
    }
  }
  if (timers.empty()) return;
  suite.Add(case_name, "probe", [timers]() -> absl::StatusOr<Metrics> {
    Metrics metrics;
    for (const auto& [name, timer] : timers)
      metrics.push_back({name, "ns", timer->NsPerOperation()});
    return metrics;
  });
}

}  // namespace spanpool::bench

#include "bench/probe.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "allocator/check.h"
#include "bench/cpus.h"
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
  static std::mutex mu;
  for (int64_t i = 0; i < n; ++i) {
    mu.lock();
    benchmark::ClobberMemory();
    mu.unlock();
  }
}

// Keeps the compiler from knowing the values, and keeps them in registers.
template <typename... T>
inline void Hide(T&... values) {
  (..., [](T& value) { asm volatile("" : "+r"(value)); }(values));
}

void Additions16(int64_t n) {
  uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
  for (; n > 0; --n) {
    Hide(++a, ++b, ++c, ++d, ++e, ++f, ++g, ++h);
    Hide(++a, ++b, ++c, ++d, ++e, ++f, ++g, ++h);
  }
}

void Multiplications2(int64_t n) {
  uint64_t factor = 3;
  uint64_t product = 1;
  for (; n > 0; --n) {
    Hide(product, factor);
    product *= factor;
    Hide(product, factor);
    product *= factor;
  }
  Hide(product);
}

// Two threads pass a number to and fro for `time`. The median of many short batches: in most of
// them neither thread is interrupted, even on a busy machine.
double CoreRoundTripNs(absl::Duration time, int first_cpu, int second_cpu) {
  constexpr uint64_t kBatch = 64;
  constexpr uint64_t kEnd = UINT64_MAX;
  Line there;
  Line back;
  std::thread second([&there, &back, second_cpu] {
    PinTo(second_cpu);
    for (uint64_t seen = 0; seen != kEnd;) {
      const uint64_t now = there.word.load(std::memory_order_acquire);
      if (now == seen) continue;
      seen = now;
      back.word.store(now, std::memory_order_release);
    }
  });
  std::vector<double> batches;
  std::thread first([&there, &back, &batches, time, first_cpu] {
    PinTo(first_cpu);
    const auto send = [&there, &back](uint64_t value) {
      there.word.store(value, std::memory_order_release);
      while (back.word.load(std::memory_order_acquire) != value) {
      }
    };
    uint64_t value = 0;
    send(++value);  // the other one runs
    const double end = NowNs(TimeOf::kWall) + absl::ToDoubleNanoseconds(time);
    for (double start = NowNs(TimeOf::kWall); start < end || batches.size() < 9;) {
      for (uint64_t i = 0; i < kBatch; ++i) send(++value);
      const double now = NowNs(TimeOf::kWall);
      batches.push_back((now - start) / kBatch);
      start = now;
    }
    send(kEnd);
  });
  first.join();
  second.join();
  std::sort(batches.begin(), batches.end());
  return batches[batches.size() / 2];
}

}  // namespace

void AddProbes(Suite& suite, const std::string& case_name, const std::vector<std::string>& which) {
  std::vector<std::pair<std::string, std::function<double()>>> probes;
  const absl::Duration time = suite.round_time() / 2;
  const auto timed = [time](void (*operation)(int64_t)) {
    const auto timer = std::make_shared<Timer>(time, TimeOf::kThread, operation);
    return [timer] { return timer->NsPerOperation(); };
  };
  const std::map<std::string, void (*)(int64_t)> operations = {
      {"xadd", Xadd},
      {"cas_pair", CasPair},
      {"mutex_pair", MutexPair},
      {"additions_16", Additions16},
      {"multiplications_2", Multiplications2},
  };
  for (const std::string& name : which) {
    if (const auto it = operations.find(name); it != operations.end()) {
      probes.emplace_back(name, timed(it->second));
    } else {
      SPANPOOL_CHECK(name == "core_round_trip") << name;
      const std::vector<int> cpus = AllowedCpus();
      if (cpus.size() < 2) {
        suite.Absent(case_name, "probe", "core_round_trip needs two CPUs");
        continue;
      }
      probes.emplace_back(name, [time, cpus] { return CoreRoundTripNs(time, cpus[0], cpus[1]); });
    }
  }
  if (probes.empty()) return;
  suite.Add(case_name, "probe", [probes]() -> absl::StatusOr<Metrics> {
    Metrics metrics;
    for (const auto& [name, probe] : probes) metrics.push_back({name, "ns", probe()});
    return metrics;
  });
}

}  // namespace spanpool::bench

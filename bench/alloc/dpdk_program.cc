// rte_mempool as its users call it: one pool per size of block, a cache of 512 blocks (the largest
// DPDK allows) for each thread, get and put inline. No huge pages and no devices, for a pool needs
// neither.

#if SPANPOOL_HAVE_DPDK
#include <rte_config.h>
// Needs the macros of the former.
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_mempool.h>
#endif

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "bench/alloc/patterns.h"

#if SPANPOOL_HAVE_DPDK

namespace {

// A pool lays out all its blocks at once; more memory than this is not worth it.
constexpr size_t kMostBytes = size_t{1} << 30;

struct Dpdk {
  rte_mempool* pool = nullptr;

  absl::Status Prepare(size_t bytes, size_t live, int threads) {
    rte_mempool_free(pool);
    // A pool must have half as many blocks again as a cache may hold; a cache overflows at that
    // many, and each thread has one.
    unsigned cache = RTE_MEMPOOL_CACHE_MAX_SIZE;
    const auto blocks = [&] { return live + static_cast<size_t>(threads) * cache * 3 / 2 + 64; };
    while (cache > 8 && blocks() * bytes > kMostBytes) cache /= 2;
    pool = rte_mempool_create("bench", static_cast<unsigned>(blocks()),
                              static_cast<unsigned>(bytes), cache, 0, nullptr, nullptr, nullptr,
                              nullptr, SOCKET_ID_ANY, RTE_MEMPOOL_F_NO_IOVA_CONTIG);
    if (pool != nullptr) return absl::OkStatus();
    return absl::ResourceExhaustedError(std::string("rte_mempool_create: ") +
                                        rte_strerror(rte_errno));
  }
  // A thread has a cache once DPDK knows it.
  void EnterThread() {
    if (rte_thread_register() != 0) std::abort();
  }
  void LeaveThread() {
    // The next thread with this number must find no blocks of this one in its cache.
    rte_mempool_cache_flush(rte_mempool_default_cache(pool, rte_lcore_id()), pool);
    rte_thread_unregister();
  }
  void* Alloc(size_t) {
    void* block;
    return rte_mempool_get(pool, &block) == 0 ? block : nullptr;
  }
  void Free(void* block) { rte_mempool_put(pool, block); }
};

}  // namespace

int main(int argc, char** argv) {
  // One lcore, which may run on any processor, as the other systems' threads may.
  const std::string cpus = "0@(0-" + std::to_string(std::thread::hardware_concurrency() - 1) + ")";
  const char* const arguments[] = {argc > 0 ? argv[0] : "dpdk",
                                   "--no-huge",
                                   "-m",
                                   "1400",
                                   "--no-pci",
                                   "--no-shconf",
                                   "--no-telemetry",
                                   "--log-level=1",
                                   "--lcores",
                                   cpus.c_str()};
  if (rte_eal_init(static_cast<int>(std::size(arguments)), const_cast<char**>(arguments)) < 0) {
    return spanpool::bench::ServeAbsent(std::string("rte_eal_init: ") + rte_strerror(rte_errno));
  }
  Dpdk allocator;
  return spanpool::bench::Serve(allocator);
}

#else

int main() {
  return spanpool::bench::ServeAbsent("DPDK is not installed; run apt-get install libdpdk-dev");
}

#endif

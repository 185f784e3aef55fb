// Two DPDK processes: an rte_mempool with a cache for each side, as large as DPDK allows and the
// memory permits, and an rte_ring of one producer and one consumer. The sender is the primary
// process and gets, the receiver is a secondary one and puts. Processes share huge pages only: they
// are to be below the folder SPANPOOL_BENCH_HUGE_DIR.
//
// Nothing counts who holds a block, and what a killed process held is lost.

#if SPANPOOL_HAVE_DPDK
#include <rte_config.h>
// Needs the macros of the former.
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#endif

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <memory>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/handoff/two_sides.h"
#include "bench/spsc_ring.h"

#if SPANPOOL_HAVE_DPDK

namespace spanpool::bench {
namespace {

// Huge pages that the blocks may take.
constexpr size_t kMostBytes = size_t{384} << 20;

struct Shared {
  enum Primary : int { kStarting, kUp, kFailed };
  std::atomic<int> primary;
  std::atomic<int> sizes;  // how many were prepared: each has a pool and a ring of its own name
};

absl::Status StartEal(const char* type, int lcore, pid_t primary) {
  const char* const folder = std::getenv("SPANPOOL_BENCH_HUGE_DIR");
  if (folder == nullptr) {
    return absl::FailedPreconditionError("two processes need huge pages, and there are none");
  }
  // Each side is an lcore of its own number, for caches go by that; where it runs is not DPDK's
  // business here.
  const std::string cpus =
      absl::StrCat(lcore, "@(0-", std::max<long>(sysconf(_SC_NPROCESSORS_ONLN), 1) - 1, ")");
  const std::string process = absl::StrCat("--proc-type=", type);
  const std::string prefix = absl::StrCat("--file-prefix=spanpool-bench-", primary);
  const std::string pages = absl::StrCat("--huge-dir=", folder);
  const char* const arguments[] = {"handoff",       process.c_str(), prefix.c_str(),
                                   pages.c_str(),   "--no-pci",      "--no-telemetry",
                                   "--log-level=1", "--lcores",      cpus.c_str()};
  if (rte_eal_init(static_cast<int>(std::size(arguments)), const_cast<char**>(arguments)) < 0) {
    return absl::UnavailableError(absl::StrCat("rte_eal_init: ", rte_strerror(rte_errno)));
  }
  return absl::OkStatus();
}

std::string PoolName(int size) { return absl::StrCat("pool", size); }
std::string RingName(int size) { return absl::StrCat("ring", size); }

class Sender final : public Side {
 public:
  explicit Sender(Shared* shared) : shared_(shared) {}
  ~Sender() override {
    Free();
    // What the processes found each other by stays otherwise.
    const std::string folder = rte_eal_get_runtime_dir();
    rte_eal_cleanup();
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }

  absl::Status Prepare(size_t bytes) override {
    Free();
    bytes_ = bytes;
    // Each side's cache overflows at half as much again as it is meant to hold.
    unsigned cache = RTE_MEMPOOL_CACHE_MAX_SIZE;
    const auto blocks = [&] { return kWindow + 2 * size_t{cache} * 3 / 2 + 2; };
    while (cache > 8 && blocks() * bytes > kMostBytes) cache /= 2;
    const int size = shared_->sizes.load() + 1;
    pool_ = rte_mempool_create(PoolName(size).c_str(), static_cast<unsigned>(blocks()),
                               static_cast<unsigned>(bytes), cache, 0, nullptr, nullptr, nullptr,
                               nullptr, SOCKET_ID_ANY, RTE_MEMPOOL_F_NO_IOVA_CONTIG);
    if (pool_ == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("rte_mempool_create: ", rte_strerror(rte_errno)));
    }
    ring_ = rte_ring_create(RingName(size).c_str(), kWindow, SOCKET_ID_ANY,
                            RING_F_SP_ENQ | RING_F_SC_DEQ | RING_F_EXACT_SZ);
    if (ring_ == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("rte_ring_create: ", rte_strerror(rte_errno)));
    }
    shared_->sizes.store(size);
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      void* block = nullptr;
      SpinUntil([&] { return rte_mempool_get(pool_, &block) == 0; });
      WriteEnds(block, bytes_, number);
      SpinUntil([&] { return rte_ring_sp_enqueue(ring_, block) == 0; });
    }
  }

 private:
  void Free() {
    rte_ring_free(ring_);
    rte_mempool_free(pool_);
    ring_ = nullptr;
    pool_ = nullptr;
  }

  Shared* const shared_;
  rte_mempool* pool_ = nullptr;
  rte_ring* ring_ = nullptr;
  size_t bytes_ = 0;
};

class Receiver final : public Side {
 public:
  explicit Receiver(Shared* shared) : shared_(shared) {}
  ~Receiver() override { rte_eal_cleanup(); }

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    const int size = shared_->sizes.load();
    pool_ = rte_mempool_lookup(PoolName(size).c_str());
    ring_ = rte_ring_lookup(RingName(size).c_str());
    if (pool_ != nullptr && ring_ != nullptr) return absl::OkStatus();
    return absl::NotFoundError("the secondary process does not find the primary's pool");
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      void* block = nullptr;
      SpinUntil([&] { return rte_ring_sc_dequeue(ring_, &block) == 0; });
      CheckEnds(block, bytes_, number);
      rte_mempool_put(pool_, block);
    }
  }

 private:
  Shared* const shared_;
  rte_mempool* pool_ = nullptr;
  rte_ring* ring_ = nullptr;
  size_t bytes_ = 0;
};

absl::StatusOr<std::unique_ptr<Side>> MakeSender(void* memory) {
  auto* const shared = static_cast<Shared*>(memory);
  const absl::Status started = StartEal("primary", 0, getpid());
  shared->primary.store(started.ok() ? Shared::kUp : Shared::kFailed);
  if (!started.ok()) return started;
  return std::make_unique<Sender>(shared);
}

absl::StatusOr<std::unique_ptr<Side>> MakeReceiver(void* memory) {
  auto* const shared = static_cast<Shared*>(memory);
  SpinUntil([shared] { return shared->primary.load() != Shared::kStarting; });
  if (shared->primary.load() == Shared::kFailed) {
    return absl::UnavailableError("the primary process did not start");
  }
  if (absl::Status started = StartEal("secondary", 1, getppid()); !started.ok()) return started;
  return std::make_unique<Receiver>(shared);
}

}  // namespace
}  // namespace spanpool::bench

int main() {
  using namespace spanpool::bench;  // NOLINT: this file is one program
  return RunTwoSides(sizeof(Shared), MakeSender, MakeReceiver);
}

#else

int main() {
  return spanpool::bench::RunAbsent("DPDK is not installed; run apt-get install libdpdk-dev");
}

#endif

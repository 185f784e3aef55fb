// Growth: how fast a program that wants more and more memory can write to it.
//
// Fresh blocks are allocated one after the other and each is filled at once, 1 GiB in all; nothing
// is freed meanwhile. What counts is who gets the pages, clears them and maps them, and whether the
// program waits for it. In `reserved` the daemon has the memory ready, in `beyond` it has not.

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/harness.h"
#include "bench/latency.h"
#include "bench/pool_daemon.h"
#include "spanpool/spanpool.h"

namespace spanpool::bench {
namespace {

// Beside what is filled, room for the spans that a session asks for ahead of need.
constexpr uint64_t kSlackBytes = uint64_t{128} << 20;
// The daemon's default.
constexpr uint64_t kReserveBytes = uint64_t{64} << 20;

// A fresh block; the time it takes is the time of an allocation.
using NextBlock = std::function<absl::StatusOr<void*>()>;

// Takes and fills blocks of `block_bytes` until they are `bytes`. The metrics of the round, with
// the latencies of the allocations if the system has any.
absl::StatusOr<Metrics> Grow(uint64_t bytes, uint64_t block_bytes, bool with_latencies,
                             const NextBlock& next) {
  Latencies latencies;
  const double start = NowNs(TimeOf::kWall);
  for (uint64_t done = 0; done < bytes; done += block_bytes) {
    const double before = NowNs(TimeOf::kWall);
    const absl::StatusOr<void*> block = next();
    latencies.Add(NowNs(TimeOf::kWall) - before);
    if (!block.ok()) return block.status();
    std::memset(*block, static_cast<int>(done / block_bytes % 255 + 1), block_bytes);
  }
  Metrics metrics = {
      {"gb_per_s", "GB/s", static_cast<double>(bytes) / (NowNs(TimeOf::kWall) - start)}};
  if (with_latencies) {
    for (Metric& metric : latencies.ToMetrics()) metrics.push_back(std::move(metric));
  }
  return metrics;
}

// A memfd of the process's own, mapped whole, without pages.
class Mapping {
 public:
  explicit Mapping(uint64_t bytes) : bytes_(bytes), fd_(memfd_create("growth", MFD_CLOEXEC)) {
    if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(bytes)) != 0) return;
    void* const start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (start != MAP_FAILED) start_ = static_cast<std::byte*>(start);
  }
  ~Mapping() {
    if (start_ != nullptr) munmap(start_, bytes_);
    if (fd_ >= 0) close(fd_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Null if it could not be made; errno says why.
  std::byte* start() const { return start_; }

 private:
  const uint64_t bytes_;
  const int fd_;
  std::byte* start_ = nullptr;
};

absl::Status NoMapping() { return absl::ErrnoToStatus(errno, "a memfd of the bench's own"); }

// Blocks of `mapping`, lowest first.
NextBlock BlocksOf(const Mapping& mapping, uint64_t block_bytes) {
  return [next = mapping.start(), block_bytes]() mutable -> absl::StatusOr<void*> {
    return std::exchange(next, next + block_bytes);
  };
}

// Memory that the process has written before: no page is missing.
Round MemsetWarm(uint64_t bytes, uint64_t block_bytes) {
  return [=, warm = std::shared_ptr<Mapping>()]() mutable -> absl::StatusOr<Metrics> {
    if (warm == nullptr) {
      auto mapping = std::make_shared<Mapping>(bytes);
      if (mapping->start() == nullptr) return NoMapping();
      std::memset(mapping->start(), 1, bytes);
      warm = std::move(mapping);
    }
    return Grow(bytes, block_bytes, /*with_latencies=*/false, BlocksOf(*warm, block_bytes));
  };
}

// A new memfd, whose pages come as they are written.
Round FirstTouch(uint64_t bytes, uint64_t block_bytes) {
  return [=]() -> absl::StatusOr<Metrics> {
    const Mapping fresh(bytes);
    if (fresh.start() == nullptr) return NoMapping();
    return Grow(bytes, block_bytes, /*with_latencies=*/false, BlocksOf(fresh, block_bytes));
  };
}

// A new memfd, of which each block is populated before it is written: the best that a program can
// do by itself, in one thread.
Round PopulateFill(uint64_t bytes, uint64_t block_bytes) {
  return [=]() -> absl::StatusOr<Metrics> {
    const Mapping fresh(bytes);
    if (fresh.start() == nullptr) return NoMapping();
    return Grow(bytes, block_bytes, /*with_latencies=*/true,
                [next = fresh.start(), block_bytes]() mutable -> absl::StatusOr<void*> {
                  std::byte* const block = std::exchange(next, next + block_bytes);
                  if (madvise(block, block_bytes, MADV_POPULATE_WRITE) != 0) {
                    return absl::ErrnoToStatus(errno, "MADV_POPULATE_WRITE");
                  }
                  return block;
                });
  };
}

absl::StatusOr<std::unique_ptr<Session>> AttachTo(const PoolDaemon& daemon) {
  SessionOptions options;
  options.target = daemon.target();
  return Session::Attach(options);
}

NextBlock BlocksOf(Session& session, uint64_t block_bytes) {
  return [&session, block_bytes]() -> absl::StatusOr<void*> {
    void* const block = session.Malloc(block_bytes);
    if (block == nullptr) return absl::ResourceExhaustedError("the pool is full");
    return block;
  };
}

// Waits until the daemon has `bytes` of memory ready, that is free and backed.
absl::Status AwaitReady(PoolDaemon& daemon, uint64_t bytes) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  for (;;) {
    const absl::StatusOr<v1::PoolStatus> status = daemon.Status();
    if (!status.ok()) return status.status();
    if (status->free_bytes() >= bytes) return absl::OkStatus();
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "after a minute the daemon has ", status->free_bytes(), " of ", bytes, " bytes ready"));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
}

// Each round a new session of one daemon, which has all of the pool's memory ready. The session has
// none of it mapped.
Round SpanpoolReserved(uint64_t bytes, uint64_t block_bytes) {
  return [=, daemon = std::shared_ptr<PoolDaemon>()]() mutable -> absl::StatusOr<Metrics> {
    const uint64_t pool_bytes = bytes + kSlackBytes;
    if (daemon == nullptr) {
      absl::StatusOr<std::unique_ptr<PoolDaemon>> started =
          PoolDaemon::Start({.limit_bytes = pool_bytes, .reserve_bytes = pool_bytes});
      if (!started.ok()) return started.status();
      daemon = *std::move(started);
    }
    // Also what the last round's session had.
    if (absl::Status status = AwaitReady(*daemon, pool_bytes); !status.ok()) return status;
    const absl::StatusOr<std::unique_ptr<Session>> session = AttachTo(*daemon);
    if (!session.ok()) return session.status();
    return Grow(bytes, block_bytes, /*with_latencies=*/true, BlocksOf(**session, block_bytes));
  };
}

// Each round a new daemon with the usual reserve, which has just been used up.
Round SpanpoolBeyond(uint64_t bytes, uint64_t block_bytes) {
  return [=]() -> absl::StatusOr<Metrics> {
    const absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon = PoolDaemon::Start(
        {.limit_bytes = 2 * (bytes + kSlackBytes), .reserve_bytes = kReserveBytes});
    if (!daemon.ok()) return daemon.status();
    if (absl::Status status = AwaitReady(**daemon, kReserveBytes); !status.ok()) return status;
    const absl::StatusOr<std::unique_ptr<Session>> session = AttachTo(**daemon);
    if (!session.ok()) return session.status();
    const NextBlock next = BlocksOf(**session, block_bytes);
    for (uint64_t used = 0; used < kReserveBytes; used += block_bytes) {
      if (absl::StatusOr<void*> block = next(); !block.ok()) return block.status();
    }
    return Grow(bytes, block_bytes, /*with_latencies=*/true, next);
  };
}

void Fill(Suite& suite, const std::vector<std::string>&) {
  const uint64_t bytes = uint64_t{suite.tiny() ? 8u : suite.quick() ? 128u : 1024u} << 20;
  using MakeRound = Round (*)(uint64_t bytes, uint64_t block_bytes);
  for (const auto& [kind, spanpool] :
       {std::pair<const char*, MakeRound>{"reserved_", SpanpoolReserved},
        std::pair<const char*, MakeRound>{"beyond_", SpanpoolBeyond}}) {
    for (const uint64_t block_bytes : {uint64_t{64} << 10, uint64_t{1} << 20}) {
      const std::string name = absl::StrCat(kind, block_bytes);
      suite.Add(name, "spanpool", spanpool(bytes, block_bytes));
      suite.Add(name, "memset_warm", MemsetWarm(bytes, block_bytes));
      suite.Add(name, "memfd_first_touch", FirstTouch(bytes, block_bytes));
      suite.Add(name, "memfd_populate_fill", PopulateFill(bytes, block_bytes));
    }
  }
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "growth", spanpool::bench::Fill);
}

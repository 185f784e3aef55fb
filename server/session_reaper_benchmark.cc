// What taking back costs for each block that a dead session held, by what the blocks were: the
// session's own and nobody else's, its own and held on by a living reader, or another's that it had
// opened. The argument is the size of a block.
//
//   bazel run //server:session_reaper_benchmark
//
// `piece_us` is the longest piece: what another dead session waits for at most.

#include <benchmark/benchmark.h>
#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "allocator/check.h"
#include "allocator/size_classes.h"
#include "allocator/units.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/packet.h"
#include "proto/layout/slot.h"
#include "server/config.h"
#include "server/pool.h"
#include "server/session.h"
#include "server/session_reaper.h"
#include "server/session_table.h"

namespace spanpool {
namespace {

using layout::BlockWord;
using layout::Slot;
using layout::SlotState;

constexpr uint32_t kBudget = 4096;  // as the reaper's

class Clients {
 public:
  Clients() : pool_(Config(), nullptr, &sessions_) { SPANPOOL_CHECK(pool_.Replenish().ok()); }

  std::shared_ptr<Session> Attach() {
    auto session = pool_.Attach({.pid = 1, .uid = 0, .gids = {}}, layout::AccessMode::kWrite,
                                layout::UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    SPANPOOL_CHECK(session.ok());
    return *session;
  }

  // The granules of `blocks` blocks in spans that are lent to `session` for it.
  std::vector<GranuleId> Borrow(Session& session, uint64_t blocks, uint64_t bytes) {
    const SizeClass size_class = bytes > kMaxSmallBytes ? kLargeSizeClass : SizeClassFor(bytes);
    const bool large = size_class == kLargeSizeClass;
    std::vector<GranuleId> granules;
    while (granules.size() < blocks) {
      const absl::StatusOr<ExchangeResult> result =
          pool_.Exchange(session, {.returns = {},
                                   .wants = {{SpanClass(size_class, true).value(), 64,
                                              large ? PagesFor(bytes).value() : 0, 0}}});
      SPANPOOL_CHECK(result.ok());
      SPANPOOL_CHECK(result->shortfalls.empty()) << result->shortfalls[0].status;
      for (const ExchangeGrant& grant : result->grants) {
        const uint64_t block_bytes = large ? Bytes(grant.pages) : BlockBytes(size_class);
        const uint64_t in_span = large ? 1 : BlocksPerSpan(size_class);
        for (uint64_t i = 0; i < in_span && granules.size() < blocks; ++i) {
          granules.push_back(
              GranuleOf(PoolOffset(OffsetOf(grant.first_page).value() + i * block_bytes)));
        }
      }
    }
    return granules;
  }

  // What Share and Open leave behind.
  void Hold(Session& session, const std::vector<GranuleId>& granules, bool share) {
    for (uint32_t i = 0; i < granules.size(); ++i) {
      session.memory().slot(i) = Slot(SlotState::kHeld, granules[i]).bits();
      layout::SharedWord& word = *pool_.arenas().WordOf(granules[i]);
      word = (share ? BlockWord(word).Shared() : BlockWord(word).Acquired()).bits();
    }
  }

  // Seconds; notes the longest piece.
  double Reap(Session& session, double* longest) {
    using Clock = std::chrono::steady_clock;
    SPANPOOL_CHECK(pool_.ProcessDied(session));
    const Clock::time_point start = Clock::now();
    Clock::time_point from = start;
    for (bool done = false; !done;) {
      done = pool_.ReapSome(session, kBudget) == ReapProgress::kDone;
      const Clock::time_point now = Clock::now();
      *longest = std::max(*longest, std::chrono::duration<double>(now - from).count());
      from = now;
    }
    return std::chrono::duration<double>(from - start).count();
  }

  void Sweep() { pool_.Sweep(); }

 private:
  static PoolConfig Config() {
    PoolConfig config;
    config.limit_bytes = uint64_t{1} << 30;
    config.reserve_bytes = uint64_t{600} << 20;
    config.session_limit_bytes = config.limit_bytes;
    return config;
  }

  SessionTable sessions_{1000};
  Pool pool_;
};

enum class Whose { kOwn, kOwnAndRead, kOpened };

void Reap(benchmark::State& state, Whose whose, uint64_t blocks, uint64_t bytes) {
  Clients clients;
  double longest = 0;
  double total = 0;
  for (auto _ : state) {
    const std::shared_ptr<Session> dead = clients.Attach();
    const std::shared_ptr<Session> other = clients.Attach();
    Session& sharer = whose == Whose::kOpened ? *other : *dead;
    Session& opener = whose == Whose::kOpened ? *dead : *other;
    const std::vector<GranuleId> granules = clients.Borrow(sharer, blocks, bytes);
    clients.Hold(sharer, granules, true);
    if (whose != Whose::kOwn) clients.Hold(opener, granules, false);
    const double seconds = clients.Reap(*dead, &longest);
    state.SetIterationTime(seconds);
    total += seconds;
    double ignored = 0;
    clients.Reap(*other, &ignored);
    clients.Sweep();
  }
  state.counters["ns_per_block"] =
      total * 1e9 / static_cast<double>(blocks) / static_cast<double>(state.iterations());
  state.counters["piece_us"] = longest * 1e6;
}

void RegisterAll() {
  struct Case {
    const char* name;
    Whose whose;
    uint64_t blocks;
    uint64_t bytes;
  };
  for (const Case& each :
       {Case{"own", Whose::kOwn, 100'000, 4096}, Case{"own", Whose::kOwn, 1'000'000, 64},
        Case{"own", Whose::kOwn, 256, 1 << 20},
        Case{"own_and_read", Whose::kOwnAndRead, 100'000, 4096},
        Case{"opened", Whose::kOpened, 100'000, 4096}}) {
    const std::string name = absl::StrCat("reap/", each.name, "/", each.blocks, "x", each.bytes);
    benchmark::RegisterBenchmark(name.c_str(), Reap, each.whose, each.blocks, each.bytes)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace
}  // namespace spanpool

int main(int argc, char** argv) {
  spanpool::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}

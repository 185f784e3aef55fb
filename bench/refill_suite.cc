// A refill: what a thread waits for when a span has to come from the daemon.
//
// One message gives the span of last time back and asks for another, as a session's does when a
// class runs dry; the daemon takes back, grants, records and answers. Beside it the least that gRPC
// can do: an empty message to another process and back.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "allocator/size_classes.h"
#include "bench/grpc_echo.h"
#include "bench/harness.h"
#include "bench/latency.h"
#include "bench/pool_daemon.h"
#include "client/daemon_link.h"
#include "client/session_core.h"
#include "client/span_source.h"

namespace spanpool::bench {
namespace {

using internal::ExchangeResult;
using internal::GrantSequence;
using internal::SpanSource;
using internal::SpanWish;

constexpr uint64_t kLimitBytes = uint64_t{256} << 20;

// A session of which there is only the way to the daemon. Not thread-safe.
class Refiller {
 public:
  static absl::StatusOr<std::unique_ptr<Refiller>> Attach(const std::string& run_dir) {
    internal::PoolFacts facts;
    absl::StatusOr<std::unique_ptr<SpanSource>> source =
        internal::AttachToDaemon(run_dir, "default", Access::kReadWrite, absl::Seconds(5), &facts);
    if (!source.ok()) return source.status();
    return std::unique_ptr<Refiller>(new Refiller(*std::move(source)));
  }

  absl::Status Refill() {
    // Of blocks of 64 bytes.
    const SpanWish wish{SpanClass(SizeClassFor(64), /*noscan=*/true), 1, PageCount(0),
                        PageCount(1)};
    absl::StatusOr<ExchangeResult> result = source_->Exchange(held_, {&wish, 1});
    held_.clear();
    if (!result.ok()) return result.status();
    if (result->grants.size() != 1) {
      return absl::InternalError(absl::StrCat("asked for one span, got ", result->grants.size(),
                                              ": ", result->shortfall.ToString()));
    }
    held_.push_back(result->grants.front().sequence);
    return absl::OkStatus();
  }

 private:
  explicit Refiller(std::unique_ptr<SpanSource> source) : source_(std::move(source)) {}

  const std::unique_ptr<SpanSource> source_;
  std::vector<GrantSequence> held_;
};

// What both systems are: something in another process, and who talks to it.
struct System {
  std::shared_ptr<void> server;
  std::vector<Call> calls;
};

using StartSystem = absl::StatusOr<System> (*)(size_t callers);

absl::StatusOr<System> StartSpanpool(size_t callers) {
  absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon =
      PoolDaemon::Start({.limit_bytes = kLimitBytes});
  if (!daemon.ok()) return daemon.status();
  System system;
  for (size_t i = 0; i < callers; ++i) {
    absl::StatusOr<std::unique_ptr<Refiller>> refiller = Refiller::Attach((*daemon)->target());
    if (!refiller.ok()) return refiller.status();
    system.calls.push_back([refiller = std::shared_ptr<Refiller>(*std::move(refiller))] {
      return refiller->Refill();
    });
  }
  system.server = std::shared_ptr<PoolDaemon>(*std::move(daemon));
  return system;
}

absl::StatusOr<System> StartFloor(size_t callers) {
  absl::StatusOr<std::unique_ptr<EchoServer>> server = EchoServer::Start("sync");
  if (!server.ok()) return server.status();
  System system;
  for (size_t i = 0; i < callers; ++i) {
    system.calls.push_back(
        [client = std::make_shared<EchoClient>((*server)->address())] { return client->Talk(); });
  }
  system.server = std::shared_ptr<EchoServer>(*std::move(server));
  return system;
}

// A round of `measure`, on a system that is started, and whose callers have each called once,
// before the first.
template <typename Measure>
Round OnSystem(StartSystem start, size_t callers, Measure measure) {
  return [=, system = std::shared_ptr<System>()]() mutable -> absl::StatusOr<Metrics> {
    if (system == nullptr) {
      absl::StatusOr<System> started = start(callers);
      if (!started.ok()) return started.status();
      for (const Call& call : started->calls) {
        if (absl::Status status = call(); !status.ok()) return status;
      }
      system = std::make_shared<System>(*std::move(started));
    }
    absl::StatusOr<Latencies> latencies = measure(system->calls);
    if (!latencies.ok()) return latencies.status();
    return latencies->ToMetrics();
  };
}

void Fill(Suite& suite, const std::vector<std::string>&) {
  const bool quick = suite.quick();
  const size_t count = quick ? 500 : 5000;
  const auto back_to_back = [count](const std::vector<Call>& calls) {
    return TimeBackToBack(calls.front(), count);
  };
  const auto after_idle = [quick, seed = uint64_t{0}](const std::vector<Call>& calls) mutable {
    return TimeAfterIdle(calls, quick ? 1 : kIdleRepeats, quick ? kQuickIdleness : Idleness(),
                         seed++);
  };
  for (const auto& [name, start] :
       {std::pair<const char*, StartSystem>{"spanpool", StartSpanpool},
        std::pair<const char*, StartSystem>{"grpc_floor", StartFloor}}) {
    suite.Add("stream", name, OnSystem(start, 1, back_to_back));
    suite.Add("after_idle", name,
              OnSystem(start, quick ? kQuickIdleCallers : kIdleCallers, after_idle));
  }
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "refill", spanpool::bench::Fill);
}

// gRPC's three server APIs side by side: empty calls and messages to another process, back to back
// and after idleness. Why the daemon serves Exchange as it does.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/grpc_echo.h"
#include "bench/harness.h"
#include "bench/latency.h"

namespace spanpool::bench {
namespace {

constexpr const char* kApis[] = {"sync", "completion_queue", "callback"};

using Method = absl::Status (EchoClient::*)();

struct Echoes {
  std::unique_ptr<EchoServer> server;
  std::vector<std::unique_ptr<EchoClient>> clients;
};

absl::StatusOr<std::shared_ptr<Echoes>> StartEchoes(const std::string& api, size_t clients,
                                                    Method method) {
  absl::StatusOr<std::unique_ptr<EchoServer>> server = EchoServer::Start(api);
  if (!server.ok()) return server.status();
  auto echoes = std::make_shared<Echoes>();
  echoes->server = *std::move(server);
  for (size_t i = 0; i < clients; ++i) {
    echoes->clients.push_back(std::make_unique<EchoClient>(echoes->server->address()));
    if (absl::Status status = (echoes->clients.back().get()->*method)(); !status.ok()) {
      return status;
    }
  }
  return echoes;
}

Round BackToBack(const std::string& api, Method method, size_t count) {
  return [=, echoes = std::shared_ptr<Echoes>()]() mutable -> absl::StatusOr<Metrics> {
    if (echoes == nullptr) {
      absl::StatusOr<std::shared_ptr<Echoes>> started = StartEchoes(api, 1, method);
      if (!started.ok()) return started.status();
      echoes = *started;
    }
    EchoClient& client = *echoes->clients.front();
    absl::StatusOr<Latencies> latencies =
        TimeBackToBack([&client, method] { return (client.*method)(); }, count);
    if (!latencies.ok()) return latencies.status();
    return latencies->ToMetrics();
  };
}

Round AfterIdle(const std::string& api, size_t clients, size_t repeats, Idleness idleness) {
  return [=, echoes = std::shared_ptr<Echoes>(),
          seed = uint64_t{0}]() mutable -> absl::StatusOr<Metrics> {
    if (echoes == nullptr) {
      absl::StatusOr<std::shared_ptr<Echoes>> started =
          StartEchoes(api, clients, &EchoClient::Talk);
      if (!started.ok()) return started.status();
      echoes = *started;
    }
    std::vector<Call> calls;
    for (const auto& client : echoes->clients) {
      calls.push_back([&client = *client] { return client.Talk(); });
    }
    absl::StatusOr<Latencies> latencies = TimeAfterIdle(calls, repeats, idleness, seed++);
    if (!latencies.ok()) return latencies.status();
    return latencies->ToMetrics();
  };
}

void Fill(Suite& suite, const std::vector<std::string>&) {
  const size_t count = suite.quick() ? 500 : 5000;
  for (const char* api : kApis) {
    suite.Add("call", api, BackToBack(api, &EchoClient::Call, count));
    suite.Add("stream", api, BackToBack(api, &EchoClient::Talk, count));
    suite.Add(
        "after_idle", api,
        AfterIdle(api, suite.quick() ? kQuickIdleCallers : kIdleCallers,
                  suite.quick() ? 1 : kIdleRepeats, suite.quick() ? kQuickIdleness : Idleness()));
  }
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "grpc_apis", spanpool::bench::Fill);
}

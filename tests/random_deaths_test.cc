// Clients share blocks with each other at random and are killed, stopped and set going again at
// random; then the whole pool is audited.
//
// SPANPOOL_DEATHS_SECONDS says for how long (30), SPANPOOL_DEATHS_SEED how.

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

uint64_t NumberOf(const char* variable, uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::stoull(text);
}

TEST(RandomDeaths, LeaveAnExactPool) {
  const uint64_t seed = NumberOf("SPANPOOL_DEATHS_SEED", std::random_device{}());
  SCOPED_TRACE(::testing::Message() << "SPANPOOL_DEATHS_SEED=" << seed);
  const std::chrono::seconds length(NumberOf("SPANPOOL_DEATHS_SECONDS", 30));
  std::mt19937_64 random(seed);
  Daemon daemon({.config = "pool { name: \"default\" limit_bytes: 268435456 "
                           "reserve_bytes: 16777216 transit_grace_ms: 200 }\n",
                 .flags = {},
                 .audited = true});
  const std::string board = daemon.run_dir() + "/board";

  struct Client {
    std::optional<Process> process;
    bool stopped = false;
  };
  std::vector<Client> clients(4);
  const auto start = [&](Client* client) {
    client->process.emplace(std::vector<std::string>{Runfile("tests/support/sharing_load_main"),
                                                     daemon.run_dir(), board,
                                                     std::to_string(random())});
    client->stopped = false;
    ASSERT_EQ(client->process->ReadLine(), "READY") << client->process->standard_error();
  };
  for (Client& client : clients) start(&client);
  if (HasFatalFailure()) return;

  int kills = 0;
  int stops = 0;
  const auto end = std::chrono::steady_clock::now() + length;
  while (std::chrono::steady_clock::now() < end) {
    // Not to wait for anything, but for a death to be somewhere else each time.
    poll(nullptr, 0, static_cast<int>(random() % 20));
    Client& client = clients[random() % clients.size()];
    switch (random() % 4) {
      case 0:
        client.process->Signal(SIGSTOP);
        client.stopped = true;
        ++stops;
        break;
      case 1:
        client.process->Signal(SIGCONT);
        client.stopped = false;
        break;
      default:
        client.process->Signal(SIGKILL);
        ASSERT_EQ(client.process->Wait(), 128 + SIGKILL) << client.process->standard_error();
        ++kills;
        start(&client);
        if (HasFatalFailure()) return;
    }
  }
  for (Client& client : clients) {
    if (client.stopped) client.process->Signal(SIGCONT);
  }
  // Half are killed, half come to their end.
  std::string did;
  for (size_t i = 0; i < clients.size(); ++i) {
    Process& process = *clients[i].process;
    if (i % 2 == 0) {
      process.Signal(SIGKILL);
      EXPECT_EQ(process.Wait(), 128 + SIGKILL) << process.standard_error();
    } else {
      process.CloseInput();
      did = process.ReadLine().value_or("nothing");
      EXPECT_EQ(process.Wait(), 0) << process.standard_error();
    }
  }
  EXPECT_TRUE(daemon.EventuallyEmpty());
  EXPECT_TRUE(daemon.EventuallySound());
  const auto status = daemon.PoolStatus();
  EXPECT_EQ(status.suspect_blocks(), 0u);
  EXPECT_EQ(status.lies_total(), 0u);
  EXPECT_GT(kills, 0);
  std::cout << kills << " kills, " << stops << " stops, " << daemon.Recounts()
            << " recounts; the last client: " << did << "\n";
}

}  // namespace
}  // namespace spanpool::testing

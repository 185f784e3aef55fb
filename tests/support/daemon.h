// A real daemon in a run directory of its own, and what it says of itself.

#ifndef SPANPOOL_TESTS_SUPPORT_DAEMON_H_
#define SPANPOOL_TESTS_SUPPORT_DAEMON_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "spanpool/v1/admin.grpc.pb.h"
#include "tests/support/process.h"

namespace spanpool::testing {

class Daemon {
 public:
  struct Options {
    std::string config = {};  // text of a configuration file; empty = none
    std::vector<std::string> flags = {"--limit", "1073741824"};
    // One that can be asked for an audit. It takes `config`, which is not empty, and no flags.
    bool audited = false;
    // With a keeper, which is process(). Without one there is a single process, and to kill it is
    // to lose the pool.
    bool kept = false;
  };
  // Starts a daemon and waits until it serves; aborts the test program if it does not.
  Daemon();
  explicit Daemon(const Options& options);
  ~Daemon();  // ends it at once, its keeper too

  const std::string& run_dir() const { return run_dir_; }
  Process& process() { return *process_; }
  // The process that serves: with a keeper, the worker of the moment. Waits until there is one.
  pid_t worker_pid();

  // GetStatus. Waits, while a worker is started, until it is answered.
  v1::GetStatusResponse Status(const std::string& pool = "");
  // Of one pool.
  v1::PoolStatus PoolStatus(const std::string& pool = "default");
  // What the kernel says is behind the pool's arenas, in bytes: memory for blocks, not tables.
  uint64_t MemoryBytes(const std::string& pool = "default");
  // Asks until `condition` holds of the pool, at most 60 s. False = it never did.
  bool Eventually(const std::function<bool(const v1::PoolStatus&)>& condition,
                  const std::string& pool = "default");
  // Eventually `sessions` sessions have died and all that they held was taken back. A dead session
  // is out of the count of sessions before its references and spans are.
  bool EventuallyReaped(uint64_t sessions);
  // Eventually nothing of the pool is on loan or in use, and no session is left.
  bool EventuallyEmpty(const std::string& pool = "default");

  // Of an audited daemon, when no client is in the middle of anything. Eventually nothing is wrong
  // in its pools, or in that one: a dead session may have to be reaped first, a housekeeper to end
  // its round. At most 20 s.
  bool EventuallySound(const std::string& pool = "");
  // The same of what clients cannot write: for a pool that somebody wrote over.
  bool EventuallyBalanced(const std::string& pool);
  // Recounts so far.
  uint64_t Recounts();

 private:
  bool EventuallyOk(const std::string& command);

  std::string run_dir_;
  std::unique_ptr<Process> process_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_DAEMON_H_

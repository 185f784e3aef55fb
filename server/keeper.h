// The keeper: the process that holds what must outlive the daemon's worker, and starts it anew.
//
//   spanpoold (keeper) ──fork, exec──▶ spanpoold (worker: pools, sessions, gRPC)
//        ▲    holds memfds, pidfds, lifelines by name             │
//        └───────── $NOTIFY_SOCKET: FDSTORE=1, READY=1 ◀──────────┘
//
// It knows nothing of pools: to its worker it is a service manager that speaks systemd's protocol
// (notify_fd_store.h). It has one thread and no gRPC, asks nobody and waits for nobody, so that
// there is little in it that could end.
//
//  1. What is kept is given to each worker, and closed only by FDSTOREREMOVE=1 or at the end.
//  2. A worker that ends is followed by another: at once, or after RestartDelay.
//  3. A restart runs the program that served last, whatever is on disk by now. An upgrade (SIGUSR2)
//     runs what is on disk; if that does not come to serve, the one that did is started again.
//  4. Before a worker has ever served, and after SIGTERM or SIGINT, the worker's end is the end of
//     the keeper, with its status. A worker that exits with 0 was told to stop: the same.
//  5. Nobody but the worker is listened to, by the pid that the kernel says.
//
// Signals: SIGTERM, SIGINT and SIGHUP are the worker's; the second of the first two kills it. As a
// container's first process it reaps whatever ends there. If it is killed the worker goes on, and
// says so (NotifyFdStore::restart_safe).

#ifndef SPANPOOL_SERVER_KEEPER_H_
#define SPANPOOL_SERVER_KEEPER_H_

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace spanpool {

// What a worker that has served exits with to be followed by one of the program that is on disk.
inline constexpr int kExitForSuccessor = 3;
// The same of a worker that will not serve what its predecessor left: the program that served
// before is to be started again.
inline constexpr int kExitRefused = 4;

// What a worker adds to READY=1 so that the keeper's log is JSON too.
inline constexpr char kLogInJson[] = "X_SPANPOOL_LOG=json";

// How long to wait before the worker is started again: not at all, then 10 ms, then twice as long
// each time, up to `longest`; from the start again after one that served for 10 s.
class RestartDelay {
 public:
  static constexpr absl::Duration kLongest = absl::Seconds(5);

  explicit RestartDelay(absl::Duration longest = kLongest) : longest_(longest) {}

  // After a worker that served for `served`; zero = it did not.
  absl::Duration Next(absl::Duration served);

 private:
  const absl::Duration longest_;
  absl::Duration next_ = absl::ZeroDuration();
};

struct KeeperOptions {
  std::string program = {};                             // the worker's, an absolute path
  std::vector<std::string> arguments = {};              // its own, from its name on
  absl::Duration upgrade_patience = absl::Seconds(10);  // then a worker to be replaced is killed
  absl::Duration longest_delay = RestartDelay::kLongest;
};

// Keeps and restarts; returns the status to exit with, or ends by the signal that was to end it.
// Prints READY on standard output, and tells the service manager that started this process, when
// the first worker serves. For a process with one thread, which is the keeper from then on.
int RunKeeper(const KeeperOptions& options);

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_KEEPER_H_

// The store that a service manager has, by systemd's protocol: the keeper (keeper.h) speaks it, and
// so does systemd itself (FileDescriptorStoreMax= of a unit).
//
// What is kept goes as datagrams to the socket $NOTIFY_SOCKET names (sd_notify(3): FDSTORE=1,
// FDNAME=, FDSTOREREMOVE=1, BARRIER=1), and comes back at the next start as descriptors 3 and on,
// with their names in $LISTEN_FDNAMES (sd_listen_fds(3)). The manager answers nothing, so it is the
// sender that knows how much there is room for: $FDSTORE descriptors (systemd sets it from version
// 254 on, the keeper always), and names of 128 KiB in all, for the kernel takes no longer variable.
// Short names make room for more.
//
// To replace what is kept by a name takes two messages; who dies between them leaves neither.

#ifndef SPANPOOL_SERVER_NOTIFY_FD_STORE_H_
#define SPANPOOL_SERVER_NOTIFY_FD_STORE_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "allocator/lock_rank.h"
#include "proto/layout/packet.h"
#include "server/fd_store.h"

namespace spanpool {

// What the keeper's pid is called in the environment of its worker; nobody else has it.
inline constexpr char kKeeperVariable[] = "SPANPOOL_KEEPER";

// Most bytes of all names together, and one more for each.
inline constexpr size_t kMostFdNameBytes = 130'000;

// Whether a descriptor may be called so: 1 to 200 of A-Z a-z 0-9 . _ - /
bool IsFdName(absl::string_view name);

// What this process was started with, close-on-exec; of several by one name the last. What has a
// name that IsFdName does not like (systemd says "stored" of what had none) is closed. The
// environment is cleared of it: the second call returns nothing.
KeptFds TakeKeptFds();

class NotifyFdStore final : public FdStore {
 public:
  struct Options {
    std::string socket = {};     // a path, or an abstract name after '@'
    size_t most_fds = SIZE_MAX;  // more are refused
    size_t most_name_bytes = kMostFdNameBytes;
    // The process that keeps, whose end is the end of the store; 0 = it does not end before us.
    pid_t keeper = 0;
    absl::Duration patience = absl::Seconds(10);  // for a manager that does not read
  };
  // As the environment says ($NOTIFY_SOCKET, $FDSTORE, $SPANPOOL_KEEPER).
  static Options FromEnvironment();

  // `kept` is what TakeKeptFds returned: it is kept still.
  //   FAILED_PRECONDITION  the environment names no socket
  //   UNAVAILABLE          nobody is at the socket
  static absl::StatusOr<std::unique_ptr<NotifyFdStore>> Connect(const Options& options,
                                                                const KeptFds& kept);

  absl::Status Keep(absl::Span<const NamedFd> fds) override ABSL_LOCKS_EXCLUDED(mu_);
  void Forget(const std::string& name) override ABSL_LOCKS_EXCLUDED(mu_);
  bool restart_safe() const override;

  // Readable once the keeper has ended. -1 if it cannot end.
  int hang_up() const { return keeper_.get(); }

 private:
  NotifyFdStore(const Options& options, layout::UniqueFd socket, layout::UniqueFd keeper);

  // Sends `text` with `fd`, if that is not -1.
  //   DEADLINE_EXCEEDED  no room: at once, or after `patience` if it is to wait
  absl::Status Send(const std::string& text, int fd, layout::Wait wait) const;
  absl::Status SendFds(absl::Span<const NamedFd> fds, const std::vector<std::string>& forget) const;
  // Returns once all that was sent before has been dealt with.
  absl::Status AwaitDealtWith() const;
  absl::Status Gone() const;

  const Options options_;
  const layout::UniqueFd socket_;
  const layout::UniqueFd keeper_;  // a pidfd

  RankedMutex mu_{LockRank::kLeaf};
  absl::flat_hash_set<std::string> names_ ABSL_GUARDED_BY(mu_);
  size_t name_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  // To be forgotten as soon as there is room in the socket.
  std::vector<std::string> unsent_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_NOTIFY_FD_STORE_H_

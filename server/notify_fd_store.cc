#include "server/notify_fd_store.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace spanpool {
namespace {

constexpr size_t kMostNameBytes = 200;

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool IsReadable(int fd) {
  pollfd waiting = {.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&waiting, 1, 0) == 1;
}

}  // namespace

bool IsFdName(absl::string_view name) {
  return !name.empty() && name.size() <= kMostNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  absl::StrContains("._-/", absl::string_view(&c, 1));
         });
}

KeptFds TakeKeptFds() {
  KeptFds kept;
  char** names = nullptr;
  const int count = sd_listen_fds_with_names(/*unset_environment=*/1, &names);
  for (int i = 0; i < count; ++i) {
    layout::UniqueFd fd(SD_LISTEN_FDS_START + i);
    std::string name = names != nullptr && names[i] != nullptr ? names[i] : "";
    if (names != nullptr) std::free(names[i]);
    if (IsFdName(name)) kept.insert_or_assign(std::move(name), std::move(fd));
  }
  std::free(names);
  return kept;
}

NotifyFdStore::Options NotifyFdStore::FromEnvironment() {
  Options options{.socket = Variable("NOTIFY_SOCKET")};
  size_t most = 0;
  if (absl::SimpleAtoi(Variable("FDSTORE"), &most)) options.most_fds = most;
  pid_t keeper = 0;
  if (absl::SimpleAtoi(Variable(kKeeperVariable), &keeper)) options.keeper = keeper;
  return options;
}

absl::StatusOr<std::unique_ptr<NotifyFdStore>> NotifyFdStore::Connect(const Options& options,
                                                                      const KeptFds& kept) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (options.socket.size() < 2 || (options.socket[0] != '/' && options.socket[0] != '@')) {
    return absl::FailedPreconditionError(
        "no service manager keeps descriptors: NOTIFY_SOCKET names no socket");
  }
  if (options.socket.size() >= sizeof(address.sun_path)) {
    return absl::FailedPreconditionError("NOTIFY_SOCKET is too long for a socket's address");
  }
  std::memcpy(address.sun_path, options.socket.data(), options.socket.size());
  socklen_t length =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + options.socket.size());
  if (options.socket[0] == '@') {
    address.sun_path[0] = '\0';
  } else {
    ++length;
  }
  layout::UniqueFd keeper;
  if (options.keeper != 0) {
    keeper = layout::UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, options.keeper, 0)));
    if (!keeper.valid()) return absl::ErrnoToStatus(errno, "pidfd_open of the keeper");
  }
  layout::UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, "socket");
  const timeval patience = absl::ToTimeval(options.patience);
  if (setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) != 0) {
    return absl::ErrnoToStatus(errno, "SO_SNDTIMEO");
  }
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return absl::UnavailableError(
        absl::StrCat("nobody keeps descriptors at ", options.socket, ": ", std::strerror(errno)));
  }
  std::unique_ptr<NotifyFdStore> store(
      new NotifyFdStore(options, std::move(fd), std::move(keeper)));
  RankedMutexLock lock(&store->mu_);
  for (const auto& [name, descriptor] : kept) {
    store->names_.insert(name);
    store->name_bytes_ += name.size() + 1;
  }
  return store;
}

NotifyFdStore::NotifyFdStore(const Options& options, layout::UniqueFd socket,
                             layout::UniqueFd keeper)
    : options_(options), socket_(std::move(socket)), keeper_(std::move(keeper)) {}

absl::Status NotifyFdStore::Gone() const {
  return absl::UnavailableError(
      absl::StrCat("nobody keeps descriptors any more at ", options_.socket));
}

bool NotifyFdStore::restart_safe() const { return !keeper_.valid() || !IsReadable(keeper_.get()); }

absl::Status NotifyFdStore::Send(const std::string& text, int fd, layout::Wait wait) const {
  iovec bytes = {.iov_base = const_cast<char*>(text.data()), .iov_len = text.size()};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  const int flags = MSG_NOSIGNAL | (wait == layout::Wait::kYes ? 0 : MSG_DONTWAIT);
  for (;;) {
    if (sendmsg(socket_.get(), &message, flags) >= 0) return absl::OkStatus();
    switch (errno) {
      case EINTR:
        continue;
      case EAGAIN:
        return absl::DeadlineExceededError("who keeps descriptors does not read its messages");
      case ECONNREFUSED:
      case ECONNRESET:
      case ENOTCONN:
      case EPIPE:
        return Gone();
      case ENOBUFS:
      case ENOMEM:
      case ETOOMANYREFS:
        return absl::ResourceExhaustedError(
            absl::StrCat("cannot send a descriptor to be kept: ", std::strerror(errno)));
      default:
        return absl::ErrnoToStatus(errno, "cannot send a descriptor to be kept");
    }
  }
}

absl::Status NotifyFdStore::AwaitDealtWith() const {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  const layout::UniqueFd ours(ends[0]);
  layout::UniqueFd theirs(ends[1]);
  if (absl::Status status = Send("BARRIER=1", theirs.get(), layout::Wait::kYes); !status.ok()) {
    return status;
  }
  theirs.reset();
  // Messages are dealt with in their order, so the other end is closed after all that came before.
  pollfd waiting = {.fd = ours.get(), .events = 0, .revents = 0};
  const absl::Time deadline = absl::Now() + options_.patience;
  for (;;) {
    const int64_t left = std::max<int64_t>(0, absl::ToInt64Milliseconds(deadline - absl::Now()));
    const int ready = poll(&waiting, 1, static_cast<int>(left));
    if (ready == 1) break;
    if (ready == 0) {
      return absl::DeadlineExceededError("who keeps descriptors does not read its messages");
    }
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
  }
  // A keeper that ended closed it too. Its descriptors go a moment before a pidfd tells, and in
  // that moment it looks as if it had kept them and then ended, which is as bad.
  return restart_safe() ? absl::OkStatus() : Gone();
}

absl::Status NotifyFdStore::SendFds(absl::Span<const NamedFd> fds,
                                    const std::vector<std::string>& forget) const {
  for (const std::string& name : forget) {
    const absl::Status status =
        Send(absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", name), -1, layout::Wait::kYes);
    if (!status.ok()) return status;
  }
  for (const NamedFd& fd : fds) {
    const absl::Status status =
        Send(absl::StrCat("FDSTORE=1\nFDNAME=", fd.name, "\nFDPOLL=0"), fd.fd, layout::Wait::kYes);
    if (!status.ok()) return status;
  }
  return AwaitDealtWith();
}

absl::Status NotifyFdStore::Keep(absl::Span<const NamedFd> fds) {
  for (const NamedFd& fd : fds) {
    if (!IsFdName(fd.name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a descriptor cannot be kept by the name \"", fd.name, "\""));
    }
  }
  std::vector<std::string> forget;
  std::vector<std::string> added;
  {
    RankedMutexLock lock(&mu_);
    for (const NamedFd& fd : fds) {
      if (names_.insert(fd.name).second) {
        name_bytes_ += fd.name.size() + 1;
        added.push_back(fd.name);
      } else {
        forget.push_back(fd.name);
      }
    }
    if (names_.size() > options_.most_fds || name_bytes_ > options_.most_name_bytes) {
      for (const std::string& name : added) {
        names_.erase(name);
        name_bytes_ -= name.size() + 1;
      }
      return absl::ResourceExhaustedError(
          absl::StrCat("there is no room for ", added.size(), " more descriptors beside the ",
                       names_.size(), " that are kept for a restart: at most ", options_.most_fds,
                       " (FileDescriptorStoreMax=, ulimit -n), and ", options_.most_name_bytes,
                       " bytes of names"));
    }
    forget.insert(forget.end(), unsent_.begin(), unsent_.end());
    unsent_.clear();
  }
  absl::Status status = SendFds(fds, forget);
  if (status.ok()) return status;
  if (absl::IsDeadlineExceeded(status)) status = absl::UnavailableError(status.message());
  for (const std::string& name : added) Forget(name);
  return status;
}

void NotifyFdStore::Forget(const std::string& name) {
  RankedMutexLock lock(&mu_);
  if (names_.erase(name) == 0) return;
  name_bytes_ -= name.size() + 1;
  unsent_.push_back(name);
  // Without waiting, so it is no matter that the lock is held.
  size_t sent = 0;
  while (sent < unsent_.size() &&
         !absl::IsDeadlineExceeded(Send(absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", unsent_[sent]), -1,
                                        layout::Wait::kNo))) {
    ++sent;
  }
  unsent_.erase(unsent_.begin(), unsent_.begin() + static_cast<ptrdiff_t>(sent));
}

}  // namespace spanpool

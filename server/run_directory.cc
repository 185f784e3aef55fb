#include "server/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace spanpool {
namespace {

// Connections that wait to be accepted. A full queue looks to a non-blocking connect like one that
// was made, and gRPC then fails the call, so there is room for every client at once.
constexpr int kBacklog = 4096;

absl::Status ErrnoError(int error, absl::string_view what) {
  return absl::ErrnoToStatus(error, what);
}

absl::Status MakeFolders(const std::string& path) {
  for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string folder = path.substr(0, end);
    if (mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) {
      return ErrnoError(errno, absl::StrCat("cannot create run directory ", folder));
    }
    if (end == std::string::npos) return absl::OkStatus();
  }
}

std::string ReadPid(int fd) {
  char text[32];
  const ssize_t length = pread(fd, text, sizeof(text), 0);
  if (length <= 0) return "";
  return std::string(
      absl::StripAsciiWhitespace(absl::string_view(text, static_cast<size_t>(length))));
}

constexpr char kLockName[] = "run/lock";

layout::UniqueFd Take(const std::string& name, KeptFds* kept) {
  if (kept == nullptr) return layout::UniqueFd();
  const auto found = kept->find(name);
  if (found == kept->end()) return layout::UniqueFd();
  layout::UniqueFd fd = std::move(found->second);
  kept->erase(found);
  return fd;
}

bool IsFile(int fd, const std::string& path) {
  struct stat is, should;
  return fstat(fd, &is) == 0 && stat(path.c_str(), &should) == 0 && is.st_dev == should.st_dev &&
         is.st_ino == should.st_ino;
}

int SocketOption(int fd, int option) {
  int value = 0;
  socklen_t length = sizeof(value);
  return getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 ? value : -1;
}

absl::Status WritePid(int fd, const std::string& path) {
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0 ||
      pwrite(fd, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return ErrnoError(errno, absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RunDirectory> RunDirectory::Open(const std::string& path, FdStore* store,
                                                KeptFds* kept) {
  if (path.empty()) return absl::InvalidArgumentError("the run directory's path is empty");
  if (absl::Status status = MakeFolders(path); !status.ok()) return status;
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return ErrnoError(errno, absl::StrCat("cannot look at run directory ", path));
  }
  if (!S_ISDIR(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("run directory ", path, " is not a folder; name another with --run_dir"));
  }
  const std::string lock_path = path + "/lock";
  // It is locked for as long as one process has the descriptor.
  if (layout::UniqueFd lock = Take(kLockName, kept);
      lock.valid() && IsFile(lock.get(), lock_path)) {
    if (absl::Status status = WritePid(lock.get(), lock_path); !status.ok()) return status;
    RunDirectory directory(path, store, std::move(lock));
    directory.inherited_ = true;
    return directory;
  }
  layout::UniqueFd lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!lock.valid()) {
    return ErrnoError(errno, absl::StrCat("cannot write in run directory ", path, " (", lock_path,
                                          "); name another with --run_dir"));
  }
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoError(errno, absl::StrCat("cannot lock ", lock_path));
    const std::string pid = ReadPid(lock.get());
    return absl::AlreadyExistsError(
        absl::StrCat("another spanpoold", pid.empty() ? "" : absl::StrCat(" (pid ", pid, ")"),
                     " serves ", path, "; stop it, or name another folder with --run_dir"));
  }
  if (absl::Status status = WritePid(lock.get(), lock_path); !status.ok()) return status;
  if (absl::Status status = Keep(store, kLockName, lock.get()); !status.ok()) return status;
  return RunDirectory(path, store, std::move(lock));
}

absl::Status RunDirectory::Keep(FdStore* store, const std::string& name, int fd) {
  if (store == nullptr) return absl::OkStatus();
  const absl::Status status = store->Keep({{name, fd}});
  // Serving goes on without anybody to keep it; restart_safe() says so.
  return absl::IsUnavailable(status) ? absl::OkStatus() : status;
}

layout::UniqueFd RunDirectory::TakeListener(const std::string& name, int type,
                                            KeptFds* kept) const {
  layout::UniqueFd fd = Take(absl::StrCat("run/", name), kept);
  struct stat info;
  // Whoever has the lock made the name, and only one socket is bound to it.
  const bool leads_there = inherited_ && stat(absl::StrCat(path_, "/", name).c_str(), &info) == 0 &&
                           S_ISSOCK(info.st_mode);
  const bool listens = fd.valid() && SocketOption(fd.get(), SO_ACCEPTCONN) == 1 &&
                       SocketOption(fd.get(), SO_TYPE) == type;
  return leads_there && listens ? std::move(fd) : layout::UniqueFd();
}

RunDirectory::~RunDirectory() { RemoveSockets(); }

absl::StatusOr<layout::UniqueFd> RunDirectory::Listen(const std::string& name, int type,
                                                      KeptFds* kept) {
  const std::string path = absl::StrCat(path_, "/", name);
  struct stat info;
  if (layout::UniqueFd fd = TakeListener(name, type, kept);
      fd.valid() && stat(path.c_str(), &info) == 0) {
    sockets_.push_back({path, info.st_dev, info.st_ino});
    return fd;
  }
  const std::string bound_path = absl::StrCat(path_, "/.", name);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (bound_path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the path of socket ", path, " has ", path.size(), " bytes; at most ",
                     sizeof(address.sun_path) - 2, " are possible: choose a shorter --run_dir"));
  }
  std::memcpy(address.sun_path, bound_path.data(), bound_path.size());

  layout::UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoError(errno, "socket");
  // Left there only by a daemon that died between bind and rename; we hold the lock.
  if (unlink(bound_path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoError(errno, absl::StrCat("cannot remove stale socket ", bound_path));
  }
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoError(errno, absl::StrCat("cannot bind ", bound_path));
  }
  if (chmod(bound_path.c_str(), 0666) != 0 || listen(fd.get(), kBacklog) != 0 ||
      stat(bound_path.c_str(), &info) != 0 || rename(bound_path.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(bound_path.c_str());
    return ErrnoError(error, absl::StrCat("cannot put socket ", path, " in place"));
  }
  sockets_.push_back({path, info.st_dev, info.st_ino});
  if (absl::Status status = Keep(store_, absl::StrCat("run/", name), fd.get()); !status.ok()) {
    return status;
  }
  return fd;
}

void RunDirectory::RemoveSockets() {
  for (const Socket& socket : sockets_) {
    struct stat info;
    if (stat(socket.path.c_str(), &info) == 0 && info.st_dev == socket.device &&
        info.st_ino == socket.inode) {
      unlink(socket.path.c_str());
    }
  }
  sockets_.clear();
}

}  // namespace spanpool

#include "server/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "proto/layout/packet.h"
#include "server/log.h"
#include "server/notify_fd_store.h"
#include "server/urgency.h"

namespace spanpool {
namespace {

using layout::UniqueFd;
using Clock = std::chrono::steady_clock;

constexpr int kFailed = 1;
constexpr absl::Duration kFirstDelay = absl::Milliseconds(10);
constexpr absl::Duration kServedWell = absl::Seconds(10);
// The kernel passes no more in one message (SCM_MAX_FD).
constexpr size_t kMostFdsOfMessage = 253;
// systemd takes no longer messages either.
constexpr size_t kMostBytesOfMessage = 4096;
// The keeper's own, and the standard three.
constexpr rlim_t kOwnFds = 32;
// So that strangers who fill the socket do not keep a dead worker from being replaced.
constexpr int kMostMessagesAtOnce = 10'000;
constexpr int kForwarded[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR2};

int CodeOf(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

std::string Describe(int status) {
  if (WIFEXITED(status)) return absl::StrCat("exited with ", WEXITSTATUS(status));
  const char* const name = sigabbrev_np(WTERMSIG(status));
  return absl::StrCat("was ended by SIG", name == nullptr ? "?" : name);
}

// A socket in the abstract namespace, where nothing on disk has to be writable. Its name is nobody
// else's, but no secret: messages of others are told by their sender's pid.
absl::StatusOr<std::pair<UniqueFd, std::string>> ListenForNotices() {
  UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  std::array<unsigned char, 16> random{};
  if (!fd.valid() || getrandom(random.data(), random.size(), 0) < 0) {
    return absl::ErrnoToStatus(errno, "socket");
  }
  const std::string name = absl::StrCat(
      "spanpool-keeper-", absl::BytesToHexString(absl::string_view(
                              reinterpret_cast<const char*>(random.data()), random.size())));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const int yes = 1;
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      setsockopt(fd.get(), SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)) != 0) {
    return absl::ErrnoToStatus(errno, "cannot listen for the worker");
  }
  return std::make_pair(std::move(fd), "@" + name);
}

// As many descriptors as this process may have; returns how many of them it may keep.
rlim_t RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_max < kOwnFds ? 0 : limit.rlim_max - kOwnFds;
}

struct Notice {
  pid_t sender = 0;
  std::string text;
  std::vector<UniqueFd> fds;
};

// The next notice; nothing if there is none.
std::optional<Notice> ReceiveNotice(int socket) {
  std::array<char, kMostBytesOfMessage> buffer;
  alignas(cmsghdr)
      std::array<char, CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int) * kMostFdsOfMessage)>
          control;
  iovec bytes = {.iov_base = buffer.data(), .iov_len = buffer.size()};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t length = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (length < 0) return errno == EINTR ? std::optional<Notice>(Notice()) : std::nullopt;
  Notice notice;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET) continue;
    if (header->cmsg_type == SCM_RIGHTS) {
      const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(fd));
        notice.fds.emplace_back(fd);
      }
    } else if (header->cmsg_type == SCM_CREDENTIALS) {
      ucred credentials{};
      std::memcpy(&credentials, CMSG_DATA(header), sizeof(credentials));
      notice.sender = credentials.pid;
    }
  }
  // Cut off, it is no message.
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return Notice();
  notice.text.assign(buffer.data(), static_cast<size_t>(length));
  return notice;
}

class Keeper {
 public:
  explicit Keeper(const KeeperOptions& options)
      : options_(options), delay_(options.longest_delay) {}

  // The status to exit with.
  int Run();

  // The signal that this process shall end by; 0 = none.
  int ends_by() const { return ends_by_; }

 private:
  struct Worker {
    pid_t pid = -1;
    UniqueFd program;
    bool is_new = false;  // from disk; if it does not serve, the one before is started again
    size_t given = 0;     // descriptors
    bool served = false;
    Clock::time_point serves_since;
    std::optional<Clock::time_point> killed_at;  // unless it makes room for a successor before
  };

  absl::Status Prepare();
  UniqueFd OpenProgram() const;

  // Starts a worker of `program`. If that cannot be run there is none.
  absl::Status Start(UniqueFd program);
  [[noreturn]] void BecomeWorker(int program, int errors);
  // A worker of the program that served last; at once, or when its time has come.
  void Restart();
  void StartAgainAfter(absl::Duration delay);
  void StartWhatIsOnDisk();

  void HandleSignal(const signalfd_siginfo& signal);
  void StopBy(int signal);
  void Upgrade();
  void Reap();
  void HandleEnd(int status);
  // Deals with the notices that have come.
  void HandleNotices();
  void HandleNotice(Notice notice);
  void Keep(const std::string& name, std::vector<UniqueFd> fds);
  void Forget(const std::string& name);
  void HandleReady();
  void End(int code) { code_ = code; }

  // Until when there is nothing to do unless somebody asks; in poll's milliseconds.
  int Timeout() const;
  void HandleTime();

  const KeeperOptions options_;
  const pid_t pid_ = getpid();
  UniqueFd signals_;
  UniqueFd notices_;
  std::string address_;  // of notices_
  rlim_t most_fds_ = 0;
  sigset_t worker_mask_{};

  std::map<std::string, UniqueFd> kept_;
  size_t name_bytes_ = 0;
  Worker worker_;
  UniqueFd served_program_;  // of the last worker that served
  RestartDelay delay_;
  std::optional<Clock::time_point> restart_at_;
  bool upgrading_ = false;
  int stopping_by_ = 0;
  int ends_by_ = 0;
  std::optional<int> code_;
};

absl::Status Keeper::Prepare() {
  most_fds_ = RaiseDescriptorLimit();
  prctl(PR_SET_NAME, "spanpool-keeper");
  std::signal(SIGCHLD, SIG_DFL);  // who is ignored cannot be waited for
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : kForwarded) sigaddset(&signals, signal);
  // They stay blocked in the worker until it waits for them: one that comes early is not lost.
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  sigprocmask(SIG_SETMASK, nullptr, &worker_mask_);
  sigaddset(&signals, SIGCHLD);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signals_ = UniqueFd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_.valid()) return absl::ErrnoToStatus(errno, "signalfd");
  auto listening = ListenForNotices();
  if (!listening.ok()) return listening.status();
  notices_ = std::move(listening->first);
  address_ = std::move(listening->second);
  TakeKeptFds();  // of a store that is used no more
  return absl::OkStatus();
}

UniqueFd Keeper::OpenProgram() const {
  return UniqueFd(open(options_.program.c_str(), O_PATH | O_CLOEXEC));
}

int Keeper::Run() {
  absl::Status status = Prepare();
  if (status.ok()) {
    UniqueFd program = OpenProgram();
    status = program.valid() ? Start(std::move(program))
                             : absl::ErrnoToStatus(errno, "cannot open " + options_.program);
  }
  if (!status.ok()) {
    Log().error("the worker cannot be started: {}", std::string(status.message()));
    return kFailed;
  }
  while (!code_) {
    std::array<pollfd, 2> waiting = {{{.fd = signals_.get(), .events = POLLIN, .revents = 0},
                                      {.fd = notices_.get(), .events = POLLIN, .revents = 0}}};
    if (poll(waiting.data(), waiting.size(), Timeout()) < 0 && errno != EINTR) {
      Log().critical("poll: {}", std::strerror(errno));
      std::abort();
    }
    if (waiting[1].revents != 0) HandleNotices();
    signalfd_siginfo signal;
    while (!code_ && read(signals_.get(), &signal, sizeof(signal)) == sizeof(signal)) {
      HandleSignal(signal);
    }
    if (!code_) HandleTime();
  }
  return *code_;
}

absl::Status Keeper::Start(UniqueFd program) {
  restart_at_.reset();
  int errors[2];
  if (pipe2(errors, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  const UniqueFd error_out(errors[0]);
  UniqueFd error_in(errors[1]);
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
  if (pid == 0) BecomeWorker(program.get(), error_in.get());
  error_in.reset();
  // Ends when the program is run, which closes the pipe.
  int error = 0;
  ssize_t length = 0;
  while ((length = read(error_out.get(), &error, sizeof(error))) < 0 && errno == EINTR) {
  }
  if (length > 0) {
    waitpid(pid, nullptr, 0);
    return absl::ErrnoToStatus(error, "cannot run the program");
  }
  worker_ = Worker();
  worker_.pid = pid;
  worker_.given = kept_.size();
  worker_.program = std::move(program);
  return absl::OkStatus();
}

void Keeper::BecomeWorker(int program, int errors) {
  const auto give_up = [&errors]() {
    const int error = errno;
    [[maybe_unused]] const ssize_t written = write(errors, &error, sizeof(error));
    _exit(127);
  };
  const auto end = static_cast<int>(SD_LISTEN_FDS_START + kept_.size());
  // First out of the way of those that come to stand where they are.
  const auto move_up = [end, &give_up](int fd) {
    if (fd >= end) return fd;
    const int moved = fcntl(fd, F_DUPFD_CLOEXEC, end);
    if (moved < 0) give_up();
    return moved;
  };
  errors = move_up(errors);
  program = move_up(program);
  std::vector<std::string> names;
  std::vector<int> sources;
  for (const auto& [name, fd] : kept_) {
    names.push_back(name);
    sources.push_back(move_up(fd.get()));
  }
  for (size_t i = 0; i < sources.size(); ++i) {
    if (dup2(sources[i], SD_LISTEN_FDS_START + static_cast<int>(i)) < 0) give_up();
  }
  unsetenv("WATCHDOG_USEC");
  unsetenv("WATCHDOG_PID");
  setenv("NOTIFY_SOCKET", address_.c_str(), 1);
  setenv("FDSTORE", absl::StrCat(most_fds_).c_str(), 1);
  setenv(kKeeperVariable, absl::StrCat(pid_).c_str(), 1);
  if (!names.empty()) {
    setenv("LISTEN_PID", absl::StrCat(getpid()).c_str(), 1);
    setenv("LISTEN_FDS", absl::StrCat(names.size()).c_str(), 1);
    setenv("LISTEN_FDNAMES", absl::StrJoin(names, ":").c_str(), 1);
  }
  if (served_program_.valid()) BeginUrgency();  // others wait for it
  std::vector<char*> arguments;
  for (const std::string& argument : options_.arguments) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  sigprocmask(SIG_SETMASK, &worker_mask_, nullptr);
  fexecve(program, arguments.data(), environ);
  give_up();
  std::abort();
}

void Keeper::StartAgainAfter(absl::Duration delay) {
  restart_at_ = Clock::now() + absl::ToChronoMilliseconds(delay);
  if (delay == absl::ZeroDuration()) Restart();
}

void Keeper::Restart() {
  UniqueFd program(fcntl(served_program_.get(), F_DUPFD_CLOEXEC, 0));
  const absl::Status status =
      program.valid() ? Start(std::move(program)) : absl::ErrnoToStatus(errno, "dup");
  if (status.ok()) return;
  const absl::Duration delay = std::max(delay_.Next(absl::ZeroDuration()), kFirstDelay);
  Log().error("the worker cannot be started again: {}; the next try is in {}",
              std::string(status.message()), absl::FormatDuration(delay));
  restart_at_ = Clock::now() + absl::ToChronoMilliseconds(delay);
}

void Keeper::StartWhatIsOnDisk() {
  upgrading_ = false;
  UniqueFd program = OpenProgram();
  const absl::Status status =
      program.valid() ? Start(std::move(program)) : absl::ErrnoToStatus(errno, "cannot open it");
  worker_.is_new = true;
  if (status.ok()) return;
  Log().error("{}: {}; the program that served before is started again", options_.program,
              std::string(status.message()));
  Restart();
}

void Keeper::HandleSignal(const signalfd_siginfo& signal) {
  switch (static_cast<int>(signal.ssi_signo)) {
    case SIGCHLD:
      return Reap();
    case SIGHUP:
      if (worker_.pid > 0) kill(worker_.pid, SIGHUP);
      return;
    case SIGUSR2:
      return Upgrade();
    default:
      return StopBy(static_cast<int>(signal.ssi_signo));
  }
}

void Keeper::StopBy(int signal) {
  if (stopping_by_ != 0) {
    ends_by_ = signal;
    if (worker_.pid > 0) kill(worker_.pid, SIGKILL);
    return;
  }
  stopping_by_ = signal;
  if (worker_.pid <= 0) return End(0);
  kill(worker_.pid, signal);
}

void Keeper::Upgrade() {
  if (stopping_by_ != 0) return;
  if (!served_program_.valid()) {
    Log().info("SIGUSR2: ignored, no worker has served yet");
    return;
  }
  if (worker_.pid <= 0) {
    Log().info("SIGUSR2: starting {}", options_.program);
    return StartWhatIsOnDisk();
  }
  Log().info("SIGUSR2: replacing the worker, pid {}, by {}", worker_.pid, options_.program);
  upgrading_ = true;
  worker_.killed_at = Clock::now() + absl::ToChronoMilliseconds(options_.upgrade_patience);
  kill(worker_.pid, SIGUSR2);
}

void Keeper::Reap() {
  for (;;) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    if (pid == worker_.pid) HandleEnd(status);
  }
}

void Keeper::HandleEnd(int status) {
  HandleNotices();  // what it still said counts
  const Worker ended = std::exchange(worker_, Worker());
  if (stopping_by_ != 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
      !served_program_.valid()) {
    return End(CodeOf(status));
  }
  const auto served =
      ended.served ? absl::FromChrono(Clock::now() - ended.serves_since) : absl::ZeroDuration();
  const bool for_successor = WIFEXITED(status) && WEXITSTATUS(status) == kExitForSuccessor;
  if (ended.served && (upgrading_ || for_successor)) return StartWhatIsOnDisk();
  if (upgrading_) return StartWhatIsOnDisk();
  const char* const why =
      CodeOf(status) == kExitRefused ? ", for it will not serve what its predecessor left" : "";
  if (ended.is_new && !ended.served) {
    Log().error("the new worker, pid {}, {}{}; the program that served before is started again",
                ended.pid, Describe(status), why);
    return StartAgainAfter(absl::ZeroDuration());
  }
  const absl::Duration delay = delay_.Next(served);
  Log().error("the worker, pid {}, {}{}; {} descriptors are kept, another is started {}", ended.pid,
              Describe(status), why, kept_.size(),
              delay == absl::ZeroDuration() ? "at once" : "in " + absl::FormatDuration(delay));
  StartAgainAfter(delay);
}

void Keeper::HandleNotices() {
  for (int i = 0; i < kMostMessagesAtOnce; ++i) {
    std::optional<Notice> notice = ReceiveNotice(notices_.get());
    if (!notice) return;
    if (worker_.pid > 0 && notice->sender == worker_.pid) HandleNotice(*std::move(notice));
  }
}

void Keeper::HandleNotice(Notice notice) {
  bool store = false, remove = false, ready = false, stopping = false;
  std::string name;
  for (absl::string_view line : absl::StrSplit(notice.text, '\n')) {
    store |= line == "FDSTORE=1";
    remove |= line == "FDSTOREREMOVE=1";
    ready |= line == "READY=1";
    stopping |= line == "STOPPING=1";
    if (absl::ConsumePrefix(&line, "FDNAME=")) name = std::string(line);
    if (line == kLogInJson) {
      if (absl::Status set = SetUpLog(LogFormat::kJson, "info"); !set.ok()) std::abort();
    }
  }
  if (remove) Forget(name);
  if (store) Keep(name, std::move(notice.fds));
  if (ready) HandleReady();
  if (stopping) sd_notify(0, "STOPPING=1");
  // BARRIER=1 has done its work when its descriptor is closed, which is now.
}

void Keeper::Keep(const std::string& name, std::vector<UniqueFd> fds) {
  if (!IsFdName(name) || fds.size() != 1) {
    Log().error(
        "{} descriptors by the name \"{}\" are not kept: expected one, and 1 to 200 of "
        "A-Z a-z 0-9 . _ - /",
        fds.size(), Printable(name));
    return;
  }
  Forget(name);
  if (kept_.size() >= most_fds_ || name_bytes_ + name.size() + 1 > kMostFdNameBytes) {
    Log().error("{} is not kept: {} descriptors are kept already", name, kept_.size());
    return;
  }
  kept_.emplace(name, std::move(fds.front()));
  name_bytes_ += name.size() + 1;
}

void Keeper::Forget(const std::string& name) {
  if (kept_.erase(name) != 0) name_bytes_ -= name.size() + 1;
}

void Keeper::HandleReady() {
  if (worker_.served) return;
  const bool first = !served_program_.valid();
  worker_.served = true;
  worker_.serves_since = Clock::now();
  served_program_ = UniqueFd(fcntl(worker_.program.get(), F_DUPFD_CLOEXEC, 0));
  if (!first) {
    Log().info("the worker, pid {}, serves; it was given {} descriptors", worker_.pid,
               worker_.given);
    return;
  }
  std::puts("READY");
  std::fflush(stdout);
  sd_notify(0, "READY=1");  // does nothing unless a service manager started us
}

int Keeper::Timeout() const {
  std::optional<Clock::time_point> next = restart_at_;
  if (worker_.killed_at && (!next || *worker_.killed_at < *next)) next = worker_.killed_at;
  if (!next) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now()).count();
  return static_cast<int>(std::max<int64_t>(0, left));
}

void Keeper::HandleTime() {
  const Clock::time_point now = Clock::now();
  if (worker_.killed_at && *worker_.killed_at <= now) {
    Log().error("the worker, pid {}, does not make room for its successor; killing it",
                worker_.pid);
    worker_.killed_at.reset();
    kill(worker_.pid, SIGKILL);
  }
  if (restart_at_ && *restart_at_ <= now) Restart();
}

}  // namespace

absl::Duration RestartDelay::Next(absl::Duration served) {
  if (served >= kServedWell) next_ = absl::ZeroDuration();
  return std::exchange(next_, std::min(std::max(2 * next_, kFirstDelay), longest_));
}

int RunKeeper(const KeeperOptions& options) {
  if (absl::Status status = SetUpLog(LogFormat::kText, "info"); !status.ok()) std::abort();
  Keeper keeper(options);
  const int code = keeper.Run();
  const int signal = keeper.ends_by();
  if (signal == 0) return code;
  std::signal(signal, SIG_DFL);
  sigset_t unblocked;
  sigemptyset(&unblocked);
  sigaddset(&unblocked, signal);
  sigprocmask(SIG_UNBLOCK, &unblocked, nullptr);
  raise(signal);
  return 128 + signal;  // the first process of a container does not end so
}

}  // namespace spanpool

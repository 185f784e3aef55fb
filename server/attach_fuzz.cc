// libFuzzer's door to the attach socket: the input is what some clients send, in which order, with
// which descriptors, and when they go. The server, its event loop, the reaper and the pool are the
// daemon's own; the clients are sockets of this process.
//
// Afterwards all connections are gone, all sessions reaped, the pool's books in order, and not one
// descriptor more is open than before.

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "allocator/check.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "server/attach_server.h"
#include "server/config.h"
#include "server/event_loop.h"
#include "server/fuzz_input.h"
#include "server/log.h"
#include "server/pool.h"
#include "server/pool_audit.h"
#include "server/reaper.h"
#include "server/recaller.h"
#include "server/session.h"
#include "server/session_table.h"

namespace spanpool {
namespace {

using layout::UniqueFd;

constexpr size_t kMostConnections = 8;

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

// In the abstract namespace, by a name of this process.
sockaddr_un Address(socklen_t* length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = absl::StrCat("spanpool-attach-fuzz-", getpid());
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

UniqueFd Socket(int flags) {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
  SPANPOOL_CHECK(fd.valid());
  return fd;
}

UniqueFd Listen() {
  UniqueFd fd = Socket(SOCK_NONBLOCK);
  socklen_t length;
  const sockaddr_un address = Address(&length);
  SPANPOOL_CHECK_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
  SPANPOOL_CHECK_EQ(listen(fd.get(), 64), 0);
  return fd;
}

// What lives from input to input.
struct Daemon {
  Daemon() : pool(Config(), nullptr, &sessions), recaller(&sessions), reaper({&pool}) {
    (void)SetUpLog(LogFormat::kText, "error");
    // An arena to ask for.
    auto session = pool.Attach({.pid = 1, .uid = 0, .gids = {}}, layout::AccessMode::kWrite,
                               UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    SPANPOOL_CHECK(session.ok()) << session.status();
    resident = *std::move(session);
    SPANPOOL_CHECK(pool.Exchange(*resident, {.returns = {}, .wants = {{1, 1, 1, 0}}}).ok());
  }

  static PoolConfig Config() {
    PoolConfig config;
    config.limit_bytes = uint64_t{4} << 20;
    config.reserve_bytes = 0;
    config.session_limit_bytes = config.limit_bytes;
    return config;
  }

  SessionTable sessions{64};
  Pool pool;
  Recaller recaller;
  Reaper reaper;
  std::shared_ptr<Session> resident;
};

class Clients {
 public:
  Clients(Daemon* daemon, FuzzInput input) : daemon_(daemon), input_(input) {
    auto loop = EventLoop::Create();
    SPANPOOL_CHECK(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    server_ = std::make_unique<AttachServer>(Listen(), std::vector<Pool*>{&daemon_->pool},
                                             &daemon_->sessions, &daemon_->reaper,
                                             &daemon_->recaller, loop_.get());
    daemon_->pool.SetEvictedCallback(
        [this](const Session& session) { server_->CloseConnection(session.id()); });
    SPANPOOL_CHECK(server_->Start().ok());
    loop_->Start();
  }

  void Run() {
    while (!input_.empty()) Act();
    sockets_.clear();
    loop_->Stop();
    // The dead, and those whose connection the loop has not come to.
    for (const std::shared_ptr<Session>& session : daemon_->pool.Sessions()) {
      if (session != daemon_->resident) daemon_->reaper.ProcessDied(session);
    }
    while (daemon_->pool.Sessions().size() != 1) std::this_thread::yield();
    daemon_->pool.SetEvictedCallback([](const Session&) {});
    server_.reset();
    SPANPOOL_CHECK_EQ(absl::StrJoin(AuditPool(daemon_->pool, AuditDepth::kBooks), "; "), "");
  }

 private:
  // Returns when the loop has done what was sent before.
  void Settle() {
    for (int i = 0; i < 2; ++i) {
      absl::Notification done;
      loop_->Post([&done] { done.Notify(); });
      done.WaitForNotification();
    }
  }

  UniqueFd& Any() {
    if (sockets_.empty() || (sockets_.size() < kMostConnections && input_.Below(8) == 0)) {
      UniqueFd fd = Socket(0);
      socklen_t length;
      const sockaddr_un address = Address(&length);
      SPANPOOL_CHECK_EQ(connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length), 0);
      sockets_.push_back(std::move(fd));
    }
    return sockets_[input_.Byte() % sockets_.size()];
  }

  void Act() {
    UniqueFd& socket = Any();
    switch (input_.Below(8)) {
      case 0:
        socket.reset();
        std::erase_if(sockets_, [](const UniqueFd& each) { return !each.valid(); });
        return;
      case 1:
        return Receive(socket);
      case 2: {
        const std::span<const uint8_t> bytes = input_.Bytes(size_t{input_.Byte()} * 2);
        return Send(socket, std::as_bytes(bytes));
      }
      case 3:
        return Recall();
      default:
        return SendMessage(socket);
    }
  }

  template <typename T>
  static std::vector<std::byte> PacketOf(const T& message) {
    const std::span<const std::byte> bytes = layout::BytesOf(message);
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  }

  // A message as it should be, but for what the input says.
  void SendMessage(const UniqueFd& socket) {
    std::vector<std::byte> bytes;
    switch (input_.Below(5)) {
      case 0:
      case 1: {
        layout::AttachRequest request;
        std::strcpy(request.pool, "default");
        bytes = PacketOf(request);
        break;
      }
      case 2: {
        layout::ArenaRequest request;
        request.arena = static_cast<uint32_t>(input_.Number());
        bytes = PacketOf(request);
        break;
      }
      case 3:
        bytes = PacketOf(layout::DetachRequest());
        break;
      default: {
        layout::RecallAnswer answer;
        answer.recall = input_.Number();
        bytes = PacketOf(answer);
      }
    }
    for (uint32_t changes = input_.Below(8) / 4; changes > 0; --changes) {
      bytes[input_.Byte() % bytes.size()] = std::byte{input_.Byte()};
    }
    if (input_.Below(16) == 0) bytes.resize(input_.Number() % 1000);
    Send(socket, bytes);
  }

  void Send(const UniqueFd& socket, std::span<const std::byte> bytes) {
    std::vector<int> fds(input_.Below(32) == 0 ? input_.Below(layout::kMaxPacketFds + 1) : 0,
                         socket.get());
    (void)layout::SendPacket(socket.get(), bytes, fds);
    if (input_.Below(4) != 0) Settle();
  }

  static void Receive(const UniqueFd& socket) {
    std::array<std::byte, layout::kMaxAttachMessageBytes> buffer;
    (void)layout::ReceivePacket(socket.get(), buffer, layout::Wait::kNo);
  }

  // Everybody is asked for memory, and has some.
  void Recall() {
    for (const std::shared_ptr<Session>& session : daemon_->pool.Sessions()) {
      if (session == daemon_->resident) continue;
      (void)daemon_->pool.Exchange(*session, {.returns = {}, .wants = {{1, 1, 1, 0}}});
    }
    // Who was asked a moment ago is not asked again.
    static absl::Time now = absl::Now();
    now += absl::Seconds(1);
    daemon_->recaller.AskOthers(*daemon_->resident, 1 + input_.Byte(), now);
  }

  Daemon* const daemon_;
  FuzzInput input_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<AttachServer> server_;
  std::vector<UniqueFd> sockets_;
};

}  // namespace
}  // namespace spanpool

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Never destroyed: its threads go with the process.
  static auto* const daemon = new spanpool::Daemon;
  const size_t descriptors = spanpool::OpenDescriptors();
  spanpool::Clients(daemon, spanpool::FuzzInput(data, size)).Run();
  // The reaper may be about to let go of the last session.
  for (int tries = 0; tries < 10'000 && spanpool::OpenDescriptors() != descriptors; ++tries) {
    std::this_thread::yield();
  }
  SPANPOOL_CHECK_EQ(spanpool::OpenDescriptors(), descriptors);
  return 0;
}

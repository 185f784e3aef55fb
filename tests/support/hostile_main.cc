// A client process that does what no client may: hostile_test.cc.
//
//   hostile_main RUN_DIR POOL ATTACK SEED
//
// Prints DONE and the processes that did it when the attack is over, holds on to all it got until
// its input ends, and then dies without a word to the daemon. Exits with 3 if the daemon let it do
// what it must not, or did not serve what it must.

#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "client/rpc_connection.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_table.h"
#include "proto/layout/block_word.h"
#include "proto/layout/packet.h"
#include "proto/layout/run_dir.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"
#include "spanpool/v1/pool.pb.h"
#include "tests/support/hostile_client.h"

namespace spanpool::testing {
namespace {

using internal::RpcConnection;
using layout::BlockWord;
using layout::SharedWord;
using layout::Slot;
using layout::SlotState;

constexpr uint32_t kClassOf64 = 6 * 2 + 1;  // 64-byte blocks, noscan
constexpr uint32_t kLarge = 1;

using Bytes = std::vector<std::byte>;

template <typename T>
Bytes PacketOf(const T& message) {
  const std::span<const std::byte> bytes = layout::BytesOf(message);
  return Bytes(bytes.begin(), bytes.end());
}

struct Attacker {
  std::string run_dir;
  std::string pool;
  std::mt19937_64 random;

  // What it holds on to.
  std::vector<std::unique_ptr<HostileClient>> clients;
  std::vector<std::unique_ptr<RpcConnection>> connections;
  std::vector<std::unique_ptr<HostileCall>> calls;  // go before the connections
  std::vector<layout::UniqueFd> fds;
  // The processes that do it; the attacker's own if none is here.
  std::vector<pid_t> pids;

  ~Attacker() { calls.clear(); }

  HostileClient& Connect() {
    clients.push_back(std::make_unique<HostileClient>(run_dir));
    return *clients.back();
  }
  HostileClient& Attach() {
    Connect().Attach(pool);
    return *clients.back();
  }
  RpcConnection& ConnectGrpc() {
    connections.push_back(std::make_unique<RpcConnection>(run_dir + "/" + layout::kGrpcSocketName));
    return *connections.back();
  }
  HostileExchange& Exchange(const HostileClient& client) {
    auto exchange = std::make_unique<HostileExchange>(&ConnectGrpc(), client);
    HostileExchange& stream = *exchange;
    calls.push_back(std::move(exchange));
    return stream;
  }

  // Every message of the attach protocol, as it should be: requests and what only the daemon sends.
  std::vector<Bytes> Packets() {
    layout::AttachRequest attach;
    std::strncpy(attach.pool, pool.c_str(), sizeof(attach.pool) - 1);
    return {PacketOf(attach),
            PacketOf(layout::ArenaRequest()),
            PacketOf(layout::DetachRequest()),
            PacketOf(layout::RecallAnswer()),
            PacketOf(layout::AttachReply()),
            PacketOf(layout::ArenaReply()),
            PacketOf(layout::DetachReply()),
            PacketOf(layout::RecallNotice())};
  }
  Bytes Noise(size_t most) {
    Bytes bytes(1 + random() % most);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
  }
};

// --- The attach socket ---------------------------------------------------------------------------

// Each message cut to each size, and longer than it is, before and after an attach.
void PacketsOfEverySize(Attacker& attacker) {
  for (Bytes packet : attacker.Packets()) {
    const size_t whole = packet.size();
    packet.resize(whole + 1000);
    for (size_t bytes = 1; bytes <= packet.size(); bytes += bytes < whole + 2 ? 1 : 199) {
      if (bytes == whole) continue;
      for (const bool attached : {false, true}) {
        if (attached && bytes % 8 != whole % 8) continue;  // a session costs more than a look
        HostileClient client(attacker.run_dir);
        if (attached) client.Attach(attacker.pool);
        client.Send(std::span(packet).first(bytes));
        while (client.Receive()) {
        }
      }
    }
  }
}

// Messages out of order, twice, changed in some bytes, with descriptors, without waiting for
// replies.
void ShuffledPackets(Attacker& attacker) {
  std::mt19937_64& random = attacker.random;
  const std::vector<Bytes> packets = attacker.Packets();
  const layout::UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (int i = 0; i < 600; ++i) {
    HostileClient client(attacker.run_dir);
    if (random() % 3 == 0) client.Attach(attacker.pool);
    for (uint64_t n = 1 + random() % 6; n > 0; --n) {
      Bytes packet = random() % 8 == 0 ? attacker.Noise(600) : packets[random() % packets.size()];
      if (random() % 3 == 0) packet[random() % packet.size()] = static_cast<std::byte>(random());
      const std::vector<int> fds(random() % 4 == 0 ? random() % layout::kMaxPacketFds : 0,
                                 null.get());
      const uint64_t times = 1 + random() % 2;
      for (uint64_t time = 0; time < times; ++time) client.Send(packet, fds);
    }
    if (random() % 2 == 0) (void)client.Receive();
  }
}

// Numbers of others, and of nobody.
void ForeignNumbers(Attacker& attacker) {
  std::mt19937_64& random = attacker.random;
  HostileClient& client = attacker.Attach();
  for (uint32_t i = 0; i < 300; ++i) {
    layout::ArenaRequest request;
    request.arena = i < 64 ? 1u << (i % 32) : static_cast<uint32_t>(random());
    if (!client.SendMessage(request) || !client.Receive())
      Broken("asking for an arena is no breach");
  }
  for (int i = 0; i < 50; ++i) {
    HostileClient answering(attacker.run_dir);
    answering.Attach(attacker.pool);
    layout::RecallAnswer answer;
    answer.recall = i < 20 ? static_cast<uint64_t>(i) : random();
    answering.SendMessage(answer);
    while (answering.Receive()) {
    }
  }
  RpcConnection& connection = attacker.ConnectGrpc();
  for (int i = 0; i < 200; ++i) {
    std::string token = client.token();
    token[random() % token.size()] ^= static_cast<char>(1 + random() % 255);
    if (i % 10 == 0) token.resize(random() % 100);
    HostileCall call(&connection, "/spanpool.v1.Pool/Exchange", token);
    call.Send(Want(kClassOf64, 1));
    if (call.Receive()) Broken("a forged token was served");
  }
}

// Connections that say nothing.
void HalfOpenConnections(Attacker& attacker) {
  for (int i = 0; i < 400; ++i) attacker.Connect();
}

// Requests without end, and no reply is read.
void RepliesThatAreNeverRead(Attacker& attacker) {
  for (int i = 0; i < 30; ++i) {
    HostileClient& client = attacker.Connect();
    client.Send(attacker.Packets()[0]);
    const layout::ArenaRequest request;
    for (int sent = 0; sent < 2000 && client.SendMessage(request); ++sent) {
    }
    if (client.SendMessage(request)) Broken("the daemon goes on although it is not read");
  }
}

// Sessions that are opened and left to lie.
void AbandonedSessions(Attacker& attacker) {
  for (int i = 0; i < 200; ++i) {
    HostileClient client(attacker.run_dir);
    client.Attach(attacker.pool);
    RpcConnection connection(attacker.run_dir + "/" + layout::kGrpcSocketName);
    HostileExchange exchange(&connection, client);
    exchange.Must(Want(kClassOf64, 2));
    for (int fd : {client.segment_fd(), client.control_fd()}) attacker.fds.emplace_back(dup(fd));
  }
}

// --- Exchange ------------------------------------------------------------------------------------

// Each rule of a message broken, each by a session of its own, with something on loan.
void MessagesAgainstTheRules(Attacker& attacker) {
  std::vector<v1::ExchangeRequest> requests = {
      Want(136, 1),           Want(UINT32_MAX, 1),          Want(kClassOf64, 0),
      Want(kClassOf64, 1025), Want(kClassOf64, UINT32_MAX), Want(kLarge, 1, 0),
      Want(kLarge, 1, 1, 3),  Want(kLarge, 1, 1, 1 << 14),  Want(0, 1, 1, UINT64_MAX)};
  v1::ExchangeRequest many_returns;
  for (uint64_t i = 0; i < 4097; ++i) many_returns.add_returns()->set_grant_sequence(i);
  requests.push_back(many_returns);
  v1::ExchangeRequest many_wants;
  for (int i = 0; i < 257; ++i) *many_wants.add_wants() = Want(kClassOf64, 1).wants(0);
  requests.push_back(many_wants);
  for (const v1::ExchangeRequest& request : requests) {
    HostileClient& client = attacker.Attach();
    HostileExchange& exchange = attacker.Exchange(client);
    exchange.Must(Want(kClassOf64, 1));
    if (exchange.Exchange(request)) Broken("served: " + request.ShortDebugString());
    if (!absl::IsInvalidArgument(exchange.End())) Broken(exchange.End().ToString());
    if (client.Receive()) Broken("the connection of an evicted session is open");
  }
}

// Grants that were returned, that are others', that never were; the same one many times; and what
// can never be had.
void OldAndForeignSequenceNumbers(Attacker& attacker) {
  std::mt19937_64& random = attacker.random;
  HostileClient& client = attacker.Attach();
  HostileExchange& exchange = attacker.Exchange(client);
  std::vector<uint64_t> seen;
  for (int round = 0; round < 100; ++round) {
    v1::ExchangeRequest request;
    for (int i = 0; i < 64; ++i) {
      const uint64_t sequence =
          seen.empty() || random() % 2 == 0 ? random() % 5000 : seen[random() % seen.size()];
      for (uint64_t times = random() % 3; times > 0; --times) {
        request.add_returns()->set_grant_sequence(random() % 9 == 0 ? random() : sequence);
      }
    }
    *request.add_wants() = Want(kClassOf64, 1 + static_cast<uint32_t>(random() % 8)).wants(0);
    *request.add_wants() = Want(kLarge, 1, 1 + random() % 40, random() % 3).wants(0);
    *request.add_wants() = Want(kLarge, 1, random()).wants(0);
    const v1::ExchangeResponse response = exchange.Must(request);
    for (const v1::SpanGrant& grant : response.grants()) seen.push_back(grant.sequence());
  }
  // A second session gives back what the first has.
  HostileExchange& other = attacker.Exchange(attacker.Attach());
  v1::ExchangeRequest request;
  for (const uint64_t sequence : seen) {
    if (request.returns_size() < 4096) request.add_returns()->set_grant_sequence(sequence);
  }
  other.Must(request);
  exchange.Must(v1::ExchangeRequest());
}

// Messages that are none: noise, cut short, too long; and bytes that are no HTTP/2.
void BytesThatAreNoMessage(Attacker& attacker) {
  std::mt19937_64& random = attacker.random;
  HostileClient& client = attacker.Attach();
  attacker.Exchange(client).Must(Want(kClassOf64, 1));
  RpcConnection& connection = attacker.ConnectGrpc();
  const std::string whole = Want(kLarge, 3, 77, 8).SerializeAsString();
  for (int i = 0; i < 300; ++i) {
    std::string bytes = whole;
    if (i % 3 == 0) bytes.resize(random() % bytes.size());
    if (i % 3 == 1) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (i % 3 == 2) {
      const Bytes noise = attacker.Noise(500);
      bytes.assign(reinterpret_cast<const char*>(noise.data()), noise.size());
    }
    HostileExchange exchange(&connection, client);
    exchange.SendBytes(bytes);
    (void)exchange.Receive();
  }
  for (int i = 0; i < 5; ++i) {
    HostileExchange exchange(&connection, client);
    exchange.SendBytes(std::string(size_t{5} << 20, 'x'));
    if (exchange.End().ok()) Broken("a message of 5 MiB was taken");
  }
  for (int i = 0; i < 100; ++i) {
    const layout::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = attacker.run_dir + "/" + layout::kGrpcSocketName;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) continue;
    const Bytes noise = attacker.Noise(500);
    const std::string preface = i % 2 == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "";
    (void)send(fd.get(), preface.data(), preface.size(), MSG_NOSIGNAL);
    (void)send(fd.get(), noise.data(), noise.size(), MSG_NOSIGNAL);
  }
}

// More requests than anybody reads the answers of, on many streams.
void AnswersThatAreNeverRead(Attacker& attacker) {
  v1::ExchangeRequest request;
  for (int i = 0; i < 256; ++i) *request.add_wants() = Want(kClassOf64, 1024).wants(0);
  for (int i = 0; i < 8; ++i) {
    HostileExchange& exchange = attacker.Exchange(attacker.Attach());
    for (int sent = 0; sent < 50; ++sent) exchange.Send(request);
  }
}

// As many calls as there may be, of every method that can be held open, and left so.
void CallsThatAreHeldOpen(Attacker& attacker) {
  const HostileClient& client = attacker.Attach();
  for (int i = 0; i < 12; ++i) {
    RpcConnection& connection = attacker.ConnectGrpc();
    for (const char* method : {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                               "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check",
                               "/spanpool.v1.Admin/GetStatus", "/spanpool.v1.Admin/Trim",
                               "/spanpool.v1.Pool/Exchange", "/spanpool.v1.Pool/NoSuchMethod"}) {
      for (int n = 0; n < 2; ++n) {
        attacker.calls.push_back(
            std::make_unique<HostileCall>(&connection, method, client.token()));
        // An empty message, for those that wait for one; reflection waits for the next.
        attacker.calls.back()->SendBytes("");
      }
    }
    RankedMutexLock lock(connection.mutex());
    connection.RunOnce();
  }
  // Too many calls at once are refused; but not for ever.
  RpcConnection& connection = attacker.ConnectGrpc();
  for (int tries = 0;; ++tries) {
    HostileCall check(&connection, "/grpc.health.v1.Health/Check", "");
    check.SendBytes("");
    check.SendEnd();
    if (check.Receive()) return;
    if (tries == 1000) Broken("nobody is told how the daemon is: " + check.End().ToString());
  }
}

// --- Descriptors ---------------------------------------------------------------------------------

void Insist(bool refused, const char* what) {
  if (!refused) Broken(std::string("the kernel let it ") + what);
}

// Whatever would take memory away from under others.
void SealedFiles(Attacker& attacker) {
  HostileClient& client = attacker.Attach();
  attacker.Exchange(client).Must(Want(kClassOf64, 1));
  const HostileClient::Arena* const arena = client.MapArena(0);
  if (arena == nullptr) Broken("no arena");
  const int files[] = {client.segment_fd(), client.control_fd(), arena->data_fd.get(),
                       arena->table_fd.get()};
  for (const int fd : files) {
    struct stat before;
    if (fstat(fd, &before) != 0) Broken("fstat");
    for (const off_t size : {off_t{0}, off_t{4096}, before.st_size - 1, before.st_size * 2}) {
      Insist(ftruncate(fd, size) != 0, "change the size of a file");
    }
    Insist(fallocate(fd, 0, before.st_size, 4096) != 0, "make a file longer");
    for (const int seal : {F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK, F_SEAL_SEAL}) {
      Insist(fcntl(fd, F_ADD_SEALS, seal) != 0, "seal a file");
    }
    Insist(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096) != 0, "cut a piece out of a file");
    // What the daemon's descriptor shares with this one must not matter to it.
    (void)fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK);
    (void)lseek(fd, static_cast<off_t>(attacker.random() % (1 << 24)), SEEK_SET);
  }
  const int control = client.control_fd();
  Insist(write(control, "x", 1) < 0, "write to the control segment");
  Insist(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, control, 0) == MAP_FAILED,
         "map the control segment for writing");
  Insist(fallocate(control, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0,
         "punch a hole in the control segment");
}

// --- Shared memory -------------------------------------------------------------------------------

constexpr uint64_t kGranulesNearby = 4 * kGranulesPerPage * 64;

// A client that has some spans, has shared blocks of them, and has everything mapped that it may.
class Scribbler {
 public:
  explicit Scribbler(Attacker& attacker)
      : random_(attacker.random),
        client_(attacker.run_dir),
        connection_(attacker.run_dir + "/" + layout::kGrpcSocketName) {
    client_.Attach(attacker.pool);
    HostileExchange exchange(&connection_, client_);
    v1::ExchangeRequest request = Want(kClassOf64, 4);
    *request.add_wants() = Want(kLarge, 2, 5).wants(0);
    const v1::ExchangeResponse response = exchange.Must(request);
    for (const v1::SpanGrant& grant : response.grants()) {
      granules_.push_back(grant.first_page() * kGranulesPerPage);
    }
    arena_ = client_.MapArena(0);
    if (arena_ == nullptr || granules_.empty()) Broken("neither spans nor an arena");
    for (uint32_t i = 0; i < granules_.size(); ++i) {
      slot(i) = Slot(SlotState::kHeld, GranuleId(granules_[i])).bits();
      SharedWord& word = layout::WordOf(*arena_->table, GranuleId(granules_[i]));
      word = BlockWord(word).Shared().bits();
    }
  }

  HostileClient& client() { return client_; }
  const HostileClient::Arena& arena() const { return *arena_; }
  layout::SharedSlot& slot(uint32_t index) { return layout::SlotsOf(client_.segment())[index]; }

  // A granule of its own, or of the arena, or of nowhere.
  uint64_t Granule() {
    switch (random_() % 4) {
      case 0:
        return random_();
      case 1:
        return random_() % kGranulesPerArena;
      case 2:
        return random_() % kGranulesNearby;
      default:
        return granules_[random_() % granules_.size()] + random_() % 3;
    }
  }

  // In all the segment, or where an honest client would write too.
  void ScribbleSegment(int writes) {
    layout::SessionSegment* const segment = client_.segment();
    auto* const words = reinterpret_cast<std::atomic<uint64_t>*>(segment);
    for (int i = 0; i < writes; ++i) {
      const auto index = static_cast<uint32_t>(random_() % (random_() % 2 ? 64 : 20'000));
      switch (random_() % 4) {
        case 0:
          words[random_() % (layout::kSessionSegmentBytes / 8)] = random_();
          break;
        case 1: {
          layout::SlotNote& note = layout::NotesOf(segment)[index];
          note.entry = random_() % 3 == 0 ? random_() : Granule() * kGranuleBytes;
          note.value = random_() % 2 == 0 ? 0 : random_();
          break;
        }
        default:
          slot(index) =
              random_() % 8 << 61 | random_() % 256 << 53 | (Granule() & ((uint64_t{1} << 53) - 1));
      }
    }
  }

  // Words, exact lengths and hints: noise, or what an honest client could have written.
  void ScribbleTable(int writes) {
    layout::BlockTable& table = *arena_->table;
    for (int i = 0; i < writes; ++i) {
      switch (random_() % 8) {
        case 0:
          table.marks.lengths[random_() % kPagesPerArena] = random_();
          break;
        case 1:
          table.marks.hints[random_() % (kPagesPerArena / 64)] = random_();
          break;
        case 2:
          layout::WordOf(table, GranuleId(Granule())) = random_();
          break;
        default:
          layout::WordOf(table, GranuleId(Granule())) = random_() % 8 << 61 | random_() % 8 << 58 |
                                                        random_() % 3 << 54 | random_() % 4 << 40 |
                                                        random_() % 3;
      }
    }
  }

  // The blocks themselves, and so whatever stands in them, channels too.
  void ScribbleData(int writes) {
    auto* const words = reinterpret_cast<std::atomic<uint64_t>*>(arena_->data);
    for (int i = 0; i < writes; ++i) {
      words[random_() % 2 == 0 ? random_() % (kArenaBytes / 8)
                               : Granule() * 8 % (kArenaBytes / 8)] =
          random_() % 2 == 0 ? random_()
                             : random_() % 4 << 62 | random_() % 4 << 32 | random_() % 2;
    }
  }

  // In every file, by its descriptor and through its mapping.
  void PunchHoles(int holes) {
    struct Target {
      int fd;
      std::byte* memory;
      size_t bytes;
    };
    const Target targets[] = {
        {client_.segment_fd(), reinterpret_cast<std::byte*>(client_.segment()),
         layout::kSessionSegmentBytes},
        {arena_->table_fd.get(), reinterpret_cast<std::byte*>(arena_->table),
         layout::kBlockTableBytes},
        {arena_->data_fd.get(), arena_->data, kArenaBytes}};
    for (int i = 0; i < holes; ++i) {
      const Target& target = targets[random_() % std::size(targets)];
      const size_t pages = target.bytes / 4096;
      const size_t page = random_() % 3 == 0 ? random_() % pages : random_() % 4;
      const size_t count = std::min(pages - page, 1 + random_() % 4);
      if (random_() % 2 == 0) {
        (void)fallocate(target.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(page * 4096), static_cast<off_t>(count * 4096));
      } else {
        (void)madvise(target.memory + page * 4096, count * 4096, MADV_REMOVE);
      }
    }
    for (const Target& target : targets) {
      if (random_() % 4 != 0) continue;
      (void)fallocate(target.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                      static_cast<off_t>(target.bytes));
    }
  }

 private:
  std::mt19937_64& random_;
  HostileClient client_;
  RpcConnection connection_;
  const HostileClient::Arena* arena_ = nullptr;
  std::vector<uint64_t> granules_;  // where blocks begin
};

// Runs `act` in a process of its own, which then dies.
void InAProcess(Attacker& attacker, const std::function<void(Attacker&)>& act) {
  const uint64_t seed = attacker.random();
  const pid_t pid = fork();
  if (pid < 0) Broken("fork");
  if (pid == 0) {
    attacker.random.seed(seed);
    act(attacker);
    _exit(0);
  }
  attacker.pids.push_back(pid);
}

void AwaitProcesses() {
  int status = 0;
  while (wait(&status) > 0) {
    if (status != 0) Broken("a process of its own failed");
  }
}

// Many processes, some at a time, which write over what `scribble` says and die.
void ScribbleAndDie(Attacker& attacker, const std::function<void(Scribbler&)>& scribble) {
  for (int round = 0; round < 8; ++round) {
    for (int i = 0; i < 3; ++i) {
      InAProcess(attacker, [&](Attacker& self) {
        Scribbler scribbler(self);
        for (uint64_t n = 1 + self.random() % 5; n > 0; --n) scribble(scribbler);
      });
    }
    AwaitProcesses();
  }
}

void ScribbledSegments(Attacker& attacker) {
  ScribbleAndDie(attacker, [](Scribbler& scribbler) { scribbler.ScribbleSegment(20'000); });
}

void ScribbledTables(Attacker& attacker) {
  ScribbleAndDie(attacker, [](Scribbler& scribbler) {
    scribbler.ScribbleTable(100'000);
    scribbler.ScribbleSegment(1000);
  });
}

void ScribbledBlocks(Attacker& attacker) {
  ScribbleAndDie(attacker, [](Scribbler& scribbler) {
    scribbler.ScribbleData(50'000);
    scribbler.ScribbleSegment(1000);
  });
}

void PunchedHoles(Attacker& attacker) {
  ScribbleAndDie(attacker, [](Scribbler& scribbler) {
    scribbler.ScribbleSegment(1000);
    scribbler.PunchHoles(100);
    scribbler.ScribbleTable(1000);
  });
}

// Processes die and leave what they had to others, who go on writing over it until the attacker is
// dead too.
void AccomplicesOfTheDead(Attacker& attacker) {
  int living[2];
  if (pipe2(living, O_CLOEXEC) != 0) Broken("pipe2");
  for (int i = 0; i < 3; ++i) {
    InAProcess(attacker, [&](Attacker& self) {
      Scribbler scribbler(self);
      scribbler.ScribbleSegment(1000);
      const pid_t accomplice = fork();
      if (accomplice != 0) _exit(accomplice < 0 ? 1 : 0);
      // Nobody is to wait for what it might say.
      for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, living[1]}) close(fd);
      pollfd attackers_end{.fd = living[0], .events = POLLIN, .revents = 0};
      while (poll(&attackers_end, 1, 0) == 0) {
        scribbler.ScribbleSegment(300);
        scribbler.ScribbleTable(100);
        scribbler.PunchHoles(2);
        // In the middle of steps, all the time.
        for (uint32_t slot = 0; slot < 64; ++slot) {
          scribbler.slot(slot) = Slot(slot % 2 == 0 ? SlotState::kAcquiring : SlotState::kReleasing,
                                      GranuleId(scribbler.Granule()))
                                     .bits();
        }
      }
    });
  }
  AwaitProcesses();
  close(living[0]);
  attacker.fds.emplace_back(living[1]);
}

using Attack = void (*)(Attacker&);
const std::map<std::string, Attack>& Attacks() {
  static const auto* const attacks = new std::map<std::string, Attack>{
      {"PacketsOfEverySize", PacketsOfEverySize},
      {"ShuffledPackets", ShuffledPackets},
      {"ForeignNumbers", ForeignNumbers},
      {"HalfOpenConnections", HalfOpenConnections},
      {"RepliesThatAreNeverRead", RepliesThatAreNeverRead},
      {"AbandonedSessions", AbandonedSessions},
      {"MessagesAgainstTheRules", MessagesAgainstTheRules},
      {"OldAndForeignSequenceNumbers", OldAndForeignSequenceNumbers},
      {"BytesThatAreNoMessage", BytesThatAreNoMessage},
      {"AnswersThatAreNeverRead", AnswersThatAreNeverRead},
      {"CallsThatAreHeldOpen", CallsThatAreHeldOpen},
      {"SealedFiles", SealedFiles},
      {"ScribbledSegments", ScribbledSegments},
      {"ScribbledTables", ScribbledTables},
      {"ScribbledBlocks", ScribbledBlocks},
      {"PunchedHoles", PunchedHoles},
      {"AccomplicesOfTheDead", AccomplicesOfTheDead},
  };
  return *attacks;
}

}  // namespace
}  // namespace spanpool::testing

int main(int argc, char** argv) {
  using spanpool::testing::Attacks;
  if (argc != 5 || !Attacks().contains(argv[3])) return 2;
  spanpool::testing::Attacker attacker{.run_dir = argv[1],
                                       .pool = argv[2],
                                       .random = std::mt19937_64(std::stoull(argv[4])),
                                       .clients = {},
                                       .connections = {},
                                       .calls = {},
                                       .fds = {},
                                       .pids = {}};
  Attacks().at(argv[3])(attacker);
  if (attacker.pids.empty()) attacker.pids.push_back(getpid());
  std::cout << "DONE";
  for (const pid_t pid : attacker.pids) std::cout << ' ' << pid;
  std::cout << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
  }
  _exit(0);
}

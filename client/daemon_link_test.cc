// The way to the daemon, against a daemon that answers as the test wants: any bytes, or rightly.

#include "client/daemon_link.h"

#include <dirent.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "allocator/size_classes.h"
#include "client/fake_pool.h"
#include "client/session_core.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "spanpool/v1/pool.grpc.pb.h"

namespace spanpool::internal {
namespace {

using layout::UniqueFd;

constexpr uint64_t kMiB = 1 << 20;

int OpenDescriptors() {
  int count = 0;
  DIR* const directory = opendir("/proc/self/fd");
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

// Serves attach.sock of a directory of its own, one connection at a time.
class AttachSocket {
 public:
  // Called with each connection.
  explicit AttachSocket(std::function<void(int)> serve) {
    char directory[] = "/tmp/daemon_link_test.XXXXXX";
    directory_ = mkdtemp(directory);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof(address.sun_path) - 1);
    listener_ = UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_.get(), 8), 0);
    thread_ = std::thread([this, serve = std::move(serve)] {
      for (;;) {
        const UniqueFd connection(accept(listener_.get(), nullptr, nullptr));
        if (!connection.valid()) return;
        serve(connection.get());
      }
    });
  }
  ~AttachSocket() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
    unlink(path().c_str());
    rmdir(directory_.c_str());
  }

  const std::string& directory() const { return directory_; }
  std::string path() const { return directory_ + "/attach.sock"; }

 private:
  std::string directory_;
  UniqueFd listener_;
  std::thread thread_;
};

// Waits for the request, sends `bytes` with `fds` descriptors of an empty memfd.
void Answer(int connection, std::span<const std::byte> bytes, int fds) {
  std::byte request[layout::kMaxAttachMessageBytes];
  if (!layout::ReceivePacket(connection, request).ok()) return;
  const UniqueFd memfd(memfd_create("x", MFD_CLOEXEC));
  const std::vector<int> sent(static_cast<size_t>(fds), memfd.get());
  layout::SendPacket(connection, bytes, sent).IgnoreError();
}

absl::Status AttachTo(const std::string& directory, absl::Duration timeout = absl::Minutes(1)) {
  PoolFacts facts;
  return AttachToDaemon(directory, "default", Access::kReadWrite, timeout, &facts).status();
}

absl::Status AttachWithReply(const layout::AttachReply& reply, int fds, size_t bytes = 0) {
  AttachSocket daemon([&](int connection) {
    Answer(connection, layout::BytesOf(reply).first(bytes != 0 ? bytes : sizeof(reply)), fds);
  });
  return AttachTo(daemon.directory());
}

TEST(DaemonLink, NoDaemonIsUnavailableAndNamesTheSocket) {
  const absl::Status status = AttachTo("/tmp/no such directory");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("/tmp/no such directory/attach.sock"), absl::string_view::npos);
}

TEST(DaemonLink, ADirectoryTooDeepForASocketIsInvalid) {
  EXPECT_EQ(AttachTo("/tmp/" + std::string(200, 'x')).code(), absl::StatusCode::kInvalidArgument);
}

TEST(DaemonLink, APoolNameThatCannotBeIsInvalid) {
  AttachSocket daemon([](int) {});
  for (const std::string& name : {std::string(64, 'x'), std::string("a\0b", 3)}) {
    PoolFacts facts;
    EXPECT_EQ(AttachToDaemon(daemon.directory(), name, Access::kReadWrite, absl::Minutes(1), &facts)
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(DaemonLink, ARefusalHasTheDaemonsCodeAndWords) {
  layout::AttachReply reply;
  reply.code = static_cast<int32_t>(absl::StatusCode::kPermissionDenied);
  std::strcpy(reply.message, "uid 7 may not attach to pool default");
  EXPECT_EQ(AttachWithReply(reply, 0),
            absl::PermissionDeniedError("uid 7 may not attach to pool default"));
  // A message that does not end.
  std::memset(reply.message, 'x', sizeof(reply.message));
  EXPECT_EQ(AttachWithReply(reply, 0).message().size(), sizeof(reply.message));
}

TEST(DaemonLink, WhatSpeaksAnotherProtocolIsRefusedAndLeaksNoDescriptor) {
  const int before = OpenDescriptors();
  layout::AttachReply reply;
  reply.header.magic = 1;
  EXPECT_EQ(AttachWithReply(reply, 2).code(), absl::StatusCode::kFailedPrecondition);
  reply = {};
  reply.header.type = layout::AttachType::kArenaReply;
  EXPECT_EQ(AttachWithReply(reply, 2).code(), absl::StatusCode::kFailedPrecondition);
  reply = {};
  reply.header.version = layout::kLayoutVersion + 1;
  EXPECT_EQ(AttachWithReply(reply, 2).code(), absl::StatusCode::kFailedPrecondition);
  reply = {};
  EXPECT_EQ(AttachWithReply(reply, 2, 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(AttachWithReply(reply, 2, sizeof(reply) - 1).code(),
            absl::StatusCode::kFailedPrecondition);
  for (int fds : {0, 1, 3}) {
    EXPECT_EQ(AttachWithReply(reply, fds).code(), absl::StatusCode::kInternal) << fds;
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(DaemonLink, ADaemonThatHangsUpOrNeverAnswersIsUnavailable) {
  {
    AttachSocket daemon([](int connection) {
      std::byte request[layout::kMaxAttachMessageBytes];
      layout::ReceivePacket(connection, request).IgnoreError();
    });
    EXPECT_EQ(AttachTo(daemon.directory()).code(), absl::StatusCode::kUnavailable);
  }
  AttachSocket daemon([](int connection) {
    std::byte request[layout::kMaxAttachMessageBytes];
    layout::ReceivePacket(connection, request).IgnoreError();
    layout::ReceivePacket(connection, request).IgnoreError();  // until the client is gone
  });
  EXPECT_EQ(AttachTo(daemon.directory(), absl::Milliseconds(10)).code(),
            absl::StatusCode::kUnavailable);
}

TEST(DaemonLink, FactsThatCannotBeAreAnErrorOfTheSession) {
  layout::AttachReply reply;
  reply.limit_bytes = 64 * kMiB;
  reply.address_bytes = 64 * kMiB;
  reply.slot_capacity = 1;
  AttachSocket daemon([&](int connection) { Answer(connection, layout::BytesOf(reply), 2); });
  for (uint64_t address_bytes : {uint64_t{0}, uint64_t{1} << 60, 64 * kMiB}) {
    reply.address_bytes = address_bytes;
    PoolFacts facts;
    auto link =
        AttachToDaemon(daemon.directory(), "default", Access::kReadWrite, absl::Minutes(1), &facts);
    ASSERT_TRUE(link.ok()) << link.status();
    // The last has a range, but a session segment of no bytes.
    EXPECT_FALSE(SessionCore::Create(std::move(facts), *std::move(link)).ok());
  }
}

// A daemon that does its work: a pool in this process, behind both sockets.
class FakeDaemon : public v1::Pool::Service {
 public:
  FakeDaemon() : socket_([this](int connection) { Serve(connection); }) { StartStreams(); }
  ~FakeDaemon() override { StopStreams(); }

  // The gRPC socket; with it go the streams.
  void StopStreams() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_ = nullptr;
  }
  void StartStreams() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + directory() + "/grpc.sock",
                             grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  // Ends the lifeline.
  void HangUp() { shutdown(connection_, SHUT_RDWR); }
  void SayResumed() {
    EXPECT_TRUE(layout::SendPacket(connection_, layout::BytesOf(layout::ResumedNotice())).ok());
  }
  // Forgets every grant when the next inventory comes.
  void LoseMemory() { lose_memory_ = true; }
  // Streams that began with an inventory, and grants that were missing in one.
  int inventories() const { return inventories_; }

  const std::string& directory() const { return socket_.directory(); }
  absl::StatusOr<SessionCore*> Attach(bool background = false) {
    PoolFacts facts;
    auto link =
        AttachToDaemon(directory(), "default", Access::kReadWrite, absl::Minutes(1), &facts);
    if (!link.ok()) return link.status();
    facts.background = background;
    return SessionCore::Create(std::move(facts), *std::move(link));
  }
  FakePool& pool() { return pool_; }
  // Ends the stream in place of the next answer; what was asked for was done.
  void DropNextAnswer() { drop_next_answer_ = true; }
  // Adds a grant of a span class there is not to every answer.
  void Lie() { lie_ = true; }
  int detach_requests() const { return detach_requests_; }
  // Sends a notice right now, or before the next reply to a request for an arena.
  void Recall(uint64_t number) { SendNotice(connection_, number); }
  void RecallBeforeNextArena(uint64_t number) { recall_before_arena_ = number; }
  // The last recall that was answered.
  uint64_t answered() const { return answered_; }

 private:
  static void SendNotice(int connection, uint64_t number) {
    layout::RecallNotice notice;
    notice.recall = number;
    notice.bytes = UINT64_MAX;
    EXPECT_TRUE(layout::SendPacket(connection, layout::BytesOf(notice)).ok());
  }

  void Serve(int connection) {
    connection_ = connection;
    std::byte buffer[layout::kMaxAttachMessageBytes];
    for (;;) {
      absl::StatusOr<layout::Packet> packet = layout::ReceivePacket(connection, buffer);
      if (!packet.ok() || packet->bytes == 0) return;
      layout::AttachHeader header;
      std::memcpy(&header, buffer, sizeof(header));
      switch (header.type) {
        case layout::AttachType::kAttachRequest: {
          PoolFacts facts = pool_.NewFacts();
          source_ = pool_.NewSource();
          layout::AttachReply reply;
          reply.limit_bytes = facts.limit_bytes;
          reply.address_bytes = facts.address_bytes;
          reply.slot_capacity = facts.slot_capacity;
          reply.incarnation = facts.incarnation;
          const UniqueFd control(memfd_create("control", MFD_CLOEXEC));
          const int fds[] = {facts.session_segment.get(), control.get()};
          EXPECT_TRUE(layout::SendPacket(connection, layout::BytesOf(reply), fds).ok());
          break;
        }
        case layout::AttachType::kArenaRequest: {
          layout::ArenaRequest request;
          std::memcpy(&request, buffer, sizeof(request));
          layout::ArenaReply reply;
          reply.arena = request.arena;
          absl::StatusOr<ArenaFds> arena = source_->OpenArena(ArenaIndex(request.arena));
          std::vector<int> fds;
          if (arena.ok()) {
            fds = {arena->data.get(), arena->table.get()};
          } else {
            reply.code = static_cast<int32_t>(arena.status().code());
          }
          if (const uint64_t number = recall_before_arena_.exchange(0); number != 0) {
            SendNotice(connection, number);
          }
          EXPECT_TRUE(layout::SendPacket(connection, layout::BytesOf(reply), fds).ok());
          break;
        }
        case layout::AttachType::kRecallAnswer: {
          layout::RecallAnswer answer;
          ASSERT_EQ(packet->bytes, sizeof(answer));
          std::memcpy(&answer, buffer, sizeof(answer));
          answered_ = answer.recall;
          break;
        }
        default:
          ++detach_requests_;
          EXPECT_TRUE(layout::SendPacket(connection, layout::BytesOf(layout::DetachReply())).ok());
      }
    }
  }

  grpc::Status Exchange(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest>* stream) override {
    v1::ExchangeRequest request;
    std::vector<uint64_t> held;
    while (stream->Read(&request)) {
      v1::ExchangeResponse response;
      response.set_request_id(request.request_id());
      if (request.has_inventory()) {
        for (const uint64_t delta : request.inventory().sequence_deltas()) {
          EXPECT_GT(delta, 0u);
          held.push_back((held.empty() ? 0 : held.back()) + delta);
        }
        EXPECT_LE(request.inventory().sequence_deltas_size(), 16384);
        if (!request.inventory().more()) {
          if (lose_memory_.exchange(false)) {
            for (const uint64_t sequence : held) pool_.Forget(GrantSequence(sequence));
          }
          for (const uint64_t unknown : pool_.Reconcile(held)) response.add_unknown(unknown);
          ++inventories_;
        }
        stream->Write(response);
        continue;
      }
      std::vector<GrantSequence> returns;
      for (const auto& entry : request.returns()) {
        // As the daemon: a return of what is not on loan is ignored.
        if (pool_.IsOnLoan(GrantSequence(entry.grant_sequence()))) {
          returns.push_back(GrantSequence(entry.grant_sequence()));
        }
      }
      std::vector<SpanWish> wishes;
      for (const auto& want : request.wants()) {
        wishes.push_back({SpanClass::FromValue(static_cast<uint8_t>(want.span_class())),
                          want.spans(), PageCount(want.pages()),
                          PageCount(std::max<uint64_t>(1, want.alignment_pages()))});
      }
      absl::StatusOr<ExchangeResult> result = source_->Exchange(returns, wishes);
      EXPECT_TRUE(result.ok());
      if (drop_next_answer_.exchange(false)) {
        return grpc::Status(grpc::StatusCode::ABORTED, "the daemon was restarted");
      }
      for (const SpanGrant& grant : result->grants) {
        v1::SpanGrant* const out = response.add_grants();
        out->set_sequence(grant.sequence.value());
        out->set_first_page(grant.pages.first.value());
        out->set_pages(grant.pages.count.value());
        out->set_span_class(grant.span_class.value());
        for (uint64_t word : grant.in_use) out->add_in_use(word);
      }
      if (lie_) {
        response.add_grants()->set_span_class(1000);
        v1::SpanGrant* const wild = response.add_grants();
        wild->set_span_class(12);
        wild->set_first_page(uint64_t{1} << 60);
        wild->set_pages(UINT64_MAX);
      }
      if (!result->shortfall.ok()) {
        v1::Shortfall* const out = response.add_shortfalls();
        out->set_code(static_cast<int>(result->shortfall.code()));
        out->set_message(std::string(result->shortfall.message()));
      }
      stream->Write(response);
    }
    return grpc::Status::OK;
  }

  FakePool pool_{256 * kMiB};
  std::unique_ptr<SpanSource> source_;
  std::atomic<bool> drop_next_answer_{false};
  std::atomic<bool> lie_{false};
  std::atomic<bool> lose_memory_{false};
  std::atomic<int> inventories_{0};
  std::atomic<int> detach_requests_{0};
  std::atomic<int> connection_{-1};
  std::atomic<uint64_t> recall_before_arena_{0};
  std::atomic<uint64_t> answered_{0};
  AttachSocket socket_;
  std::unique_ptr<grpc::Server> server_;
};

TEST(DaemonLink, ASessionAllocatesSharesAndLeavesNothingBehind) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach();
  ASSERT_TRUE(core.ok()) << core.status();
  {
    std::vector<Buffer> buffers;
    for (size_t bytes = 64; bytes <= 128 * kMiB; bytes *= 4) {
      absl::StatusOr<Buffer> buffer = (*core)->Allocate(bytes, {});
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      std::memset(buffer->data(), 1, std::min(bytes, kMiB));
      ASSERT_TRUE(buffer->Share().ok());
      buffers.push_back(*std::move(buffer));
    }
    EXPECT_EQ((*core)->Allocate(200 * kMiB, {}).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
  (*core)->Close();
  EXPECT_EQ(daemon.detach_requests(), 1);
  EXPECT_TRUE(daemon.pool().Empty());
}

TEST(DaemonLink, AnAnswerThatIsLostIsReconciledAndTheWishAskedAgain) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach();
  ASSERT_TRUE(core.ok()) << core.status();
  ASSERT_TRUE((*core)->Allocate(kMiB, {}).ok());
  EXPECT_EQ(daemon.inventories(), 0);
  for (int i = 0; i < 10; ++i) {
    // What was granted is on record; the answer that said so is lost.
    daemon.DropNextAnswer();
    absl::StatusOr<Buffer> buffer = (*core)->Allocate(10 * kMiB, {});
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(daemon.inventories(), 2 * i + 1);
    EXPECT_EQ(daemon.pool().stats().on_loan_bytes, (*core)->cache().bytes_on_loan());
    // A return whose answer is lost was carried out, or is by the next stream's inventory.
    buffer = absl::CancelledError();
    (*core)->DrainMyStacks();  // little enough to be kept, until it is asked for
    daemon.DropNextAnswer();
    EXPECT_TRUE((*core)->cache().Reclaim().ok());
    EXPECT_EQ(daemon.inventories(), 2 * i + 2);
    EXPECT_EQ((*core)->cache().bytes_on_loan(), 0u);
    EXPECT_EQ(daemon.pool().stats().on_loan_bytes, 0u);
  }
  (*core)->cache().CheckInvariants();
  (*core)->Close();
  EXPECT_TRUE(daemon.pool().Empty());
}

TEST(DaemonLink, AnInventoryOfManySpansComesInParts) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach();
  ASSERT_TRUE(core.ok()) << core.status();
  std::vector<void*> blocks;
  // More than fit into one part: 160 MiB in pages.
  for (int i = 0; i < 20480; ++i) {
    blocks.push_back((*core)->Malloc(8192, 16));
    ASSERT_NE(blocks.back(), nullptr);
  }
  daemon.DropNextAnswer();
  ASSERT_TRUE((*core)->Allocate(20 * kMiB, {}).ok());
  EXPECT_EQ(daemon.inventories(), 1);
  EXPECT_EQ(daemon.pool().stats().on_loan_bytes, (*core)->cache().bytes_on_loan());
  EXPECT_EQ((*core)->stats().spans_lost, 0u);
  for (void* block : blocks) (*core)->Free(block, nullptr);
  (*core)->Close();
  EXPECT_TRUE(daemon.pool().Empty());
}

TEST(DaemonLink, ThreadsThatWaitGoOnWhenTheDaemonIsBack) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach();
  ASSERT_TRUE(core.ok()) << core.status();
  ASSERT_TRUE((*core)->Allocate(kMiB, {}).ok());
  EXPECT_EQ((*core)->stats().daemon, DaemonState::kConnected);
  daemon.StopStreams();
  EXPECT_EQ((*core)->stats().daemon, DaemonState::kOffline);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      // However long it takes to start the daemon again.
      absl::StatusOr<Buffer> buffer = (*core)->Allocate(10 * kMiB, {.timeout = absl::Minutes(1)});
      EXPECT_TRUE(buffer.ok()) << buffer.status();
    });
  }
  daemon.StartStreams();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ((*core)->stats().daemon, DaemonState::kConnected);
  (*core)->cache().CheckInvariants();
  (*core)->Close();
  EXPECT_TRUE(daemon.pool().Empty());
}

TEST(DaemonLink, WhenTheLifelineEndsThePoolIsLostAndNobodyWaits) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach();
  ASSERT_TRUE(core.ok()) << core.status();
  absl::StatusOr<Buffer> buffer = (*core)->Allocate(kMiB, {});
  ASSERT_TRUE(buffer.ok());
  std::memset(buffer->data(), 7, kMiB);
  daemon.StopStreams();
  daemon.HangUp();
  EXPECT_EQ((*core)->stats().daemon, DaemonState::kLost);
  // Nor with a deadline that is far.
  const absl::Status status =
      (*core)->Allocate(10 * kMiB, {.timeout = absl::InfiniteDuration()}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("the pool was lost; attach again"), absl::string_view::npos);
  EXPECT_EQ((*core)->Malloc(10 * kMiB, 16), nullptr);
  EXPECT_EQ(buffer->data()[kMiB - 1], std::byte{7});
  buffer = absl::CancelledError();
  (*core)->Close();
}

TEST(DaemonLink, ADaemonThatSaysItIsBackIsToldAtOnceWhatIsOnLoan) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach(/*background=*/true);
  ASSERT_TRUE(core.ok()) << core.status();
  absl::StatusOr<Buffer> buffer = (*core)->Allocate(kMiB, {});
  ASSERT_TRUE(buffer.ok());
  for (int round = 1; round <= 3; ++round) {
    daemon.StopStreams();
    daemon.StartStreams();
    const int before = daemon.inventories();
    daemon.SayResumed();
    // Nobody allocates.
    while (daemon.inventories() == before) std::this_thread::yield();
  }
  buffer = absl::CancelledError();
  (*core)->Close();
  EXPECT_TRUE(daemon.pool().Empty());
}

TEST(DaemonLink, SpansThatTheDaemonForgotAreNotUsedAgain) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach();
  ASSERT_TRUE(core.ok()) << core.status();
  absl::StatusOr<Buffer> kept = (*core)->Allocate(1000, {});
  ASSERT_TRUE(kept.ok());
  std::memset(kept->data(), 7, 1000);
  const uint64_t on_loan = (*core)->cache().bytes_on_loan();
  daemon.LoseMemory();
  daemon.DropNextAnswer();
  ASSERT_TRUE((*core)->Allocate(20 * kMiB, {}).ok());
  EXPECT_GT((*core)->stats().spans_lost, 0u);
  (*core)->DrainMyStacks();
  (*core)->cache().CheckInvariants();
  // What was in use stays so, and is handed out to nobody when it is freed.
  EXPECT_EQ(kept->data()[999], std::byte{7});
  void* const block = kept->data();
  kept = absl::CancelledError();
  (*core)->DrainMyStacks();
  std::vector<Buffer> buffers;
  for (int i = 0; i < 100; ++i) {
    absl::StatusOr<Buffer> buffer = (*core)->Allocate(1000, {});
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_NE(buffer->data(), block)
        << i << " " << (*core)->stats().spans_lost << " " << (*core)->stats().exchanges;
    buffers.push_back(*std::move(buffer));
  }
  EXPECT_GE((*core)->cache().bytes_on_loan(), on_loan);
  (*core)->cache().CheckInvariants();
  buffers.clear();
  (*core)->Close();
  // All but what it has forgotten.
  EXPECT_EQ(daemon.pool().stats().on_loan_bytes, on_loan);
}

TEST(DaemonLink, ARecallIsAnsweredOnceWhatIsIdleWasReturned) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach(/*background=*/true);
  ASSERT_TRUE(core.ok()) << core.status();
  // Also before anything was ever borrowed.
  for (uint64_t number = 1; number <= 3; ++number) {
    daemon.Recall(number);
    while (daemon.answered() != number) std::this_thread::yield();
    EXPECT_EQ(daemon.pool().stats().on_loan_bytes, 0u);
    absl::StatusOr<Buffer> buffer = (*core)->Allocate(20 * kMiB, {});
    ASSERT_TRUE(buffer.ok()) << buffer.status();
  }
  (*core)->Close();
  EXPECT_TRUE(daemon.pool().Empty());
}

TEST(DaemonLink, ARecallThatComesBeforeAReplyIsNotTakenForIt) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach(/*background=*/true);
  ASSERT_TRUE(core.ok()) << core.status();
  daemon.RecallBeforeNextArena(7);
  {
    absl::StatusOr<Buffer> buffer = (*core)->Allocate(20 * kMiB, {});
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    std::memset(buffer->data(), 1, kMiB);
    while (daemon.answered() != 7) std::this_thread::yield();
  }
  (*core)->Close();
  EXPECT_TRUE(daemon.pool().Empty());
}

TEST(DaemonLink, GrantsThatCannotBeAreRefusedAndTheRestIsUsed) {
  FakeDaemon daemon;
  absl::StatusOr<SessionCore*> core = daemon.Attach();
  ASSERT_TRUE(core.ok()) << core.status();
  daemon.Lie();
  for (size_t bytes : {100ul, 5000ul, 100000ul}) {
    absl::StatusOr<Buffer> buffer = (*core)->Allocate(bytes, {});
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    std::memset(buffer->data(), 1, bytes);
  }
  (*core)->cache().CheckInvariants();
  (*core)->Close();
  EXPECT_TRUE(daemon.pool().Empty());
}

}  // namespace
}  // namespace spanpool::internal

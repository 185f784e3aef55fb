// Client and server in one process, each with a session of its own: a process each, as far as
// references go. Real processes and their deaths are in tests/grpc_payload_test.cc.

#include "spanpool/grpc_payload.h"

#include <grpcpp/create_channel_posix.h>
#include <grpcpp/server_posix.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/fake_pool.h"
#include "client/grpc_payload_test.grpc.pb.h"
#include "client/session_core.h"
#include "spanpool/session.h"

namespace spanpool {
namespace {

using internal::FakePool;
using internal::SessionCore;
using payload_test::Adder;
using payload_test::AddReply;
using payload_test::AddRequest;

uint64_t SumOf(absl::Span<const std::byte> bytes) {
  return std::accumulate(bytes.begin(), bytes.end(), uint64_t{0}, [](uint64_t sum, std::byte byte) {
    return sum + std::to_integer<uint8_t>(byte);
  });
}

// Serves on the loopback device.
class AdderServer final : public Adder::Service {
 public:
  explicit AdderServer(Session* session, const PayloadReceiver::Options& options = {})
      : receiver_(session, options) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~AdderServer() override { Stop(); }

  // Returns when no handler runs any more.
  void Stop() {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }
  grpc::Server& server() { return *server_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // What handlers do before and after they receive the payload. Set before the first call.
  std::function<grpc::Status(grpc::ServerContext*)> before = [](auto*) { return grpc::Status::OK; };
  std::function<grpc::Status(grpc::ServerContext*, ReceivedPayload*)> after = [](auto*, auto*) {
    return grpc::Status::OK;
  };

  grpc::Status Add(grpc::ServerContext* context, const AddRequest* request,
                   AddReply* reply) override {
    if (grpc::Status status = before(context); !status.ok()) return status;
    return AddOne(context, *request, reply);
  }
  grpc::Status AddMany(grpc::ServerContext* context, grpc::ServerReader<AddRequest>* requests,
                       AddReply* reply) override {
    AddRequest request;
    while (requests->Read(&request)) {
      if (grpc::Status status = AddOne(context, request, reply); !status.ok()) return status;
    }
    return grpc::Status::OK;
  }

 private:
  grpc::Status AddOne(grpc::ServerContext* context, const AddRequest& request, AddReply* reply) {
    ReceivedPayload payload;
    grpc::Status status = receiver_.Receive(context, request.payload(), &payload);
    if (!status.ok()) return status;
    reply->set_sum(reply->sum() + SumOf(payload.span()));
    if (payload.in_pool()) reply->set_in_pool(reply->in_pool() + 1);
    return after(context, &payload);
  }

  PayloadReceiver receiver_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class GrpcPayloadTest : public testing::Test {
 protected:
  static std::unique_ptr<Adder::Stub> Connect(const std::string& address) {
    return Adder::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }
  Buffer Filled(size_t bytes = 100'000) {
    absl::StatusOr<Buffer> buffer = client_->Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    for (size_t i = 0; i < bytes; ++i) buffer->data()[i] = static_cast<std::byte>(i);
    return *std::move(buffer);
  }
  static grpc::Status Add(Adder::Stub& stub, PayloadSender& sender, Buffer&& buffer,
                          AddReply* reply, absl::Duration timeout = absl::Seconds(60)) {
    AddRequest request;
    const auto deadline = absl::ToChronoTime(absl::Now() + timeout);
    return sender.Call(std::move(buffer), request.mutable_payload(),
                       [&](grpc::ClientContext* context) {
                         context->set_deadline(deadline);
                         return stub.Add(context, request, reply);
                       });
  }
  // Ends both sessions: nothing of the pool is left in use. The server must be gone.
  void ExpectNothingLeft() {
    for (auto* session : {&client_, &peer_}) {
      internal::References& references = SessionCore::CoreOf(**session)->references();
      references.Settle();
      EXPECT_EQ(references.slots_in_use(), 0u);
      session->reset();
    }
    EXPECT_TRUE(pool_.Empty());
  }

  FakePool pool_{256 << 20};
  std::unique_ptr<Session> client_ = SessionCore::NewSession(pool_.Attach());
  std::unique_ptr<Session> peer_ = SessionCore::NewSession(pool_.Attach());
};

TEST_F(GrpcPayloadTest, APeerInThePoolIsSentAHandle) {
  AdderServer server(peer_.get());
  PayloadSender sender;
  // Larger than a message may be.
  Buffer buffer = Filled(16 << 20);
  const uint64_t sum = SumOf(buffer.span());
  AddReply reply;
  const grpc::Status status = Add(*Connect(server.address()), sender, std::move(buffer), &reply);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.sum(), sum);
  EXPECT_EQ(reply.in_pool(), 1u);
  EXPECT_EQ(buffer.size(), 0u);
  EXPECT_EQ(sender.stats().handles, 1u);
  EXPECT_EQ(sender.stats().bytes, 0u);
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, APeerWithoutAPoolIsSentTheBytesAndNoHandleForAWhile) {
  AdderServer server(nullptr);
  PayloadSender sender({.first_pause = absl::Hours(1)});
  const auto stub = Connect(server.address());
  for (uint64_t call = 1; call <= 3; ++call) {
    Buffer buffer = Filled();
    const uint64_t sum = SumOf(buffer.span());
    AddReply reply;
    const grpc::Status status = Add(*stub, sender, std::move(buffer), &reply);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply.sum(), sum);
    EXPECT_EQ(reply.in_pool(), 0u);
    EXPECT_EQ(buffer.size(), 0u);
    EXPECT_EQ(sender.stats().handles, 1u);
    EXPECT_EQ(sender.stats().refused, 1u);
    EXPECT_EQ(sender.stats().bytes, call);
  }
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, APeerInAnotherPoolIsSentTheBytes) {
  FakePool other(64 << 20, /*incarnation=*/8);
  const std::unique_ptr<Session> stranger = SessionCore::NewSession(other.Attach());
  AdderServer server(stranger.get());
  PayloadSender sender;
  AddReply reply;
  const grpc::Status status = Add(*Connect(server.address()), sender, Filled(), &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.in_pool(), 0u);
  EXPECT_EQ(sender.stats().refused, 1u);
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, AfterThePauseHandlesAreTriedAgain) {
  AdderServer without(nullptr);
  AdderServer with(peer_.get());
  PayloadSender sender({.first_pause = absl::ZeroDuration()});
  AddReply reply;
  EXPECT_TRUE(Add(*Connect(without.address()), sender, Filled(), &reply).ok());
  EXPECT_EQ(reply.in_pool(), 0u);
  EXPECT_TRUE(Add(*Connect(with.address()), sender, Filled(), &reply).ok());
  EXPECT_EQ(reply.in_pool(), 1u);
  EXPECT_EQ(sender.stats().handles, 2u);
  with.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, SmallPayloadsGoAsBytes) {
  AdderServer server(peer_.get());
  PayloadSender sender;
  const auto stub = Connect(server.address());
  AddReply reply;
  EXPECT_TRUE(Add(*stub, sender, Filled(100), &reply).ok());
  EXPECT_EQ(reply.in_pool(), 0u);
  EXPECT_TRUE(Add(*stub, sender, Buffer(), &reply).ok());
  EXPECT_EQ(reply.sum(), 0u);
  EXPECT_EQ(sender.stats().bytes, 2u);
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, ACallThatNobodyReceivedGivesTheBufferBack) {
  PayloadSender sender;
  Buffer buffer = Filled();
  const uint64_t sum = SumOf(buffer.span());
  AddReply reply;
  {
    AdderServer server(peer_.get());
    const auto stub = Connect(server.address());
    server.before = [](auto*) { return grpc::Status(grpc::StatusCode::INTERNAL, "no"); };
    EXPECT_EQ(Add(*stub, sender, std::move(buffer), &reply).error_code(),
              grpc::StatusCode::INTERNAL);
    ASSERT_EQ(SumOf(buffer.span()), sum);
    server.Stop();
    EXPECT_EQ(Add(*stub, sender, std::move(buffer), &reply).error_code(),
              grpc::StatusCode::UNAVAILABLE);
    ASSERT_EQ(SumOf(buffer.span()), sum);
  }
  AdderServer server(peer_.get());
  EXPECT_TRUE(Add(*Connect(server.address()), sender, std::move(buffer), &reply).ok());
  EXPECT_EQ(reply.sum(), sum);
  EXPECT_EQ(reply.in_pool(), 1u);
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, AfterACallThatFailsInTheHandlerBothMayHaveTheBlock) {
  AdderServer server(peer_.get());
  Buffer kept;
  server.after = [&](auto*, ReceivedPayload* payload) {
    kept = *std::move(*payload).TakeBuffer(*peer_);
    return grpc::Status(grpc::StatusCode::INTERNAL, "too bad");
  };
  PayloadSender sender;
  Buffer buffer = Filled();
  AddReply reply;
  EXPECT_EQ(Add(*Connect(server.address()), sender, std::move(buffer), &reply).error_code(),
            grpc::StatusCode::INTERNAL);
  ASSERT_EQ(kept.size(), buffer.size());
  EXPECT_NE(kept.data(), buffer.data());  // mapped twice
  kept.data()[7] = std::byte{77};
  EXPECT_EQ(buffer.data()[7], std::byte{77});
  server.Stop();
  buffer = Buffer();
  EXPECT_EQ(kept.data()[7], std::byte{77});
  kept = Buffer();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, AReceivedBufferCanBeKeptHoweverItCame) {
  for (const bool by_handle : {true, false}) {
    AdderServer server(peer_.get());
    Buffer kept;
    server.after = [&](auto*, ReceivedPayload* payload) {
      absl::StatusOr<Buffer> taken = std::move(*payload).TakeBuffer(*peer_);
      EXPECT_TRUE(taken.ok()) << taken.status();
      kept = *std::move(taken);
      return grpc::Status::OK;
    };
    PayloadSender sender({.inline_bytes = by_handle ? 0u : 1u << 30});
    Buffer buffer = Filled();
    const uint64_t sum = SumOf(buffer.span());
    AddReply reply;
    EXPECT_TRUE(Add(*Connect(server.address()), sender, std::move(buffer), &reply).ok());
    EXPECT_EQ(reply.in_pool(), by_handle ? 1u : 0u);
    EXPECT_EQ(kept.size(), 100'000u);
    EXPECT_EQ(SumOf(kept.span()), sum);
  }
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, AHandlerThatIsLateDoesNotSpoilTheNextCall) {
  AdderServer server(peer_.get());
  absl::Notification go_on;
  std::atomic<int> calls{0};
  server.before = [&](auto*) {
    if (calls.fetch_add(1) == 0) go_on.WaitForNotification();
    return grpc::Status::OK;
  };
  absl::Notification late_is_done;
  server.after = [&](auto*, auto*) {
    // The second call has opened the block while the first one was waiting.
    if (!go_on.HasBeenNotified()) {
      go_on.Notify();
      late_is_done.WaitForNotification();
    } else {
      late_is_done.Notify();
    }
    return grpc::Status::OK;
  };
  PayloadSender sender;
  Buffer buffer = Filled();
  const uint64_t sum = SumOf(buffer.span());
  const auto stub = Connect(server.address());
  AddReply reply;
  EXPECT_EQ(Add(*stub, sender, std::move(buffer), &reply, absl::Milliseconds(50)).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(SumOf(buffer.span()), sum);
  // The first handler opens the same block now, and lets go of it before the second does.
  const grpc::Status status = Add(*stub, sender, std::move(buffer), &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.sum(), sum);
  EXPECT_EQ(reply.in_pool(), 1u);
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, AHandlerKeepsTheBlockOfACallThatWasCancelled) {
  AdderServer server(peer_.get());
  absl::Notification opened;
  absl::Notification cancelled;
  uint64_t sum_after = 0;
  server.after = [&](auto*, ReceivedPayload* payload) {
    opened.Notify();
    cancelled.WaitForNotification();
    sum_after = SumOf(payload->span());
    return grpc::Status::OK;
  };
  PayloadSender sender;
  Buffer buffer = Filled();
  const uint64_t sum = SumOf(buffer.span());
  const auto stub = Connect(server.address());
  AddRequest request;
  AddReply reply;
  std::thread canceller;
  const grpc::Status status =
      sender.Call(std::move(buffer), request.mutable_payload(), [&](grpc::ClientContext* context) {
        canceller = std::thread([&opened, context] {
          opened.WaitForNotification();
          context->TryCancel();
        });
        const grpc::Status ended = stub->Add(context, request, &reply);
        canceller.join();  // before the context goes
        return ended;
      });
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(SumOf(buffer.span()), sum);
  buffer = Buffer();
  cancelled.Notify();
  server.Stop();
  EXPECT_EQ(sum_after, sum);
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, CallersWhoseAddressTellsNothingAreNotBelievedUnlessToldTo) {
  for (const bool any_address : {false, true}) {
    AdderServer server(peer_.get(), {.any_address = any_address});
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    grpc::AddInsecureChannelFromFd(&server.server(), ends[0]);
    PayloadSender sender;
    AddReply reply;
    const grpc::Status status = Add(*Adder::NewStub(grpc::CreateInsecureChannelFromFd("", ends[1])),
                                    sender, Filled(), &reply);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply.in_pool(), any_address ? 1u : 0u);
    EXPECT_EQ(sender.stats().refused, any_address ? 0u : 1u);
  }
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, APeerThatNeverStopsRefusingIsAskedTwice) {
  AdderServer server(peer_.get());
  int calls = 0;
  server.before = [&calls](grpc::ServerContext* context) {
    ++calls;
    context->AddTrailingMetadata("spanpool-payload", "bytes");
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "no");
  };
  PayloadSender sender;
  Buffer buffer = Filled();
  AddReply reply;
  EXPECT_EQ(Add(*Connect(server.address()), sender, std::move(buffer), &reply).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(buffer.size(), 100'000u);
  server.Stop();
  EXPECT_EQ(calls, 2);
  buffer = Buffer();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, AMessageWithoutAPayloadAndAForgedHandleAreRefused) {
  AdderServer server(peer_.get());
  const auto stub = Connect(server.address());
  AddRequest request;
  AddReply reply;
  {
    grpc::ClientContext context;
    EXPECT_EQ(stub->Add(&context, request, &reply).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
  request.mutable_payload()->mutable_handle()->set_low(~uint64_t{0});
  grpc::ClientContext context;
  EXPECT_EQ(stub->Add(&context, request, &reply).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("spanpool-payload"), 1u);
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, MessagesOfAStreamCarryAHandleEach) {
  AdderServer server(peer_.get());
  PayloadSender sender;
  const auto stub = Connect(server.address());
  std::vector<OutgoingPayload> outgoing;
  std::vector<std::unique_ptr<AddRequest>> requests;
  uint64_t sum = 0;
  grpc::ClientContext context;
  AddReply reply;
  const auto writer = stub->AddMany(&context, &reply);
  for (size_t i = 1; i <= 5; ++i) {
    Buffer buffer = Filled(i * 10'000);
    sum += SumOf(buffer.span());
    requests.push_back(std::make_unique<AddRequest>());
    outgoing.push_back(sender.Put(std::move(buffer), requests.back()->mutable_payload()));
    EXPECT_TRUE(writer->Write(*requests.back()));
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  for (OutgoingPayload& each : outgoing) {
    EXPECT_FALSE(each.Finish(status, context));
    EXPECT_EQ(std::move(each).TakeBuffer().size(), 0u);
  }
  EXPECT_EQ(reply.sum(), sum);
  EXPECT_EQ(reply.in_pool(), 5u);
  // One that is dropped, its call never made.
  AddRequest never_sent;
  outgoing[0] = sender.Put(Filled(), never_sent.mutable_payload());
  EXPECT_TRUE(never_sent.payload().has_handle());
  outgoing.clear();
  server.Stop();
  ExpectNothingLeft();
}

TEST_F(GrpcPayloadTest, ManyThreadsShareASender) {
  AdderServer server(peer_.get());
  PayloadSender sender;
  const auto stub = Connect(server.address());
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t call = 0; call < 25; ++call) {
        Buffer buffer = Filled(5000 + thread * 1000 + call);
        const uint64_t sum = SumOf(buffer.span());
        AddReply reply;
        const grpc::Status status = Add(*stub, sender, std::move(buffer), &reply);
        EXPECT_TRUE(status.ok()) << status.error_message();
        EXPECT_EQ(reply.sum(), sum);
        EXPECT_EQ(reply.in_pool(), 1u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sender.stats().handles, 100u);
  server.Stop();
  ExpectNothingLeft();
}

}  // namespace
}  // namespace spanpool

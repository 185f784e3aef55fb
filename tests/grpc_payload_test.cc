// Payloads by handle between real processes that die. This program is also the server
// (`serve ADDRESS`) and a client to be killed (`call ADDRESS`).

#include "spanpool/grpc_payload.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/grpc_payload_test.grpc.pb.h"
#include "spanpool/spanpool.h"
#include "tests/support/daemon.h"
#include "tests/support/process.h"

namespace spanpool::testing {
namespace {

using payload_test::Adder;
using payload_test::AddReply;
using payload_test::AddRequest;

constexpr size_t kBytes = 1 << 20;
// The server stops, as by SIGSTOP, when it has received a payload of these.
constexpr std::byte kStop{255};

class AdderService final : public Adder::Service {
 public:
  explicit AdderService(Session* session) : receiver_(session) {}
  grpc::Status Add(grpc::ServerContext* context, const AddRequest* request,
                   AddReply* reply) override {
    ReceivedPayload payload;
    grpc::Status received = receiver_.Receive(context, request->payload(), &payload);
    if (!received.ok()) return received;
    if (payload.span()[0] == kStop) raise(SIGSTOP);
    reply->set_sum(std::accumulate(
        payload.span().begin(), payload.span().end(), uint64_t{0},
        [](uint64_t sum, std::byte byte) { return sum + std::to_integer<uint8_t>(byte); }));
    reply->set_in_pool(payload.in_pool() ? 1 : 0);
    return grpc::Status::OK;
  }

 private:
  PayloadReceiver receiver_;
};

int Serve(const std::string& address) {
  const absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach({});
  if (!session.ok()) return std::cerr << session.status() << "\n", 1;
  AdderService service(session->get());
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  std::cout << "READY" << std::endl;
  server->Wait();
  return 0;
}

absl::StatusOr<Buffer> Filled(Session& session, std::byte value) {
  absl::StatusOr<Buffer> buffer = session.Allocate(kBytes);
  if (buffer.ok()) std::fill_n(buffer->data(), kBytes, value);
  return buffer;
}

grpc::Status Add(Adder::Stub& stub, PayloadSender& sender, Buffer&& buffer, AddReply* reply,
                 absl::Duration timeout = absl::Seconds(60)) {
  AddRequest request;
  const auto deadline = absl::ToChronoTime(absl::Now() + timeout);
  return sender.Call(std::move(buffer), request.mutable_payload(),
                     [&](grpc::ClientContext* context) {
                       context->set_deadline(deadline);
                       return stub.Add(context, request, reply);
                     });
}

std::unique_ptr<Adder::Stub> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // no other channel's back-off
  return Adder::NewStub(
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
}

// Calls for ever; says after each call whether it went by handle.
int CallForEver(const std::string& address) {
  const absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach({});
  if (!session.ok()) return std::cerr << session.status() << "\n", 1;
  const auto stub = Connect(address);
  PayloadSender sender;
  for (;;) {
    absl::StatusOr<Buffer> buffer = Filled(**session, std::byte{1});
    if (!buffer.ok()) return std::cerr << buffer.status() << "\n", 1;
    AddReply reply;
    const grpc::Status status = Add(*stub, sender, *std::move(buffer), &reply);
    if (!status.ok()) return std::cerr << status.error_message() << "\n", 1;
    std::cout << (reply.in_pool() == 1 ? "by handle" : "as bytes") << std::endl;
  }
}

class GrpcPayloadProcesses : public ::testing::Test {
 protected:
  GrpcPayloadProcesses() {
    absl::StatusOr<std::unique_ptr<Session>> attached =
        Session::Attach({.target = daemon_.run_dir()});
    EXPECT_TRUE(attached.ok()) << attached.status();
    session_ = *std::move(attached);
  }

  std::unique_ptr<Process> Start(const std::string& what) {
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
    return std::make_unique<Process>(
        std::vector<std::string>{self, what, address_},
        Process::Options{.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon_.run_dir()}}});
  }
  std::unique_ptr<Process> StartServer() {
    std::unique_ptr<Process> server = Start("serve");
    EXPECT_EQ(server->ReadLine(), "READY") << server->standard_error();
    return server;
  }
  Buffer MustFill(std::byte value) {
    absl::StatusOr<Buffer> buffer = Filled(*session_, value);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  // Calls with a payload of kStop; cancels when the server has stopped. Returns what is left then.
  static Buffer AddUntilItStops(Process& server, Adder::Stub& stub, PayloadSender& sender,
                                Buffer&& buffer) {
    std::atomic<grpc::ClientContext*> under_way{nullptr};
    grpc::Status status;
    std::thread caller([&] {
      AddRequest request;
      AddReply reply;
      status = sender.Call(std::move(buffer), request.mutable_payload(),
                           [&](grpc::ClientContext* context) {
                             under_way.store(context);
                             return stub.Add(context, request, &reply);
                           });
    });
    EXPECT_TRUE(server.StopsBeforeLine());
    while (under_way.load() == nullptr) std::this_thread::yield();
    under_way.load()->TryCancel();
    caller.join();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED) << status.error_message();
    return std::move(buffer);
  }
  static bool Holds(const Buffer& buffer, std::byte value) {
    return buffer.size() == kBytes &&
           std::all_of(buffer.span().begin(), buffer.span().end(),
                       [value](std::byte byte) { return byte == value; });
  }

  Daemon daemon_{{.config = "pool { name: \"default\" limit_bytes: 536870912 }\n", .flags = {}}};
  const std::string address_ = "unix:" + daemon_.run_dir() + "/server.sock";
  std::unique_ptr<Session> session_;
};

TEST_F(GrpcPayloadProcesses, AServerThatIsKilledInACallLosesNothing) {
  for (int round = 0; round < 8; ++round) {
    const std::unique_ptr<Process> server = StartServer();
    const auto stub = Connect(address_);
    PayloadSender sender;
    std::atomic<int> calls{0};
    std::thread killer([&calls, round, pid = server->pid()] {
      while (calls.load() <= round) std::this_thread::yield();
      kill(pid, SIGKILL);
    });
    grpc::Status status;
    Buffer buffer;
    std::byte value{0};
    AddReply reply;
    do {
      value = static_cast<std::byte>(calls.fetch_add(1));
      buffer = MustFill(value);
      status = Add(*stub, sender, std::move(buffer), &reply);
      if (status.ok()) {
        EXPECT_EQ(reply.sum(), std::to_integer<uint8_t>(value) * kBytes);
      }
    } while (status.ok());
    killer.join();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
    EXPECT_TRUE(Holds(buffer, value));
    server->Wait();
  }
  session_.reset();
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(GrpcPayloadProcesses, AStoppedServerKeepsNobodyWaiting) {
  const std::unique_ptr<Process> server = StartServer();
  const auto stub = Connect(address_);
  PayloadSender sender;
  AddReply reply;
  ASSERT_TRUE(Add(*stub, sender, MustFill(std::byte{1}), &reply).ok());

  // Stopped before the call: it will find the call when it goes on, long after it was given up.
  server->Signal(SIGSTOP);
  EXPECT_TRUE(server->StopsBeforeLine());
  Buffer buffer = MustFill(std::byte{2});
  grpc::Status status = Add(*stub, sender, std::move(buffer), &reply, absl::Milliseconds(200));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
  EXPECT_TRUE(Holds(buffer, std::byte{2}));
  EXPECT_EQ(buffer.readers(), 0u);
  server->Signal(SIGCONT);
  // The same block again: whatever becomes of the late call, this one has a reference of its own.
  ASSERT_TRUE(Add(*stub, sender, std::move(buffer), &reply).ok());
  EXPECT_EQ(reply.sum(), 2 * kBytes);
  EXPECT_EQ(reply.in_pool(), 1u);

  // Stopped with the payload in its hands: then it has it, and we have it, too.
  buffer = AddUntilItStops(*server, *stub, sender, MustFill(kStop));
  EXPECT_EQ(buffer.readers(), 1u);
  EXPECT_TRUE(Holds(buffer, kStop));
  server->Signal(SIGCONT);
  EXPECT_TRUE(buffer.AwaitNoReaders(absl::Now() + absl::Minutes(1)).ok());

  // And if it never goes on, it is the last to let go: when it is killed.
  buffer = AddUntilItStops(*server, *stub, sender, std::move(buffer));
  EXPECT_EQ(buffer.readers(), 1u);
  buffer = Buffer();
  server->Signal(SIGKILL);
  server->Wait();
  EXPECT_TRUE(daemon_.EventuallyReaped(1));
  session_.reset();
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

TEST_F(GrpcPayloadProcesses, AClientThatIsKilledInACallLosesNothing) {
  const std::unique_ptr<Process> server = StartServer();
  for (int round = 0; round < 4; ++round) {
    const std::unique_ptr<Process> client = Start("call");
    for (int line = 0; line <= round; ++line) {
      EXPECT_EQ(client->ReadLine(), "by handle") << client->standard_error();
    }
    client->Signal(SIGKILL);
    client->Wait();
  }
  server->Signal(SIGKILL);
  server->Wait();
  session_.reset();
  EXPECT_TRUE(daemon_.EventuallyEmpty());
}

}  // namespace

int ActAs(std::string_view what, const std::string& address) {
  return what == "serve" ? Serve(address) : CallForEver(address);
}

}  // namespace spanpool::testing

int main(int argc, char** argv) {
  if (argc == 3) return spanpool::testing::ActAs(argv[1], argv[2]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

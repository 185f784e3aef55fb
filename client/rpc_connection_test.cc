// Calls against gRPC's own server, and against servers that send what they should not.

#include "client/rpc_connection.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spanpool/v1/pool.grpc.pb.h"

namespace spanpool::internal {
namespace {

const char kMethod[] = "/spanpool.v1.Pool/Exchange";

absl::Time Soon() { return absl::Now() + absl::Minutes(1); }

class SocketDirectory {
 public:
  SocketDirectory() {
    char directory[] = "/tmp/rpc_connection_test.XXXXXX";
    directory_ = mkdtemp(directory);
  }
  ~SocketDirectory() {
    unlink(path().c_str());
    rmdir(directory_.c_str());
  }
  std::string path() const { return directory_ + "/grpc.sock"; }

 private:
  std::string directory_;
};

// gRPC's own server, which does as the test says.
class Server : public v1::Pool::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest>;
  using Script = std::function<grpc::Status(grpc::ServerContext*, Stream*)>;

  explicit Server(Script script) : script_(std::move(script)) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(-1);
    builder.AddListeningPort("unix:" + path(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Server() override { Stop(); }
  void Stop() { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string path() const { return directory_.path(); }

 private:
  grpc::Status Exchange(grpc::ServerContext* context, Stream* stream) override {
    return script_(context, stream);
  }

  const SocketDirectory directory_;
  const Script script_;
  std::unique_ptr<grpc::Server> server_;
};

// What became of one call.
class Heard final : public RpcConnection::Listener {
 public:
  void OnMessage(absl::string_view bytes) override { messages.emplace_back(bytes); }
  void OnEnd(const absl::Status& status) override {
    EXPECT_FALSE(ended);
    ended = true;
    end = status;
  }

  std::vector<std::string> messages;
  bool ended = false;
  absl::Status end;
};

v1::ExchangeRequest Request(uint64_t number, size_t returns = 0) {
  v1::ExchangeRequest request;
  request.set_request_id(number);
  for (size_t i = 0; i < returns; ++i) {
    request.add_returns()->set_grant_sequence(UINT64_MAX - i);
  }
  return request;
}

bool RunUntilEnd(RpcConnection& connection, const Heard& heard) {
  return connection.RunUntil(absl::Condition(
                                 +[](const Heard* call) { return call->ended; }, &heard),
                             Soon());
}

// One call that sends `request` and no more; how it ended.
absl::Status CallOnce(const std::string& path, Heard* heard,
                      const v1::ExchangeRequest& request = {}) {
  RpcConnection connection(path);
  RankedMutexLock lock(connection.mutex());
  const auto call = connection.Start(kMethod, {}, heard);
  if (!call.ok()) return call.status();
  connection.Send(*call, request);
  connection.SendEnd(*call);
  EXPECT_TRUE(RunUntilEnd(connection, *heard));
  return heard->end;
}

TEST(RpcConnection, ACallHasMetadataMessagesBothWaysAndAStatus) {
  const std::string binary("\0\x01\xff,:\n", 6);
  Server server([&](grpc::ServerContext* context, Server::Stream* stream) {
    const auto& metadata = context->client_metadata();
    const auto word = metadata.find("word");
    EXPECT_TRUE(word != metadata.end() && word->second == "plain");
    const auto bytes = metadata.find("some-bin");
    EXPECT_TRUE(bytes != metadata.end() &&
                std::string(bytes->second.data(), bytes->second.size()) == binary);
    v1::ExchangeRequest request;
    while (stream->Read(&request)) {
      v1::ExchangeResponse response;
      response.set_request_id(request.request_id());
      stream->Write(response);
    }
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "100 % \xc3\xbc\nno %41");
  });
  RpcConnection connection(server.path());
  Heard heard;
  RankedMutexLock lock(connection.mutex());
  const auto call = connection.Start(kMethod, {{"word", "plain"}, {"some-bin", binary}}, &heard);
  ASSERT_TRUE(call.ok()) << call.status();
  for (uint64_t i = 1; i <= 100; ++i) {
    connection.Send(*call, Request(i));
    const auto answered = [&] { return heard.messages.size() == i; };
    ASSERT_TRUE(connection.RunUntil(absl::Condition(&answered), Soon()));
    v1::ExchangeResponse response;
    ASSERT_TRUE(response.ParseFromString(heard.messages.back()));
    EXPECT_EQ(response.request_id(), i);
  }
  connection.SendEnd(*call);
  ASSERT_TRUE(RunUntilEnd(connection, heard));
  EXPECT_EQ(heard.end, absl::NotFoundError("100 % \xc3\xbc\nno %41"));
  // Nothing more comes of a call that has ended.
  connection.Send(*call, Request(1));
  connection.SendEnd(*call);
  connection.Cancel(*call);
  EXPECT_TRUE(connection.usable());
}

TEST(RpcConnection, CallsOfOneConnectionDoNotMixAndOneCanBeCancelled) {
  Server server([](grpc::ServerContext*, Server::Stream* stream) {
    v1::ExchangeRequest request;
    while (stream->Read(&request)) {
      v1::ExchangeResponse response;
      response.set_request_id(request.request_id());
      stream->Write(response);
    }
    return grpc::Status::OK;
  });
  RpcConnection connection(server.path());
  RankedMutexLock lock(connection.mutex());
  std::vector<Heard> heard(10);
  std::vector<RpcConnection::CallId> calls;
  for (size_t i = 0; i < heard.size(); ++i) {
    calls.push_back(*connection.Start(kMethod, {}, &heard[i]));
    connection.Send(calls[i], Request(i + 1));
    connection.Send(calls[i], Request(i + 1));
  }
  connection.Cancel(calls[0]);
  for (size_t i = 1; i < heard.size(); ++i) {
    connection.SendEnd(calls[i]);
    ASSERT_TRUE(RunUntilEnd(connection, heard[i]));
    EXPECT_TRUE(heard[i].end.ok()) << heard[i].end;
    ASSERT_EQ(heard[i].messages.size(), 2u);
    v1::ExchangeResponse response;
    ASSERT_TRUE(response.ParseFromString(heard[i].messages[1]));
    EXPECT_EQ(response.request_id(), i + 1);
  }
  EXPECT_FALSE(heard[0].ended);
}

TEST(RpcConnection, MessagesOfManyFramesArriveWhole) {
  Server server([](grpc::ServerContext*, Server::Stream* stream) {
    v1::ExchangeRequest request;
    while (stream->Read(&request)) {
      v1::ExchangeResponse response;
      response.set_request_id(static_cast<uint64_t>(request.returns_size()));
      for (int i = 0; i < request.returns_size(); ++i) {
        response.add_grants()->set_sequence(request.returns(i).grant_sequence());
      }
      stream->Write(response);
      stream->Write(response);
    }
    return grpc::Status::OK;
  });
  for (const size_t returns : {1, 1000, 100'000, 1'000'000}) {
    Heard heard;
    EXPECT_TRUE(CallOnce(server.path(), &heard, Request(1, returns)).ok()) << heard.end;
    ASSERT_EQ(heard.messages.size(), 2u);
    for (const std::string& message : heard.messages) {
      v1::ExchangeResponse response;
      ASSERT_TRUE(response.ParseFromString(message));
      ASSERT_EQ(response.grants_size(), static_cast<int>(returns));
      EXPECT_EQ(response.grants(static_cast<int>(returns) - 1).sequence(),
                UINT64_MAX - returns + 1);
    }
  }
}

TEST(RpcConnection, SendingNeverWaitsForAServerThatDoesNotRead) {
  std::atomic<bool> read{false};
  std::atomic<int> received{0};
  Server server([&](grpc::ServerContext*, Server::Stream* stream) {
    while (!read) std::this_thread::yield();
    v1::ExchangeRequest request;
    while (stream->Read(&request)) ++received;
    return grpc::Status::OK;
  });
  RpcConnection connection(server.path());
  Heard heard;
  RankedMutexLock lock(connection.mutex());
  const auto call = connection.Start(kMethod, {}, &heard);
  for (int i = 0; i < 100; ++i) connection.Send(*call, Request(1, 100'000));  // 110 MB
  connection.SendEnd(*call);
  read = true;
  ASSERT_TRUE(RunUntilEnd(connection, heard));
  EXPECT_TRUE(heard.end.ok()) << heard.end;
  EXPECT_EQ(received, 100);
}

TEST(RpcConnection, ThreadsThatWaitForDifferentCallsAllGetTheirs) {
  Server server([](grpc::ServerContext*, Server::Stream* stream) {
    v1::ExchangeRequest request;
    while (stream->Read(&request)) stream->Write(v1::ExchangeResponse());
    return grpc::Status::OK;
  });
  RpcConnection connection(server.path());
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      Heard heard;
      RankedMutexLock lock(connection.mutex());
      const auto call = connection.Start(kMethod, {}, &heard);
      ASSERT_TRUE(call.ok());
      for (size_t i = 1; i <= 300; ++i) {
        connection.Send(*call, Request(i, i % 7 == 0 ? 5000 : 0));
        const auto answered = [&] { return heard.messages.size() == i; };
        ASSERT_TRUE(connection.RunUntil(absl::Condition(&answered), Soon()));
      }
      connection.Cancel(*call);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(RpcConnection, WhatDoesNotComeInTimeIsNotWaitedFor) {
  std::atomic<bool> end{false};
  Server server([&](grpc::ServerContext*, Server::Stream*) {
    while (!end) std::this_thread::yield();
    return grpc::Status::OK;
  });
  RpcConnection connection(server.path());
  Heard heard;
  RankedMutexLock lock(connection.mutex());
  const auto call = connection.Start(kMethod, {}, &heard);
  ASSERT_TRUE(call.ok());
  for (const absl::Duration wait : {absl::Milliseconds(5), absl::ZeroDuration(), -absl::Hours(1)}) {
    EXPECT_FALSE(connection.RunUntil(absl::Condition(
                                         +[](Heard* h) { return h->ended; }, &heard),
                                     absl::Now() + wait));
  }
  end = true;
  EXPECT_TRUE(RunUntilEnd(connection, heard));
}

TEST(RpcConnection, AServerThatStopsEndsItsCallsAndTakesNoNewOnes) {
  std::atomic<bool> began{false};
  Server server([&](grpc::ServerContext*, Server::Stream* stream) {
    began = true;
    v1::ExchangeRequest request;
    stream->Read(&request);
    return grpc::Status::OK;
  });
  RpcConnection connection(server.path());
  Heard heard;
  RankedMutexLock lock(connection.mutex());
  ASSERT_TRUE(connection.Start(kMethod, {}, &heard).ok());
  while (!began) connection.RunOnce();
  std::thread stop([&] { server.Stop(); });
  ASSERT_TRUE(RunUntilEnd(connection, heard));
  stop.join();
  connection.RunOnce();
  EXPECT_FALSE(connection.usable());
  Heard late;
  EXPECT_EQ(connection.Start(kMethod, {}, &late).status().code(), absl::StatusCode::kUnavailable);
}

TEST(RpcConnection, WithoutAServerOrWithANameTooLongACallIsUnavailable) {
  for (const std::string& path : {std::string("/nonexistent/grpc.sock"), std::string(200, 'x')}) {
    Heard heard;
    EXPECT_EQ(CallOnce(path, &heard).code(), absl::StatusCode::kUnavailable);
    EXPECT_FALSE(heard.ended);
  }
}

// --- Servers that send what they should not ------------------------------------------------------

// Answers whatever comes with `bytes` and closes the connection.
absl::Status CallAnsweredWith(const std::string& bytes) {
  SocketDirectory directory;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, directory.path().c_str(), sizeof(address.sun_path) - 1);
  const layout::UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(listen(listener.get(), 1), 0);
  std::thread server([&] {
    const layout::UniqueFd connection(accept(listener.get(), nullptr, nullptr));
    char request[4096];
    EXPECT_GT(recv(connection.get(), request, sizeof(request), 0), 0);
    EXPECT_GE(send(connection.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 0);
    shutdown(connection.get(), SHUT_WR);
    while (recv(connection.get(), request, sizeof(request), 0) > 0) {
    }
  });
  Heard heard;
  const absl::Status status = CallOnce(directory.path(), &heard);
  server.join();
  return status;
}

// A frame of HTTP/2.
std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  std::string frame;
  for (int shift : {16, 8, 0}) frame += static_cast<char>(payload.size() >> shift);
  frame += static_cast<char>(type);
  frame += static_cast<char>(flags);
  for (int shift : {24, 16, 8, 0}) frame += static_cast<char>(stream >> shift);
  return frame + payload;
}
constexpr uint8_t kData = 0;
constexpr uint8_t kHeaders = 1;
constexpr uint8_t kReset = 3;
constexpr uint8_t kSettings = 4;
constexpr uint8_t kEndStream = 1;
constexpr uint8_t kEndHeaders = 4;
const std::string kStatus200 = "\x88";  // HPACK: ":status: 200"
const std::string kStatus404 = "\x8d";

TEST(RpcConnection, AnEndOfTheConnectionIsUnavailable) {
  EXPECT_EQ(CallAnsweredWith("").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CallAnsweredWith(Frame(kSettings, 0, 0, "")).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CallAnsweredWith("HTTP/1.1 400 Bad Request\r\n\r\n").code(),
            absl::StatusCode::kUnavailable);
}

TEST(RpcConnection, AnAnswerThatIsNotGrpcsNamesItsHttpStatus) {
  const absl::Status status = CallAnsweredWith(
      Frame(kSettings, 0, 0, "") + Frame(kHeaders, kEndHeaders | kEndStream, 1, kStatus404));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_NE(status.message().find("404"), absl::string_view::npos) << status;
}

TEST(RpcConnection, AResetIsUnavailableAndSaysHow) {
  const absl::Status status = CallAnsweredWith(Frame(kSettings, 0, 0, "") +
                                               Frame(kReset, 0, 1, std::string("\0\0\0\7", 4)));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("REFUSED_STREAM"), absl::string_view::npos) << status;
}

TEST(RpcConnection, ACompressedOrEndlessMessageIsRefused) {
  for (const std::string& prefix :
       {std::string("\1\0\0\0\0", 5), std::string("\0\xff\xff\xff\xff", 5)}) {
    const absl::Status status =
        CallAnsweredWith(Frame(kSettings, 0, 0, "") + Frame(kHeaders, kEndHeaders, 1, kStatus200) +
                         Frame(kData, 0, 1, prefix));
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  }
}

TEST(RpcConnection, RandomBytesAreNeverMoreThanAnError) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 300; ++i) {
    std::string bytes;
    if (i % 3 != 0) bytes = Frame(kSettings, 0, 0, "");
    for (uint64_t frames = random() % 5; frames > 0; --frames) {
      std::string payload(random() % 50, 0);
      for (char& c : payload) c = static_cast<char>(random());
      if (i % 2 == 0) {
        payload = Frame(static_cast<uint8_t>(random() % 10), static_cast<uint8_t>(random()),
                        static_cast<uint32_t>(random() % 4), payload);
      }
      bytes += payload;
    }
    EXPECT_FALSE(CallAnsweredWith(bytes).ok());
  }
}

}  // namespace
}  // namespace spanpool::internal

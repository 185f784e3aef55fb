#include "client/exchange_stream.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/rpc_connection.h"
#include "spanpool/v1/pool.grpc.pb.h"

namespace spanpool::internal {
namespace {

using Stream = grpc::ServerReaderWriter<v1::ExchangeResponse, v1::ExchangeRequest>;

// A daemon that does as the test says.
class ScriptedPool : public v1::Pool::Service {
 public:
  using Script = std::function<grpc::Status(grpc::ServerContext*, Stream*)>;

  ScriptedPool() {
    char directory[] = "/tmp/exchange_stream_test.XXXXXX";
    directory_ = mkdtemp(directory);
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address(), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~ScriptedPool() override {
    StopServer();
    rmdir(directory_.c_str());
  }
  void StopServer() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_ = nullptr;
  }

  std::string address() const { return "unix:" + directory_ + "/grpc.sock"; }
  std::shared_ptr<RpcConnection> NewConnection() {
    return std::make_shared<RpcConnection>(directory_ + "/grpc.sock");
  }

  Script script;

 private:
  grpc::Status Exchange(grpc::ServerContext* context, Stream* stream) override {
    return script(context, stream);
  }

  std::string directory_;
  std::unique_ptr<grpc::Server> server_;
};

// Answers each request with one grant, whose sequence number is the request's first return.
grpc::Status Echo(grpc::ServerContext*, Stream* stream) {
  v1::ExchangeRequest request;
  while (stream->Read(&request)) {
    v1::ExchangeResponse response;
    response.set_request_id(request.request_id());
    response.add_grants()->set_sequence(request.returns(0).grant_sequence());
    stream->Write(response);
  }
  return grpc::Status::OK;
}

v1::ExchangeRequest RequestOf(uint64_t sequence) {
  v1::ExchangeRequest request;
  request.add_returns()->set_grant_sequence(sequence);
  return request;
}

absl::Time Soon() { return absl::Now() + absl::Minutes(1); }

const ExchangeStream::AnswerHandler kNoOrphans = [](const v1::ExchangeResponse&, bool awaited) {
  EXPECT_TRUE(awaited) << "an answer nobody waits for";
};

TEST(ExchangeStream, TheTokenTravelsAsMetadataAndTheAnswerComesBack) {
  ScriptedPool pool;
  const std::string token("\0\1\2\3\4\5\6\7\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8", 16);
  pool.script = [&](grpc::ServerContext* context, Stream* stream) {
    const auto it = context->client_metadata().find("spanpool-token-bin");
    EXPECT_NE(it, context->client_metadata().end());
    EXPECT_EQ(std::string(it->second.data(), it->second.size()), token);
    return Echo(context, stream);
  };
  ExchangeStream stream(pool.NewConnection(), token, kNoOrphans);
  for (uint64_t i = 1; i <= 100; ++i) {
    auto response = stream.Exchange(RequestOf(i), Soon());
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->grants(0).sequence(), i);
  }
  EXPECT_FALSE(stream.failed());
}

TEST(ExchangeStream, ManyThreadsEachGetTheirOwnAnswer) {
  ScriptedPool pool;
  pool.script = &Echo;
  ExchangeStream stream(pool.NewConnection(), "token", kNoOrphans);
  std::vector<std::thread> threads;
  for (uint64_t t = 1; t <= 8; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; i <= 200; ++i) {
        auto response = stream.Exchange(RequestOf(t * 1000 + i), Soon());
        ASSERT_TRUE(response.ok()) << response.status();
        ASSERT_EQ(response->grants(0).sequence(), t * 1000 + i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ExchangeStream, AnAnswerThatComesTooLateIsTheHandlersAlone) {
  ScriptedPool pool;
  std::mutex mu;
  std::condition_variable changed;
  bool answer = false;
  pool.script = [&](grpc::ServerContext* context, Stream* stream) {
    std::unique_lock<std::mutex> lock(mu);
    changed.wait(lock, [&] { return answer; });
    lock.unlock();
    return Echo(context, stream);
  };
  uint64_t orphan = 0;
  ExchangeStream stream(pool.NewConnection(), "token",
                        [&](const v1::ExchangeResponse& answer, bool awaited) {
                          if (!awaited) orphan = answer.grants(0).sequence();
                        });
  EXPECT_EQ(stream.Exchange(RequestOf(7), absl::Now() + absl::Milliseconds(20)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(stream.failed());
  {
    std::lock_guard<std::mutex> lock(mu);
    answer = true;
    changed.notify_all();
  }
  auto response = stream.Exchange(RequestOf(8), Soon());
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->grants(0).sequence(), 8u);
  EXPECT_EQ(orphan, 7u);
}

TEST(ExchangeStream, WhatIsSentBeforeTheFirstExchangeIsAnsweredBeforeItToTheHandler) {
  ScriptedPool pool;
  pool.script = &Echo;
  std::vector<uint64_t> answers;
  ExchangeStream stream(pool.NewConnection(), "token",
                        [&](const v1::ExchangeResponse& answer, bool awaited) {
                          EXPECT_EQ(awaited, answer.grants(0).sequence() == 3);
                          answers.push_back(answer.grants(0).sequence());
                        });
  stream.Send(RequestOf(1));
  stream.Send(RequestOf(2));
  ASSERT_TRUE(stream.Exchange(RequestOf(3), Soon()).ok());
  EXPECT_EQ(answers, (std::vector<uint64_t>{1, 2, 3}));
}

TEST(ExchangeStream, ARefusedStreamFailsWithTheDaemonsWords) {
  ScriptedPool pool;
  pool.script = [](grpc::ServerContext*, Stream*) {
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "attach again");
  };
  ExchangeStream stream(pool.NewConnection(), "token", kNoOrphans);
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = stream.Exchange(RequestOf(1), Soon()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(status.message(), "attach again");
    EXPECT_TRUE(stream.failed());
  }
}

TEST(ExchangeStream, WhenTheDaemonGoesEveryWaitingThreadIsTold) {
  ScriptedPool pool;
  std::atomic<int> received{0};
  pool.script = [&](grpc::ServerContext*, Stream* stream) {
    v1::ExchangeRequest request;
    while (stream->Read(&request)) ++received;
    return grpc::Status::OK;
  };
  ExchangeStream stream(pool.NewConnection(), "token", kNoOrphans);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] { EXPECT_FALSE(stream.Exchange(RequestOf(1), Soon()).ok()); });
  }
  while (received != 4) std::this_thread::yield();
  pool.StopServer();
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(stream.failed());
}

TEST(ExchangeStream, WithoutADaemonAnExchangeFails) {
  ExchangeStream stream(std::make_shared<RpcConnection>("/nonexistent/grpc.sock"), "token",
                        kNoOrphans);
  EXPECT_EQ(stream.Exchange(RequestOf(1), Soon()).status().code(), absl::StatusCode::kUnavailable);
}

TEST(ExchangeStream, CanBeDestroyedWithAnswersOutstanding) {
  ScriptedPool pool;
  std::atomic<bool> received{false};
  pool.script = [&](grpc::ServerContext*, Stream* stream) {
    v1::ExchangeRequest request;
    while (stream->Read(&request)) received = true;
    return grpc::Status::OK;
  };
  ExchangeStream stream(pool.NewConnection(), "token", kNoOrphans);
  // However long it takes to connect, the request is on its way and unanswered.
  while (!received) {
    EXPECT_EQ(stream.Exchange(RequestOf(1), absl::Now() + absl::Milliseconds(1)).status().code(),
              absl::StatusCode::kDeadlineExceeded);
  }
}

}  // namespace
}  // namespace spanpool::internal

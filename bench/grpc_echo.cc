#include "bench/grpc_echo.h"

#include <signal.h>

#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/child.h"

namespace spanpool::bench {
namespace {

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  // Clients do not share a connection, as sessions do not.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

absl::StatusOr<std::unique_ptr<EchoServer>> EchoServer::Start(const std::string& api) {
  std::unique_ptr<EchoServer> server(new EchoServer(testing::TemporaryDirectory(), api));
  if (server->process_.ReadLine() != "READY") {
    return absl::AbortedError(absl::StrCat(
        "the ", api, " echo server did not start: ", server->process_.standard_error()));
  }
  return server;
}

EchoServer::EchoServer(std::string folder, const std::string& api)
    : folder_(std::move(folder)),
      process_(std::vector<std::string>{BuiltPath("bench/grpc_echo_server"), api,
                                        folder_ + "/echo.sock"}) {}

EchoServer::~EchoServer() {
  process_.Signal(SIGKILL);
  process_.Wait();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

EchoClient::EchoClient(const std::string& address) : stub_(Echo::NewStub(Connect(address))) {}

EchoClient::~EchoClient() {
  if (stream_ == nullptr) return;
  stream_context_.TryCancel();
  stream_->Finish();
}

absl::Status EchoClient::Call() {
  grpc::ClientContext context;
  const grpc::Status status = stub_->Call(&context, EchoMessage(), &message_);
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Status EchoClient::Talk() {
  if (stream_ == nullptr) stream_ = stub_->Talk(&stream_context_);
  if (!stream_->Write(message_) || !stream_->Read(&message_)) {
    return absl::UnavailableError("the echo stream has ended");
  }
  return absl::OkStatus();
}

}  // namespace spanpool::bench

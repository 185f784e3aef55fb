// The floor under everything that goes over gRPC: empty messages to another process and back, over
// a unix socket as the daemon's.
//
// EchoServer runs grpc_echo_server with one of gRPC's server APIs; EchoClient talks to it, always
// by the synchronous client API, on a connection of its own.

#ifndef SPANPOOL_BENCH_GRPC_ECHO_H_
#define SPANPOOL_BENCH_GRPC_ECHO_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/grpc_echo.grpc.pb.h"
#include "tests/support/process.h"

namespace spanpool::bench {

class EchoServer {
 public:
  // `api` is sync, completion_queue or callback. Returns once it serves.
  //   ABORTED  it does not
  static absl::StatusOr<std::unique_ptr<EchoServer>> Start(const std::string& api);
  // Kills the server and removes its socket's folder.
  ~EchoServer();
  EchoServer(const EchoServer&) = delete;
  EchoServer& operator=(const EchoServer&) = delete;

  // What gRPC calls the socket.
  std::string address() const { return "unix:" + folder_ + "/echo.sock"; }

 private:
  EchoServer(std::string folder, const std::string& api);

  const std::string folder_;
  testing::Process process_;
};

// Not thread-safe.
class EchoClient {
 public:
  // Connects with the first call.
  explicit EchoClient(const std::string& address);
  ~EchoClient();
  EchoClient(const EchoClient&) = delete;
  EchoClient& operator=(const EchoClient&) = delete;

  // One call there and back.
  //   gRPC's status, if it failed
  absl::Status Call();
  // One message there and back on this client's stream, which is opened with the first.
  //   UNAVAILABLE  the stream has ended
  absl::Status Talk();

 private:
  const std::unique_ptr<Echo::Stub> stub_;
  grpc::ClientContext stream_context_;
  std::unique_ptr<grpc::ClientReaderWriter<EchoMessage, EchoMessage>> stream_;
  EchoMessage message_;
};

}  // namespace spanpool::bench

#endif  // SPANPOOL_BENCH_GRPC_ECHO_H_

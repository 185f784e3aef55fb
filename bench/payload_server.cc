// The peer of suite payload: reads payloads that come by handle or as bytes, and answers their sum.
//
// usage: payload_server SOCKET
//
// Attached to the pool at SPANPOOL_TARGET. Serves on the unix socket and says READY; ends when its
// standard input does.

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "bench/payload.grpc.pb.h"
#include "bench/word_sum.h"
#include "spanpool/grpc_payload.h"
#include "spanpool/spanpool.h"

namespace spanpool::bench {
namespace {

class ReaderService final : public Reader::Service {
 public:
  explicit ReaderService(Session* session) : receiver_(session) {}

  grpc::Status ReadPayload(grpc::ServerContext* context, const PayloadRequest* request,
                           ReadReply* reply) override {
    ReceivedPayload payload;
    grpc::Status received = receiver_.Receive(context, request->payload(), &payload);
    if (!received.ok()) return received;
    reply->set_sum(WordSum(payload.span().data(), payload.size()));
    reply->set_in_pool(payload.in_pool());
    return grpc::Status::OK;
  }
  grpc::Status ReadBytes(grpc::ServerContext*, const BytesRequest* request,
                         ReadReply* reply) override {
    reply->set_sum(WordSum(request->payload().data(), request->payload().size()));
    return grpc::Status::OK;
  }

 private:
  PayloadReceiver receiver_;
};

int Serve(const std::string& socket) {
  const auto session = Session::Attach({});
  if (!session.ok()) {
    std::cerr << session.status() << "\n";
    return 1;
  }
  ReaderService service(session->get());
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    std::cerr << "cannot serve on " << socket << "\n";
    return 1;
  }
  std::cout << "READY" << std::endl;
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  // Nothing is worth an orderly end here: whoever measured is done.
  _exit(0);
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: payload_server SOCKET\n";
    return 2;
  }
  return spanpool::bench::Serve(argv[1]);
}

// Tells how bright images are, to callers of this host and of others.
//
//   server ADDRESS      what gRPC can listen at: unix:/tmp/brightness.sock, 0.0.0.0:50051

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <iostream>
#include <memory>
#include <numeric>

#include "examples/grpc/brightness.grpc.pb.h"
#include "spanpool/grpc_payload.h"
#include "spanpool/spanpool.h"

namespace {

class BrightnessService final : public brightness::Brightness::Service {
 public:
  explicit BrightnessService(spanpool::Session* session) : receiver_(session) {}

  grpc::Status Measure(grpc::ServerContext* context, const brightness::MeasureRequest* request,
                       brightness::MeasureReply* reply) override {
    spanpool::ReceivedPayload image;
    grpc::Status received = receiver_.Receive(context, request->image(), &image);
    if (!received.ok()) return received;
    if (image.size() == 0) return {grpc::StatusCode::INVALID_ARGUMENT, "no pixels"};

    const uint64_t sum = std::accumulate(
        image.span().begin(), image.span().end(), uint64_t{0},
        [](uint64_t so_far, std::byte pixel) { return so_far + std::to_integer<uint8_t>(pixel); });
    reply->set_mean(static_cast<double>(sum) / static_cast<double>(image.size()));
    reply->set_in_pool(image.in_pool());
    return grpc::Status::OK;
  }  // `image` goes, and with it the block

 private:
  spanpool::PayloadReceiver receiver_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::cerr << "usage: server ADDRESS\n", 2;

  // Without a pool the service is the same, only slower.
  auto session = spanpool::Session::Attach({});
  if (!session.ok()) std::cerr << "server: without a pool: " << session.status() << std::endl;
  BrightnessService service(session.ok() ? session->get() : nullptr);

  grpc::ServerBuilder builder;
  builder.AddListeningPort(argv[1], grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return std::cerr << "server: cannot listen at " << argv[1] << "\n", 1;
  std::cout << "READY" << std::endl;
  server->Wait();
}

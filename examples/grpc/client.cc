// Asks a server, wherever it is, how bright some images are.
//
//   client ADDRESS IMAGES

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "examples/grpc/brightness.grpc.pb.h"
#include "spanpool/grpc_payload.h"
#include "spanpool/spanpool.h"

namespace {
constexpr size_t kPixels = 1920 * 1080;
}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::cerr << "usage: client ADDRESS IMAGES\n", 2;
  const int images = std::atoi(argv[2]);

  auto session = spanpool::Session::Attach({});
  if (!session.ok()) return std::cerr << "client: " << session.status() << "\n", 1;
  const auto stub = brightness::Brightness::NewStub(
      grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  spanpool::PayloadSender sender;  // it learns what this channel's peer can open

  for (int number = 0; number < images; ++number) {
    auto image = (*session)->Allocate(kPixels);
    if (!image.ok()) return std::cerr << "client: " << image.status() << "\n", 1;
    std::fill_n(image->data(), kPixels, static_cast<std::byte>(number));

    brightness::MeasureRequest request;
    brightness::MeasureReply reply;
    const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(10);
    const grpc::Status status =
        sender.Call(*std::move(image), request.mutable_image(), [&](grpc::ClientContext* context) {
          context->set_deadline(deadline);
          context->set_wait_for_ready(true);  // the server may start later than we
          return stub->Measure(context, request, &reply);
        });
    // The image is still there: it could be sent to another server now.
    if (!status.ok()) return std::cerr << "client: " << status.error_message() << "\n", 1;
    std::cout << "image " << number << ": mean " << reply.mean()
              << (reply.in_pool() ? ", by handle" : ", as bytes") << std::endl;
  }
}

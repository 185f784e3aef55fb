// A gRPC service of somebody who has only the installed library, and a call of it that carries a
// handle.

#include <grpcpp/grpcpp.h>
#include <spanpool/grpc_payload.h>
#include <spanpool/spanpool.h>
#include <sum.grpc.pb.h>

#include <cstddef>
#include <cstring>
#include <iostream>
#include <numeric>
#include <string>
#include <utility>

class SumService final : public stranger::Sum::Service {
 public:
  explicit SumService(spanpool::Session* session) : receiver_(session) {}
  grpc::Status Add(grpc::ServerContext* context, const stranger::AddRequest* request,
                   stranger::AddReply* reply) override {
    spanpool::ReceivedPayload numbers;
    grpc::Status received = receiver_.Receive(context, request->numbers(), &numbers);
    if (!received.ok()) return received;
    uint64_t sum = 0;
    for (const std::byte number : numbers.span()) sum += std::to_integer<uint64_t>(number);
    reply->set_sum(sum);
    reply->set_in_pool(numbers.in_pool());
    return grpc::Status::OK;
  }

 private:
  spanpool::PayloadReceiver receiver_;
};

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string address = std::string("unix:") + argv[1];
  auto session = spanpool::Session::Attach({});
  if (!session.ok()) return std::cerr << session.status() << "\n", 1;
  SumService service(session->get());
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return std::cerr << "cannot listen at " << address << "\n", 1;

  auto stub =
      stranger::Sum::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  auto numbers = (*session)->Allocate(1 << 20);
  if (!numbers.ok()) return std::cerr << numbers.status() << "\n", 1;
  std::memset(numbers->data(), 3, numbers->size());
  spanpool::PayloadSender sender;
  stranger::AddRequest request;
  stranger::AddReply reply;
  const grpc::Status status = sender.Call(
      *std::move(numbers), request.mutable_numbers(),
      [&](grpc::ClientContext* context) { return stub->Add(context, request, &reply); });
  if (!status.ok()) return std::cerr << status.error_message() << "\n", 1;
  std::cout << reply.sum() << (reply.in_pool() ? " by handle\n" : " as bytes\n");
}

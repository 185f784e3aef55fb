// One gRPC call that hands a filled buffer to a process of the same host, which reads it: by handle
// and as a `bytes` field.

#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/child.h"
#include "bench/harness.h"
#include "bench/payload.grpc.pb.h"
#include "bench/pool_daemon.h"
#include "bench/word_sum.h"
#include "spanpool/grpc_payload.h"
#include "spanpool/spanpool.h"
#include "tests/support/process.h"

namespace spanpool::bench {
namespace {

constexpr size_t kSizes[] = {65536, 1048576, 16777216, 67108864};
// Backed ahead of time: how fast the kernel supplies pages is not in question here.
constexpr uint64_t kPoolBytes = 512 << 20;

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// A different one each time, so that no answer can be an earlier one's.
void FillBuffer(void* data, size_t bytes, uint64_t seed) {
  auto* const words = static_cast<char*>(data);
  for (size_t at = 0; at < bytes; at += sizeof(seed)) {
    const uint64_t word = seed + at;
    std::memcpy(words + at, &word, sizeof(word));
  }
}

// A daemon, the peer, and this process attached to the pool and connected to the peer.
class Peers {
 public:
  static absl::StatusOr<std::shared_ptr<Peers>> Start() {
    auto daemon = PoolDaemon::Start({.limit_bytes = 2 * kPoolBytes, .reserve_bytes = kPoolBytes});
    if (!daemon.ok()) return daemon.status();
    std::shared_ptr<Peers> peers(new Peers(*std::move(daemon)));
    if (peers->server_.ReadLine() != "READY") {
      return absl::AbortedError(absl::StrCat("the payload server did not start: ",
                                             LastLine(peers->server_.standard_error())));
    }
    auto session = Session::Attach({.target = peers->daemon_->target()});
    if (!session.ok()) return session.status();
    peers->session_ = *std::move(session);
    return peers;
  }
  ~Peers() {
    server_.Signal(SIGKILL);
    server_.Wait();
  }

  // Each hands over `bytes` bytes once and returns the seconds that took, from the filled buffer to
  // the answer.
  absl::StatusOr<double> HandOver(size_t bytes) {
    double seconds = -NowNs(TimeOf::kWall) / 1e9;
    absl::StatusOr<Buffer> buffer = session_->Allocate(bytes);
    seconds += NowNs(TimeOf::kWall) / 1e9;
    if (!buffer.ok()) return buffer.status();
    FillBuffer(buffer->data(), bytes, ++seed_);
    const uint64_t sum = WordSum(buffer->data(), bytes);

    PayloadRequest request;
    ReadReply reply;
    seconds -= NowNs(TimeOf::kWall) / 1e9;
    const grpc::Status status = sender_.Call(
        *std::move(buffer), request.mutable_payload(),
        [&](grpc::ClientContext* context) { return stub_->ReadPayload(context, request, &reply); });
    seconds += NowNs(TimeOf::kWall) / 1e9;
    if (!status.ok()) return ToAbsl(status);
    if (!reply.in_pool()) return absl::InternalError("the payload was sent as bytes");
    if (reply.sum() != sum) return absl::DataLossError("the peer read something else");
    return seconds;
  }
  absl::StatusOr<double> SendBytes(size_t bytes) {
    // The field is the buffer, and it is used again: nothing is copied or allocated to fill it.
    std::string& field = *request_.mutable_payload();
    field.resize(bytes);
    FillBuffer(field.data(), bytes, ++seed_);
    const uint64_t sum = WordSum(field.data(), bytes);

    grpc::ClientContext context;
    ReadReply reply;
    const double start = NowNs(TimeOf::kWall);
    const grpc::Status status = stub_->ReadBytes(&context, request_, &reply);
    const double seconds = (NowNs(TimeOf::kWall) - start) / 1e9;
    if (!status.ok()) return ToAbsl(status);
    if (reply.sum() != sum) return absl::DataLossError("the peer read something else");
    return seconds;
  }

 private:
  explicit Peers(std::unique_ptr<PoolDaemon> daemon)
      : daemon_(std::move(daemon)),
        socket_(daemon_->target() + "/payload.sock"),
        server_({BuiltPath("bench/payload_server"), socket_},
                {.uid = 0, .environment = {{"SPANPOOL_TARGET", daemon_->target()}}}),
        stub_(Reader::NewStub(
            grpc::CreateChannel("unix:" + socket_, grpc::InsecureChannelCredentials()))) {}

  const std::unique_ptr<PoolDaemon> daemon_;
  const std::string socket_;
  testing::Process server_;
  const std::unique_ptr<Reader::Stub> stub_;
  std::unique_ptr<Session> session_;
  PayloadSender sender_;
  BytesRequest request_;
  uint64_t seed_ = 0;
};

using Handing = absl::StatusOr<double> (Peers::*)(size_t);

// The peers are started by the first round of all.
Round Throughput(const std::shared_ptr<std::shared_ptr<Peers>>& peers, Handing hand, size_t bytes,
                 size_t volume) {
  return [=]() -> absl::StatusOr<Metrics> {
    if (*peers == nullptr) {
      absl::StatusOr<std::shared_ptr<Peers>> started = Peers::Start();
      if (!started.ok()) return started.status();
      *peers = *started;
    }
    const size_t calls = std::max<size_t>(volume / bytes, 2);
    double seconds = 0;
    for (size_t call = 0; call < calls; ++call) {
      const absl::StatusOr<double> took = ((**peers).*hand)(bytes);
      if (!took.ok()) return took.status();
      seconds += *took;
    }
    return Metrics{{"gb_per_s", "GB/s", static_cast<double>(calls * bytes) / seconds / 1e9}};
  };
}

void Fill(Suite& suite, const std::vector<std::string>&) {
  // How much each round hands over.
  const size_t volume = suite.quick() ? 32 << 20 : 256 << 20;
  const auto peers = std::make_shared<std::shared_ptr<Peers>>();
  for (const size_t bytes : kSizes) {
    const std::string name = std::to_string(bytes);
    suite.Add(name, "spanpool", Throughput(peers, &Peers::HandOver, bytes, volume));
    suite.Add(name, "grpc_bytes_field", Throughput(peers, &Peers::SendBytes, bytes, volume));
  }
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::SuiteMain(argc, argv, "payload", spanpool::bench::Fill);
}

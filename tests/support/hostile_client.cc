#include "tests/support/hostile_client.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message_lite.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "proto/layout/run_dir.h"

namespace spanpool::testing {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

// A message whose bytes are whatever they are.
class RawMessage : public google::protobuf::MessageLite {
 public:
  explicit RawMessage(std::string bytes) : bytes_(std::move(bytes)) {}

  std::string GetTypeName() const override { return "RawMessage"; }
  MessageLite* New(google::protobuf::Arena*) const override { return new RawMessage(""); }
  void Clear() override { bytes_.clear(); }
  bool IsInitialized() const override { return true; }
  void CheckTypeAndMergeFrom(const MessageLite& other) override {
    bytes_ += static_cast<const RawMessage&>(other).bytes_;
  }
  size_t ByteSizeLong() const override { return bytes_.size(); }
  int GetCachedSize() const override { return static_cast<int>(bytes_.size()); }
  uint8_t* _InternalSerialize(uint8_t* target,
                              google::protobuf::io::EpsCopyOutputStream* stream) const override {
    return stream->WriteRaw(bytes_.data(), static_cast<int>(bytes_.size()), target);
  }

 private:
  std::string bytes_;
};

void* Map(int fd, size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) Broken(std::string("mmap: ") + strerror(errno));
  return memory;
}

}  // namespace

void Broken(const std::string& what) {
  std::fprintf(stderr, "hostile client: %s\n", what.c_str());
  _exit(3);
}

HostileClient::HostileClient(const std::string& run_dir)
    : socket_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = run_dir + "/" + layout::kAttachSocketName;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  if (connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    Broken(std::string("connect: ") + strerror(errno));
  }
  const timeval patience{.tv_sec = absl::ToInt64Seconds(kPatience), .tv_usec = 0};
  setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
}

bool HostileClient::Send(std::span<const std::byte> bytes, std::span<const int> fds) {
  return layout::SendPacket(socket_.get(), bytes, fds).ok();
}

std::optional<HostileClient::Answer> HostileClient::Receive() {
  // Each reply begins with the header and the code.
  struct Beginning {
    layout::AttachHeader header;
    int32_t code;
  };
  std::array<std::byte, layout::kMaxAttachMessageBytes> buffer{};
  absl::StatusOr<layout::Packet> packet = layout::ReceivePacket(socket_.get(), buffer);
  if (!packet.ok() || packet->bytes < sizeof(Beginning)) return std::nullopt;
  Beginning beginning;
  std::memcpy(&beginning, buffer.data(), sizeof(beginning));
  return Answer{beginning.header.type, beginning.code, std::move(packet->fds)};
}

void HostileClient::Attach(const std::string& pool, layout::AccessMode access) {
  layout::AttachRequest request;
  std::strncpy(request.pool, pool.c_str(), sizeof(request.pool) - 1);
  request.access = access;
  if (!SendMessage(request)) Broken("the daemon closed the connection before it attached");
  auto packet = layout::ReceivePacket(socket_.get(), std::as_writable_bytes(std::span(&reply_, 1)));
  if (!packet.ok() || packet->bytes != sizeof(reply_) || reply_.code != 0 ||
      packet->fds.size() != 2) {
    Broken(std::string("cannot attach: ") + reply_.message);
  }
  segment_fd_ = std::move(packet->fds[0]);
  control_fd_ = std::move(packet->fds[1]);
  segment_ =
      static_cast<layout::SessionSegment*>(Map(segment_fd_.get(), layout::kSessionSegmentBytes));
}

std::string HostileClient::token() const {
  return std::string(reinterpret_cast<const char*>(reply_.token), sizeof(reply_.token));
}

const HostileClient::Arena* HostileClient::MapArena(uint32_t index) {
  layout::ArenaRequest request;
  request.arena = index;
  if (!SendMessage(request)) return nullptr;
  std::optional<Answer> answer = Receive();
  if (!answer || answer->code != 0 || answer->fds.size() != 2) return nullptr;
  auto arena = std::make_unique<Arena>();
  arena->data_fd = std::move(answer->fds[0]);
  arena->table_fd = std::move(answer->fds[1]);
  arena->data = static_cast<std::byte*>(Map(arena->data_fd.get(), kArenaBytes));
  arena->table =
      static_cast<layout::BlockTable*>(Map(arena->table_fd.get(), layout::kBlockTableBytes));
  arenas_.push_back(std::move(arena));
  return arenas_.back().get();
}

HostileCall::HostileCall(internal::RpcConnection* connection, const std::string& method,
                         const std::string& token)
    : connection_(connection) {
  RankedMutexLock lock(connection_->mutex());
  internal::RpcConnection::Metadata metadata;
  if (!token.empty()) metadata.emplace_back("spanpool-token-bin", token);
  const auto call = connection_->Start(method, metadata, this);
  if (call.ok()) {
    call_ = *call;
  } else {
    OnEnd(call.status());
  }
}

HostileCall::~HostileCall() {
  RankedMutexLock lock(connection_->mutex());
  connection_->Cancel(call_);
}

void HostileCall::Send(const google::protobuf::MessageLite& message) {
  RankedMutexLock lock(connection_->mutex());
  if (!ended_) connection_->Send(call_, message);
}

void HostileCall::SendBytes(const std::string& bytes) { Send(RawMessage(bytes)); }

void HostileCall::SendEnd() {
  RankedMutexLock lock(connection_->mutex());
  if (!ended_) connection_->SendEnd(call_);
}

void HostileCall::RunUntilNews() {
  RankedMutexLock lock(connection_->mutex());
  const auto news = [this] { return ended_ || received_ < messages_.size(); };
  connection_->RunUntil(absl::Condition(&news), absl::Now() + kPatience);
}

std::optional<std::string> HostileCall::Receive() {
  RunUntilNews();
  if (received_ == messages_.size()) return std::nullopt;
  return messages_[received_++];
}

absl::Status HostileCall::End() {
  while (!ended_ && Receive()) {
  }
  return end_;
}

std::optional<v1::ExchangeResponse> HostileExchange::Exchange(const v1::ExchangeRequest& request) {
  Send(request);
  const std::optional<std::string> bytes = Receive();
  if (!bytes) return std::nullopt;
  v1::ExchangeResponse response;
  if (!response.ParseFromString(*bytes)) Broken("the daemon's answer is no ExchangeResponse");
  return response;
}

v1::ExchangeResponse HostileExchange::Must(const v1::ExchangeRequest& request) {
  std::optional<v1::ExchangeResponse> response = Exchange(request);
  if (!response) Broken("the stream ended: " + End().ToString());
  return *std::move(response);
}

v1::ExchangeRequest Want(uint32_t span_class, uint32_t spans, uint64_t pages,
                         uint64_t alignment_pages) {
  v1::ExchangeRequest request;
  v1::SpanWant* const want = request.add_wants();
  want->set_span_class(span_class);
  want->set_spans(spans);
  want->set_pages(pages);
  want->set_alignment_pages(alignment_pages);
  return request;
}

}  // namespace spanpool::testing

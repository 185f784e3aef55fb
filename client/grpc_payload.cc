#include "spanpool/grpc_payload.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace spanpool {
namespace {

// Trailing metadata of a call that had a handle and is to be made again with the bytes.
// spanpool/v1/payload.proto promises it to implementations that are not this one.
constexpr char kWantsKey[] = "spanpool-payload";
constexpr char kWantsBytes[] = "bytes";

constexpr absl::Duration kLongestPause = absl::Seconds(64);

int64_t NowNs() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool WantsBytes(const grpc::Status& status, const grpc::ClientContext& context) {
  if (status.ok()) return false;
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto found = metadata.find(kWantsKey);
  return found != metadata.end() && found->second == kWantsBytes;
}

// Whether `peer`, as gRPC writes addresses, is of this host for certain. An "fd:" is a connection
// that the server accepted itself and handed to gRPC: that can be anybody's.
bool IsOfThisHost(const std::string& peer) {
  for (const char* start : {"unix:", "unix-abstract:", "ipv4:127.", "ipv6:[::1]:",
                            "ipv6:%5B::1%5D:", "ipv6:[::ffff:127.", "ipv6:%5B::ffff:127."}) {
    if (absl::StartsWith(peer, start)) return true;
  }
  return false;
}

}  // namespace

bool OutgoingPayload::Finish(const grpc::Status& status, const grpc::ClientContext& context) {
  const bool by_handle = std::exchange(by_handle_, false);
  if (status.ok()) {
    if (by_handle) sender_->NoteOpened();
    buffer_ = Buffer();
    return false;
  }
  if (!by_handle || !WantsBytes(status, context)) return false;
  sender_->NoteRefused();
  sender_->PutBytes(buffer_, message_);
  return true;
}

grpc::Status PayloadSender::Call(Buffer&& buffer, v1::Payload* message,
                                 absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call) {
  OutgoingPayload outgoing = Put(std::move(buffer), message);
  grpc::Status status;
  bool again = true;
  while (again) {
    grpc::ClientContext context;
    status = call(&context);
    again = outgoing.Finish(status, context);
  }
  message->Clear();
  buffer = std::move(outgoing).TakeBuffer();
  return status;
}

OutgoingPayload PayloadSender::Put(Buffer&& buffer, v1::Payload* message) {
  OutgoingPayload outgoing;
  outgoing.sender_ = this;
  outgoing.message_ = message;
  outgoing.buffer_ = std::move(buffer);
  if (outgoing.buffer_.size() > options_.inline_bytes && PrefersHandles()) {
    // What cannot be shared can still be copied.
    if (const absl::StatusOr<Handle> handle = outgoing.buffer_.Share(); handle.ok()) {
      message->mutable_handle()->set_low(handle->bits[0]);
      message->mutable_handle()->set_high(handle->bits[1]);
      outgoing.by_handle_ = true;
      handles_.fetch_add(1, std::memory_order_relaxed);
      return outgoing;
    }
  }
  PutBytes(outgoing.buffer_, message);
  return outgoing;
}

void PayloadSender::PutBytes(const Buffer& buffer, v1::Payload* message) {
  message->set_bytes(buffer.data(), buffer.size());
  bytes_.fetch_add(1, std::memory_order_relaxed);
}

bool PayloadSender::PrefersHandles() const {
  const int64_t until = bytes_until_ns_.load(std::memory_order_relaxed);
  return until == INT64_MIN || NowNs() >= until;
}

void PayloadSender::NoteOpened() { pause_ns_.store(0, std::memory_order_relaxed); }

void PayloadSender::NoteRefused() {
  refused_.fetch_add(1, std::memory_order_relaxed);
  const int64_t first = absl::ToInt64Nanoseconds(options_.first_pause);
  const int64_t longest = std::max(first, absl::ToInt64Nanoseconds(kLongestPause));
  const int64_t pause = std::clamp(pause_ns_.load(std::memory_order_relaxed) * 2, first, longest);
  pause_ns_.store(pause, std::memory_order_relaxed);
  bytes_until_ns_.store(NowNs() + pause, std::memory_order_relaxed);
}

PayloadSenderStats PayloadSender::stats() const {
  return {.handles = handles_.load(std::memory_order_relaxed),
          .bytes = bytes_.load(std::memory_order_relaxed),
          .refused = refused_.load(std::memory_order_relaxed)};
}

absl::StatusOr<Buffer> ReceivedPayload::TakeBuffer(Session& session) && {
  const absl::Span<const std::byte> bytes = std::exchange(span_, {});
  if (in_pool()) return std::move(buffer_);
  absl::StatusOr<Buffer> copy = session.Allocate(bytes.size());
  if (copy.ok()) std::copy(bytes.begin(), bytes.end(), copy->data());
  return copy;
}

grpc::Status PayloadReceiver::Receive(grpc::ServerContextBase* context, const v1::Payload& message,
                                      ReceivedPayload* received) {
  *received = ReceivedPayload();
  switch (message.content_case()) {
    case v1::Payload::kBytes:
      received->span_ = absl::MakeConstSpan(
          reinterpret_cast<const std::byte*>(message.bytes().data()), message.bytes().size());
      return grpc::Status::OK;
    case v1::Payload::kHandle:
      break;
    case v1::Payload::CONTENT_NOT_SET:
      return {grpc::StatusCode::INVALID_ARGUMENT, "there is no payload in the message"};
  }
  std::string why;
  if (session_ == nullptr) {
    why = "this server has no pool";
  } else if (!options_.any_address && !IsOfThisHost(context->peer())) {
    why = absl::StrCat("the caller, ", context->peer(), ", is not of this host");
  } else {
    absl::StatusOr<Buffer> opened =
        session_->Open(Handle{{message.handle().low(), message.handle().high()}});
    if (opened.ok()) {
      received->buffer_ = *std::move(opened);
      received->span_ = std::as_const(received->buffer_).span();
      return grpc::Status::OK;
    }
    why = opened.status().ToString();
  }
  context->AddTrailingMetadata(kWantsKey, kWantsBytes);
  return {grpc::StatusCode::FAILED_PRECONDITION,
          absl::StrCat("the payload's handle cannot be opened (", why, "); send the bytes")};
}

}  // namespace spanpool

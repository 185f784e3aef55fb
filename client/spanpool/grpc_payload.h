// Payloads of gRPC calls: a handle to a peer on the same host, the bytes to any other, by the same
// stub and the same client code.
//
// A service's .proto says spanpool.v1.Payload where it would say bytes:
//
//   import "spanpool/v1/payload.proto";
//   message ThumbnailRequest { spanpool.v1.Payload image = 1; }
//
// The client:
//
//   PayloadSender sender;  // one for each grpc::Channel
//   grpc::Status status =
//       sender.Call(std::move(buffer), request.mutable_image(), [&](grpc::ClientContext* context) {
//         context->set_deadline(deadline);
//         return stub->Thumbnail(context, request, &reply);
//       });
//
// The server, before it does anything else in the call:
//
//   PayloadReceiver receiver(session.get());  // one for the server; null: no pool here
//   ReceivedPayload image;
//   grpc::Status received = receiver.Receive(context, request->image(), &image);
//   if (!received.ok()) return received;
//   … image.span() …
//
// **What decides.** A handle is its own question: who can open it is in the pool. So a sender sends
// handles until a peer says that it cannot open one. Such a call has done nothing yet, and is made
// again at once with the bytes; then bytes it is for a second, and for twice as long after each
// further refusal in a row, at most about a minute. A peer refuses if it has no pool, is in another
// one, cannot open more, or if the caller's address is not of this host (PayloadReceiver::Options).
// Blocks of at most Options::inline_bytes go as bytes anyway, and so does what cannot be shared.
// Remember gRPC's limit for messages, 4 MiB by default: bytes obey it, handles do not come near.
//
// **Who owns the block.** The client, until the call has ended; the peer too, from Receive() until
// it lets go. So nothing is ever under way without an owner: a call may fail, be cancelled, pass
// its deadline or be tried again by gRPC, and either process may be killed; the block is free again
// when the last of the two has let go or is dead. After a call that went well the client has let
// go. After one that failed it has the buffer as before, to be sent again, elsewhere perhaps; but a
// peer may have it as well, may even open it now, if it is late. Therefore:
//
// **Bytes that were in a call are not changed any more**, by either side, unless it knows that the
// other has let go.
//
// **Deadlines** and cancellation are the call's. Both tries of it should have one deadline, not one
// timeout each.
//
// **Requests only.** Nobody can make a reply again, with the bytes, for a client that could not
// open a handle, and a handler has gone when its reply arrives. A service whose replies are large
// lets its clients call with a name or a channel of theirs to have results published or sent.
//
// **Security.** Whoever may call a service from this host can name blocks to it, those that others
// share in its pool included. A handle is hard to guess, but no secret: a service that must not be
// fooled checks who calls, or is attached to a pool that only its callers are in.
//
// A library of its own, for who uses gRPC already; libspanpool does not. Installed: the component
// `grpc` of the CMake package (spanpool::grpc), pkg-config module spanpool-grpc. In this
// repository: Bazel target //client:grpc_payload.

#ifndef SPANPOOL_GRPC_PAYLOAD_H_
#define SPANPOOL_GRPC_PAYLOAD_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "spanpool/spanpool.h"
#include "spanpool/v1/payload.pb.h"

namespace spanpool {

class PayloadSender;

// One payload on its way, for calls that PayloadSender::Call does not fit: asynchronous ones, and
// streams. It holds the block; in a stream that goes on for long, drop it as soon as the peer has
// answered that it has the payload. Move-only, not thread-safe; used only while its sender lives.
class OutgoingPayload {
 public:
  OutgoingPayload() = default;
  OutgoingPayload(OutgoingPayload&&) = default;
  OutgoingPayload& operator=(OutgoingPayload&&) = default;

  // To be called when the call, or the stream, has ended. True: the peer refused the handle, and
  // the message holds the bytes now; make the call again, with another context, and then call this
  // again. True once at most. In a stream the messages before a refused one have been handled: the
  // caller knows whether they may be again.
  bool Finish(const grpc::Status& status, const grpc::ClientContext& context);
  // The buffer; empty after a call that went well.
  Buffer TakeBuffer() && { return std::move(buffer_); }

 private:
  friend class PayloadSender;

  PayloadSender* sender_ = nullptr;
  v1::Payload* message_ = nullptr;
  bool by_handle_ = false;
  Buffer buffer_;
};

struct PayloadSenderStats {
  uint64_t handles = 0;  // payloads sent by handle, refused ones included
  uint64_t bytes = 0;    // payloads sent as bytes, those sent again included
  uint64_t refused = 0;  // handles that peers could not open
};

// The client's side of one grpc::Channel. Thread-safe.
class PayloadSender {
 public:
  struct Options {
    // Up to this size a copy is as cheap as sharing.
    size_t inline_bytes = 4096;
    // How long to send bytes after the first refusal.
    absl::Duration first_pause = absl::Seconds(1);
  };
  PayloadSender() : PayloadSender(Options()) {}
  explicit PayloadSender(const Options& options) : options_(options) {}
  PayloadSender(const PayloadSender&) = delete;
  PayloadSender& operator=(const PayloadSender&) = delete;

  // Makes a call that carries `buffer` in `message`, a field of the request. `call` makes it, with
  // the context that it is given: once, or, if the peer refuses a handle, twice. Returns what the
  // last one returned.
  //
  // On OK the buffer is empty, else it is as before, but shared. `message` is left empty.
  grpc::Status Call(Buffer&& buffer, v1::Payload* message,
                    absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call);

  // Puts `buffer` into `message`, which lives until the OutgoingPayload has finished.
  OutgoingPayload Put(Buffer&& buffer, v1::Payload* message);

  PayloadSenderStats stats() const;

 private:
  friend class OutgoingPayload;

  bool PrefersHandles() const;
  void NoteOpened();
  void NoteRefused();
  void PutBytes(const Buffer& buffer, v1::Payload* message);

  const Options options_;

  // When to send handles again, by the steady clock, and how long they were not sent last.
  // relaxed: hints, each by itself. Two threads that are refused at once may count as one.
  std::atomic<int64_t> bytes_until_ns_{INT64_MIN};
  std::atomic<int64_t> pause_ns_{0};

  // relaxed: counters.
  std::atomic<uint64_t> handles_{0};
  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint64_t> refused_{0};
};

// What a call brought. Move-only; as thread-safe as a value.
class ReceivedPayload {
 public:
  // The bytes, where they are: in the pool, or in the request.
  absl::Span<const std::byte> span() const { return span_; }
  size_t size() const { return span_.size(); }
  // True: they were not copied.
  bool in_pool() const { return buffer_.size() != 0; }

  // The block, to be kept after the call or handed on: itself if it is in the pool, else a copy in
  // a new one of `session`. This is empty afterwards.
  //   INVALID_ARGUMENT  the payload is empty
  //   and as Session::Allocate
  absl::StatusOr<Buffer> TakeBuffer(Session& session) &&;

 private:
  friend class PayloadReceiver;
  absl::Span<const std::byte> span_;
  Buffer buffer_;
};

// The server's side. Thread-safe.
class PayloadReceiver {
 public:
  struct Options {
    // Open blocks for callers whose address is not this host's, too. By default only for those that
    // call through a unix socket or the loopback device: nobody else can be in the pool, so who
    // sends a handle has it from hearsay. Set it where callers of this host have addresses of their
    // own, such as containers in a network of their own, and others cannot reach the service.
    bool any_address = false;
  };
  // `session` outlives the receiver. Null: this server has no pool, and wants bytes.
  explicit PayloadReceiver(Session* session) : PayloadReceiver(session, Options()) {}
  PayloadReceiver(Session* session, const Options& options)
      : session_(session), options_(options) {}

  // What `message`, a field of the request, holds. To be called before the call has done anything
  // that must not be done twice; a status that is not OK is what the call should return.
  // `received` refers to `message` if that holds the bytes.
  //   FAILED_PRECONDITION  the handle cannot be opened here: the client will send the bytes
  //   INVALID_ARGUMENT     there is no payload in the message
  grpc::Status Receive(grpc::ServerContextBase* context, const v1::Payload& message,
                       ReceivedPayload* received);

 private:
  Session* const session_;
  const Options options_;
};

}  // namespace spanpool

#endif  // SPANPOOL_GRPC_PAYLOAD_H_

// gRPC calls over one connection to the daemon, without a thread and without global state.
//
// gRPC's own library keeps threads, an epoll descriptor and queues for the whole process. A forked
// child shares the descriptor and has none of the threads: as soon as it makes a call, its events
// reach its parent as pointers into the parent's memory, and both crash or hang. A library that any
// program may link cannot do that to programs that fork. So the client speaks HTTP/2 itself, by
// nghttp2, and gRPC's few rules on top of it: a call is a stream, a message is a length and its
// bytes, the status comes in the trailers.
//
// Whichever thread waits for something reads for all, and hands the task on when it has what it
// waited for. So an answer reaches its thread without a switch between threads, and nothing runs
// when nobody waits. What arrives then stays in the socket until somebody looks.
//
// Invariants
//  1. Only under the lock is the connection written to or read from; no thread waits under it.
//  2. A listener is told the end of its call once and nothing after it, unless it cancels the call:
//     then it is told nothing more.
//  3. A connection that has ended stays so; every call has been ended with it.
//
// Thread-safe as stated. Lock: mutex(), which also guards what listeners change; rank
// kSessionTable.

#ifndef SPANPOOL_CLIENT_RPC_CONNECTION_H_
#define SPANPOOL_CLIENT_RPC_CONNECTION_H_

#include <google/protobuf/message_lite.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "proto/layout/packet.h"

namespace spanpool::internal {

class RpcConnection {
 public:
  // Hears of one call. Called under the lock, and must not call back but to Cancel.
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnMessage(absl::string_view bytes) = 0;
    // How the call ended: the daemon's status, or UNAVAILABLE if the connection ended with it.
    virtual void OnEnd(const absl::Status& status) = 0;
  };
  using CallId = int32_t;
  // Names in lower case. Values of names that end in -bin are any bytes, others printable ASCII.
  using Metadata = std::vector<std::pair<std::string, std::string>>;

  // Connects to a unix socket. If that fails the connection has ended.
  explicit RpcConnection(const std::string& socket_path);
  // Ends the connection; listeners are not told. No other thread may be in a call.
  ~RpcConnection();
  RpcConnection(const RpcConnection&) = delete;
  RpcConnection& operator=(const RpcConnection&) = delete;

  RankedMutex* mutex() const ABSL_LOCK_RETURNED(mu_) { return &mu_; }

  // Begins a call of `method`, "/package.Service/Method". The listener lives until its end.
  //   UNAVAILABLE  the connection has ended, or takes no new calls
  absl::StatusOr<CallId> Start(const std::string& method, const Metadata& metadata,
                               Listener* listener) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sends a message. Never waits: what the socket has no room for goes out while somebody waits.
  // Nothing is done if the call has ended.
  void Send(CallId call, const google::protobuf::MessageLite& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // No message follows.
  void SendEnd(CallId call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends the call from this side.
  void Cancel(CallId call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Reads and writes, or waits for another thread that does, until `done` holds, which must once
  // the calls that it depends on have ended; at most until `deadline`. The lock is released
  // meanwhile. Returns whether `done` holds.
  bool RunUntil(const absl::Condition& done, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes in what has arrived, without waiting.
  void RunOnce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Whether a call can be begun.
  bool usable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return ended_.ok() && !going_away_; }

  // The socket; -1 if there never was one. Constant. A forked child, where the connection must not
  // be used or destroyed, closes it.
  int fd() const { return socket_.get(); }

 private:
  struct Call {
    Listener* listener = nullptr;
    std::string outgoing;  // framed messages
    size_t sent = 0;       // of outgoing
    bool last_sent = false;
    std::string incoming;  // the beginning of a message
    int http_status = 0;
    int grpc_status = -1;
    std::string grpc_message;
  };
  struct Http2;  // the callbacks of nghttp2

  // Takes in bytes of the body of a call.
  void Receive(CallId id, absl::string_view bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The call is over. `reset`: the other side broke it off with this code.
  void Finish(CallId id, uint32_t reset) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishWith(CallId id, const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReadAvailable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteAvailable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends the connection and every call.
  void End(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool has_output() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return written_ < output_.size(); }

  // Constant.
  const std::string socket_path_;
  const layout::UniqueFd socket_;

  mutable RankedMutex mu_{LockRank::kSessionTable};
  std::unique_ptr<Http2> http2_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<CallId, Call> calls_ ABSL_GUARDED_BY(mu_);
  std::string output_ ABSL_GUARDED_BY(mu_);  // on its way to the socket
  size_t written_ ABSL_GUARDED_BY(mu_) = 0;  // of output_
  int readers_ ABSL_GUARDED_BY(mu_) = 0;     // threads that wait for the socket
  bool going_away_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status ended_ ABSL_GUARDED_BY(mu_);  // not OK: why
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_RPC_CONNECTION_H_

// One Exchange stream to the daemon, from its opening to its failure or end: requests and their
// answers, told apart by number.
//
// Threads wait as RpcConnection lets them: whoever waits reads for all.
//
// Invariants
//  1. A stream that failed is not used again: every exchange that is unanswered, and every later
//     one, fails.
//  2. The answer handler sees each answer, before the thread that waits for it does, and none after
//     failed() was seen to be true.
//
// Thread-safe. Its lock is the connection's, released while waiting.

#ifndef SPANPOOL_CLIENT_EXCHANGE_STREAM_H_
#define SPANPOOL_CLIENT_EXCHANGE_STREAM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/rpc_connection.h"
#include "spanpool/v1/pool.pb.h"

namespace spanpool::internal {

class ExchangeStream final : private RpcConnection::Listener {
 public:
  // Called with each answer, under the stream's lock. `awaited`: a thread waits for it, and is
  // given it next.
  using AnswerHandler = std::function<void(const v1::ExchangeResponse&, bool awaited)>;

  // Opens a stream on `connection` for the session of `token`. Errors show in Exchange().
  ExchangeStream(std::shared_ptr<RpcConnection> connection, const std::string& token,
                 AnswerHandler answer_handler);
  // No thread may be in Exchange().
  ~ExchangeStream() override;
  ExchangeStream(const ExchangeStream&) = delete;
  ExchangeStream& operator=(const ExchangeStream&) = delete;

  // Sends `request`, whose id is filled in, and does not wait: the handler alone sees the answer.
  void Send(v1::ExchangeRequest request);

  // The same, and waits for the answer.
  //   DEADLINE_EXCEEDED  none came in time; the request may yet be carried out
  //   any other          how the stream ended; the request may have been carried out
  absl::StatusOr<v1::ExchangeResponse> Exchange(v1::ExchangeRequest request, absl::Time deadline);

  // Whether the stream has ended, as far as can be seen without waiting.
  bool failed() const;

 private:
  struct Waiter {
    bool done = false;
    v1::ExchangeResponse response;
  };

  void OnMessage(absl::string_view bytes) override;
  void OnEnd(const absl::Status& status) override;

  const std::shared_ptr<RpcConnection> connection_;
  const AnswerHandler answer_handler_;

  // Guarded by the connection's lock.
  RpcConnection::CallId call_ = -1;
  bool ended_ = false;
  absl::Status end_;  // how
  uint64_t next_request_ = 1;
  absl::flat_hash_map<uint64_t, Waiter*> waiters_;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_EXCHANGE_STREAM_H_

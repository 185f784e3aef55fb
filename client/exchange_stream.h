// One Exchange stream to the daemon, from its opening to its failure or end.
//
// The stream has no thread of its own. Whichever thread waits for an answer first also waits on the
// stream's completion queue, for all; when its own answer is there it passes the task on. So an
// answer reaches its thread without a switch between threads, and nothing runs when nobody waits.
//
// Invariants
//  1. At most one thread is in the completion queue; at most one write and one read are under way.
//  2. Every call that was started has its tag drawn from the queue before the stream is destroyed.
//  3. A stream that failed is not used again: every exchange that is unanswered, and every later
//     one, fails.
//
// Thread-safe. Its lock is released while waiting.

#ifndef SPANPOOL_CLIENT_EXCHANGE_STREAM_H_
#define SPANPOOL_CLIENT_EXCHANGE_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "spanpool/v1/pool.grpc.pb.h"

namespace spanpool::internal {

class ExchangeStream {
 public:
  // Called with answers that nobody waits for any more. Under the stream's lock.
  using OrphanHandler = std::function<void(const v1::ExchangeResponse&)>;

  // Opens a stream on `channel` for the session of `token`. Errors show in Exchange().
  ExchangeStream(std::shared_ptr<grpc::Channel> channel, const std::string& token,
                 OrphanHandler orphan_handler);
  // No thread may be in Exchange().
  ~ExchangeStream();
  ExchangeStream(const ExchangeStream&) = delete;
  ExchangeStream& operator=(const ExchangeStream&) = delete;

  // Sends `request`, whose id is filled in, and waits for its answer.
  //   DEADLINE_EXCEEDED  none came in time; the request may yet be carried out
  //   any other          how the stream ended; the request may have been carried out
  absl::StatusOr<v1::ExchangeResponse> Exchange(v1::ExchangeRequest request, absl::Time deadline)
      ABSL_LOCKS_EXCLUDED(mu_);

  bool failed() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Waiter {
    bool done = false;
    v1::ExchangeResponse response;
  };
  enum Tag : intptr_t { kStart = 1, kRead, kWrite, kFinish };

  static void* TagOf(Tag tag) { return reinterpret_cast<void*>(tag); }
  void Write() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Read() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Finish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Handle(Tag tag, bool ok) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::unique_ptr<v1::Pool::Stub> stub_;
  const OrphanHandler orphan_handler_;

  mutable absl::Mutex mu_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;  // thread-safe
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::ExchangeRequest, v1::ExchangeResponse>> stream_
      ABSL_GUARDED_BY(mu_);
  bool polling_ ABSL_GUARDED_BY(mu_) = false;  // a thread is in the queue
  bool started_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;  // `status_` is final
  int under_way_ ABSL_GUARDED_BY(mu_) = 0;      // tags that the queue owes
  grpc::Status status_ ABSL_GUARDED_BY(mu_);
  v1::ExchangeResponse incoming_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::ExchangeRequest> to_write_ ABSL_GUARDED_BY(mu_);
  uint64_t next_request_ ABSL_GUARDED_BY(mu_) = 1;
  absl::flat_hash_map<uint64_t, Waiter*> waiters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_EXCHANGE_STREAM_H_

// The attach socket: who may join a pool, which descriptors they get, and when their process ends.
//
// proto/layout/attach.h has the protocol. Every byte that comes in is hostile until checked: a
// message is looked at only if it has the size of its type, and copied once. A session whose client
// breaks the protocol is evicted. The daemon never waits for a client: sockets are non-blocking,
// and one that has no room for a reply is closed, which detaches its session. A client that sends a
// request before it has read the replies before is breaking the protocol too: so few descriptors
// are under way to each, and nobody can use up what the kernel lets the daemon have under way.
//
// Everything happens on the event loop's thread, but for CloseConnection and the constructor, and
// for the making of sessions: that has a thread of its own, for a new session is to be kept for
// later workers (fd_store.h), which may take a moment.
//
// A worker that takes over goes on with the connections of its predecessor (Resume). A client then
// repeats the request whose reply it has not got; an attach is answered with the session that it
// made, if it made one.
//
// Connections that have not attached are few (kMaxPending); when there is one too many, the oldest
// of the uid that has most is closed.

#ifndef SPANPOOL_SERVER_ATTACH_SERVER_H_
#define SPANPOOL_SERVER_ATTACH_SERVER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "allocator/lock_rank.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "server/event_loop.h"
#include "server/log.h"
#include "server/peer.h"
#include "server/pool.h"
#include "server/reaper.h"
#include "server/recaller.h"
#include "server/session_table.h"

namespace spanpool {

class AttachServer {
 public:
  static constexpr size_t kMaxPending = 64;
  // A notice (768), but hardly the reply to another request (1280).
  static constexpr int kMaxUnreadBytes = 2048;

  // All outlive this object; the loop does not run yet. `listener` is a listening SOCK_SEQPACKET.
  // Carries the recaller's notices from now on.
  AttachServer(layout::UniqueFd listener, std::vector<Pool*> pools, SessionTable* sessions,
               Reaper* reaper, Recaller* recaller, EventLoop* loop);
  // The loop has stopped. Lifelines are closed; sessions stay as they are.
  ~AttachServer();
  AttachServer(const AttachServer&) = delete;
  AttachServer& operator=(const AttachServer&) = delete;

  absl::Status Start();

  // Before Start, in a worker that takes over: the sessions of `pool` and their connections. Then,
  // once, SendResumed.
  void Resume(Pool& pool);

  // Closes the connection of a session, which was evicted. Thread-safe; returns at once.
  void CloseConnection(uint32_t session_id);

  // Tells every attached client that this worker goes on where another ended. Once, when there are
  // only connections that the other had, and nothing was read from them yet.
  void SendResumed();

  // No new connection is accepted from now on. Loop thread.
  void StopListening();

 private:
  struct Connection {
    uint64_t id = 0;
    layout::UniqueFd fd = {};
    PeerIdentity peer = {};
    EventLoop::WatchId watch = EventLoop::kNoWatch;
    std::shared_ptr<Session> session = nullptr;  // until attached
    bool attaching = false;                      // its session is being made
    // Its session was made by an earlier worker, who may not have said so.
    bool attach_may_repeat = false;
    // The notice that is under way, and the one that is to be sent once it was answered; 0 = none.
    uint64_t recall_sent = 0;
    layout::RecallNotice recall_next = {};
    // What may lie unread at the client when it sends a request, in bytes of the kernel's buffers.
    int max_unread_bytes = kMaxUnreadBytes;
    // One answer may come to a notice of the worker before.
    bool old_recall = false;
  };

  void Accept();
  void MakeRoomForPending();
  void Receive(uint64_t id);
  // Handles one message; false closes the connection.
  bool Handle(Connection& connection, std::span<const std::byte> bytes);
  bool HandleAttach(Connection& connection, const layout::AttachRequest& request);
  // What the making of a session came to.
  void FinishAttach(uint64_t id, const absl::StatusOr<std::shared_ptr<Session>>& session);
  bool RefuseAttach(Connection& connection, const absl::Status& why);
  static bool SendAttachReply(const Connection& connection, Session& session);
  // Starts to watch the connection.
  absl::Status AddConnection(Connection connection);
  bool HandleArena(Connection& connection, const layout::ArenaRequest& request);
  bool HandleDetach(Connection& connection);
  // The client broke the protocol: its session is evicted, or the log says who it was. False, which
  // closes the connection.
  bool Breach(Connection& connection, const absl::Status& why);
  bool HandleRecallAnswer(Connection& connection, const layout::RecallAnswer& answer);
  // Notes that the session is to be sent a notice, and sends it if none is under way.
  void Recall(uint32_t session_id, uint64_t recall, uint64_t bytes);
  // False closes the connection.
  static bool SendNotice(Connection& connection);
  // The pool that may be attached to as requested.
  absl::StatusOr<Pool*> CheckAttach(const Connection& connection,
                                    const layout::AttachRequest& request) const;
  void RunMaker() ABSL_LOCKS_EXCLUDED(maker_mu_);
  bool MakerHasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(maker_mu_) {
    return maker_stops_ || !to_make_.empty();
  }
  void Close(uint64_t id);
  void WatchProcess(const std::shared_ptr<Session>& session);

  // Constant.
  const std::vector<Pool*> pools_;
  SessionTable* const sessions_;
  Reaper* const reaper_;
  Recaller* const recaller_;
  EventLoop* const loop_;

  // The loop's thread.
  layout::UniqueFd listener_;
  EventLoop::WatchId listener_watch_ = EventLoop::kNoWatch;
  layout::UniqueFd spare_;  // given up to be able to refuse when no descriptor is left
  uint64_t next_connection_ = 1;
  absl::flat_hash_map<uint64_t, Connection> connections_;
  absl::flat_hash_map<uint32_t, uint64_t> connection_of_session_;
  absl::flat_hash_map<uint32_t, EventLoop::WatchId> pidfd_watches_;  // by session
  size_t pending_ = 0;
  LogLimit refusal_log_{20, absl::Seconds(1)};

  // The thread that makes sessions.
  RankedMutex maker_mu_{LockRank::kLeaf};
  std::deque<std::function<void()>> to_make_ ABSL_GUARDED_BY(maker_mu_);
  bool maker_stops_ ABSL_GUARDED_BY(maker_mu_) = false;
  std::thread maker_;  // last: it uses the rest
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_ATTACH_SERVER_H_

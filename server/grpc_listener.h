// Accepts connections on the gRPC socket, and knows later which calls are administrators'.
//
// gRPC does not tell a service who called, but by which descriptor: a call's peer is "fd:" and the
// number of the descriptor that its connection was handed over as. So the daemon accepts the
// connections itself, asks the kernel who is at the other end, and gives an odd number to
// administrators, an even one to everybody else. The number alone says what a call may do, however
// late it is looked at and whose the number was before.
//
// Connections are counted, also per uid, so that nobody can use up the daemon's descriptors: a
// second descriptor of each connection is watched for its end.
//
// Everything happens on the event loop's thread.

#ifndef SPANPOOL_SERVER_GRPC_LISTENER_H_
#define SPANPOOL_SERVER_GRPC_LISTENER_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grpcpp/server.h"
#include "proto/layout/packet.h"
#include "server/event_loop.h"
#include "server/log.h"
#include "server/peer.h"

namespace spanpool {

class GrpcListener {
 public:
  enum class Role { kStranger, kMember, kAdmin };

  struct Options {
    // The last eighth is kept for users who have few, and for administrators.
    size_t max_connections = 0;
    size_t max_of_one_stranger = 16;  // a uid that no pool knows: it may ask for health
    std::function<Role(const PeerIdentity&)> role;
  };

  // All outlive this object; the loop does not run yet. `listener` is a listening SOCK_STREAM.
  GrpcListener(layout::UniqueFd listener, Options options, grpc::Server* server, EventLoop* loop);
  // The loop has stopped.
  ~GrpcListener();
  GrpcListener(const GrpcListener&) = delete;
  GrpcListener& operator=(const GrpcListener&) = delete;

  absl::Status Start();
  // Whether a call from `peer` (grpc::ServerContext::peer) is an administrator's. False for any
  // text that gRPC does not give to the calls of these connections.
  static bool IsAdministrator(absl::string_view peer);

  // No new connection is accepted from now on. Loop thread.
  void StopListening();

 private:
  struct Connection {
    layout::UniqueFd fd;  // a duplicate: gRPC owns the other
    EventLoop::WatchId watch = EventLoop::kNoWatch;
    uid_t uid = 0;
  };

  void Accept();
  void Take(layout::UniqueFd fd);
  void Ended(uint64_t id);

  // Constant.
  const Options options_;
  grpc::Server* const server_;
  EventLoop* const loop_;

  // The loop's thread.
  layout::UniqueFd listener_;
  EventLoop::WatchId listener_watch_ = EventLoop::kNoWatch;
  layout::UniqueFd spare_;
  uint64_t next_id_ = 1;
  absl::flat_hash_map<uint64_t, Connection> connections_;
  absl::flat_hash_map<uid_t, size_t> by_uid_;
  LogLimit refusal_log_{5, absl::Seconds(10)};
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_GRPC_LISTENER_H_

// Accepts connections on the gRPC socket and decides which gRPC server gets each.
//
// gRPC does not tell a service who called. So the daemon accepts the connections itself, asks the
// kernel who is at the other end, and hands the descriptor to one of two servers: administrators
// get the one with the whole Admin service, everybody else gets the one without. A call can only
// reach what its connection was given.
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
  GrpcListener(layout::UniqueFd listener, Options options, grpc::Server* admins,
               grpc::Server* others, EventLoop* loop);
  // The loop has stopped.
  ~GrpcListener();
  GrpcListener(const GrpcListener&) = delete;
  GrpcListener& operator=(const GrpcListener&) = delete;

  absl::Status Start();
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
  grpc::Server* const admins_;
  grpc::Server* const others_;
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

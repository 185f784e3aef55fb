// A client that speaks the protocols by hand, so that it can break them: for hostile_main.cc.
//
// What it needs of the daemon for that it insists on; anything else may fail. Not thread-safe.

#ifndef SPANPOOL_TESTS_SUPPORT_HOSTILE_CLIENT_H_
#define SPANPOOL_TESTS_SUPPORT_HOSTILE_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/rpc_connection.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_table.h"
#include "proto/layout/packet.h"
#include "proto/layout/session_segment.h"
#include "spanpool/v1/pool.pb.h"

namespace spanpool::testing {

// Prints why and ends the process with 3.
[[noreturn]] void Broken(const std::string& what);

// A connection to the attach socket, and what came over it.
class HostileClient {
 public:
  // Connects.
  explicit HostileClient(const std::string& run_dir);

  int socket() const { return socket_.get(); }
  // False: the daemon has closed the connection.
  bool Send(std::span<const std::byte> bytes, std::span<const int> fds = {});
  template <typename T>
  bool SendMessage(const T& message) {
    return Send(layout::BytesOf(message));
  }
  struct Answer {
    layout::AttachType type{};
    int32_t code = 0;
    std::vector<layout::UniqueFd> fds;
  };
  // The next message; nothing at the end, or if none comes within 20 s.
  std::optional<Answer> Receive();

  // Attaches and maps the session segment.
  void Attach(const std::string& pool, layout::AccessMode access = layout::AccessMode::kWrite);
  const layout::AttachReply& reply() const { return reply_; }
  std::string token() const;
  layout::SessionSegment* segment() const { return segment_; }
  int segment_fd() const { return segment_fd_.get(); }
  int control_fd() const { return control_fd_.get(); }

  struct Arena {
    layout::UniqueFd data_fd;
    layout::UniqueFd table_fd;
    std::byte* data = nullptr;
    layout::BlockTable* table = nullptr;
  };
  // Null: the daemon refused it.
  const Arena* MapArena(uint32_t index);

 private:
  layout::UniqueFd socket_;
  layout::UniqueFd segment_fd_;
  layout::UniqueFd control_fd_;
  layout::AttachReply reply_;
  layout::SessionSegment* segment_ = nullptr;
  std::vector<std::unique_ptr<Arena>> arenas_;
};

// One gRPC call on a connection, which outlives it.
class HostileCall : private internal::RpcConnection::Listener {
 public:
  HostileCall(internal::RpcConnection* connection, const std::string& method,
              const std::string& token);
  ~HostileCall() override;
  HostileCall(const HostileCall&) = delete;
  HostileCall& operator=(const HostileCall&) = delete;

  void Send(const google::protobuf::MessageLite& message);
  // Any bytes, as one message.
  void SendBytes(const std::string& bytes);
  // No message follows.
  void SendEnd();
  // The next message; nothing at the end of the call, or if none comes within 20 s.
  std::optional<std::string> Receive();
  // How the call ended; OK if it has not, for 20 s.
  absl::Status End();

 private:
  void OnMessage(absl::string_view bytes) override { messages_.emplace_back(bytes); }
  void OnEnd(const absl::Status& status) override {
    ended_ = true;
    end_ = status;
  }
  void RunUntilNews();

  internal::RpcConnection* const connection_;
  internal::RpcConnection::CallId call_ = -1;
  std::vector<std::string> messages_;
  size_t received_ = 0;
  bool ended_ = false;
  absl::Status end_;
};

// The same of Exchange, with its messages taken apart.
class HostileExchange : public HostileCall {
 public:
  HostileExchange(internal::RpcConnection* connection, const HostileClient& client)
      : HostileCall(connection, "/spanpool.v1.Pool/Exchange", client.token()) {}

  // Nothing: the stream has ended.
  std::optional<v1::ExchangeResponse> Exchange(const v1::ExchangeRequest& request);
  // Insists.
  v1::ExchangeResponse Must(const v1::ExchangeRequest& request);
};

v1::ExchangeRequest Want(uint32_t span_class, uint32_t spans, uint64_t pages = 0,
                         uint64_t alignment_pages = 0);

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_HOSTILE_CLIENT_H_

// For tests: a client that speaks the protocols by hand, so that it can also break them.

#ifndef SPANPOOL_SERVER_RAW_CLIENT_H_
#define SPANPOOL_SERVER_RAW_CLIENT_H_

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"
#include "proto/layout/attach.h"
#include "proto/layout/block_table.h"
#include "proto/layout/packet.h"
#include "spanpool/v1/admin.grpc.pb.h"
#include "spanpool/v1/pool.grpc.pb.h"

namespace spanpool {

// A spanpoold process, its run directory a fresh one below /tmp.
class DaemonProcess {
 public:
  // Starts `binary` with `arguments` and waits for READY, or for its end. One process, without a
  // keeper: what is killed is all there is.
  explicit DaemonProcess(const std::string& binary, std::vector<std::string> arguments = {},
                         std::string run_dir = "");
  ~DaemonProcess();  // kills it
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  bool ready() const { return ready_; }
  pid_t pid() const { return pid_; }
  const std::string& run_dir() const { return run_dir_; }
  // Sends `signal_number` and waits for the end.
  int Stop(int signal_number);
  // Waits for the end. The exit status, or 128 + the signal that killed it.
  int Wait();
  // What it wrote on stderr so far; all of it after Wait.
  std::string Log() const;

 private:
  std::string run_dir_;
  bool own_run_dir_ = false;
  std::string log_path_;
  pid_t pid_ = -1;
  bool ready_ = false;
  int exit_ = -1;
};

class RawClient {
 public:
  // Connects to DIR/attach.sock; aborts the test if it cannot.
  explicit RawClient(const std::string& run_dir);

  int socket() const { return socket_.get(); }
  // Sends any bytes as one packet.
  bool SendBytes(std::span<const std::byte> bytes);
  // The next packet, cut or filled up to T's size; an error at the end of file.
  template <typename T>
  absl::StatusOr<std::pair<T, std::vector<layout::UniqueFd>>> Receive() {
    T message;
    auto packet =
        layout::ReceivePacket(socket_.get(), std::as_writable_bytes(std::span(&message, 1)));
    if (!packet.ok()) return packet.status();
    if (packet->bytes == 0) return absl::UnavailableError("end of file");
    return std::make_pair(message, std::move(packet->fds));
  }
  bool AtEndOfFile();

  // The code of the reply; 0 = attached, with the session's slots mapped.
  int Attach(const std::string& pool = "default",
             layout::AccessMode access = layout::AccessMode::kWrite);
  const layout::AttachReply& reply() const { return reply_; }
  std::atomic<uint64_t>& slot(uint32_t index) { return slots_[index]; }

  // Maps an arena; null if it was refused.
  std::byte* MapArena(uint32_t arena, bool writable = true);
  layout::BlockTable* table(uint32_t arena) { return tables_[arena]; }
  int Detach();  // the code of the reply

  // gRPC, with the session's token unless `token` is given.
  std::shared_ptr<grpc::Channel> channel();
  using Stream = grpc::ClientReaderWriter<v1::ExchangeRequest, v1::ExchangeResponse>;
  struct Call {
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<Stream> stream;
  };
  Call Open();
  Call Open(const std::string& token);
  // Writes `request` and reads the answer; false if the stream ended.
  static bool Exchange(Call& call, const v1::ExchangeRequest& request,
                       v1::ExchangeResponse* response);

 private:
  const std::string run_dir_;
  layout::UniqueFd socket_;
  layout::AttachReply reply_;
  layout::UniqueFd segment_, control_;
  std::atomic<uint64_t>* slots_ = nullptr;
  std::vector<layout::BlockTable*> tables_;
  std::shared_ptr<grpc::Channel> channel_;
};

v1::ExchangeRequest Want(uint32_t span_class, uint32_t spans, uint64_t pages = 0);

// Asks the daemon to trim, and waits for its answer. Empty after an error, which `status` has.
v1::TrimResponse Trim(const std::string& run_dir, const v1::TrimRequest& request,
                      grpc::Status* status = nullptr);

// The status of the pool `default`, asked of the daemon.
v1::PoolStatus StatusOf(const std::string& run_dir);

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_RAW_CLIENT_H_

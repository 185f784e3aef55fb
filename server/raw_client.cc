#include "server/raw_client.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "allocator/check.h"
#include "allocator/units.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "proto/layout/run_dir.h"
#include "proto/layout/session_segment.h"

namespace spanpool {

DaemonProcess::DaemonProcess(const std::string& binary, std::vector<std::string> arguments,
                             std::string run_dir)
    : run_dir_(std::move(run_dir)) {
  char name[] = "/tmp/spanpoold-test-XXXXXX";
  SPANPOOL_CHECK(mkdtemp(name) != nullptr);
  log_path_ = std::string(name) + "/stderr";
  if (run_dir_.empty()) {
    run_dir_ = name;
    own_run_dir_ = true;
    // Other users must get at the sockets.
    std::filesystem::permissions(name, std::filesystem::perms(0755));
  }
  arguments.insert(arguments.begin(), binary);
  arguments.push_back("--run_dir=" + run_dir_);
  arguments.push_back("--fd_store=none");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  int out[2];
  SPANPOOL_CHECK_EQ(pipe2(out, O_CLOEXEC), 0);
  const int log = open(log_path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(out[1], STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(out[1]);
  close(log);
  std::string text;
  char byte;
  while (text.find('\n') == std::string::npos && read(out[0], &byte, 1) == 1) text += byte;
  close(out[0]);
  ready_ = text == "READY\n";
}

DaemonProcess::~DaemonProcess() {
  if (exit_ < 0) Stop(SIGKILL);
  std::filesystem::remove_all(std::filesystem::path(log_path_).parent_path());
  if (own_run_dir_) std::filesystem::remove_all(run_dir_);
}

int DaemonProcess::Stop(int signal_number) {
  if (exit_ < 0) kill(pid_, signal_number);
  return Wait();
}

int DaemonProcess::Wait() {
  if (exit_ >= 0) return exit_;
  int status = 0;
  SPANPOOL_CHECK_EQ(waitpid(pid_, &status, 0), pid_);
  exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return exit_;
}

std::string DaemonProcess::Log() const {
  std::ostringstream text;
  text << std::ifstream(log_path_).rdbuf();
  return text.str();
}

RawClient::RawClient(const std::string& run_dir)
    : run_dir_(run_dir), socket_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = run_dir + "/" + layout::kAttachSocketName;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  SPANPOOL_CHECK_EQ(
      connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0)
      << path << ": " << strerror(errno);
}

bool RawClient::SendBytes(std::span<const std::byte> bytes) {
  return layout::SendPacket(socket_.get(), bytes).ok();
}

bool RawClient::AtEndOfFile() {
  // Replies may stand before the end.
  for (;;) {
    std::array<std::byte, layout::kMaxAttachMessageBytes> buffer;
    const auto packet = layout::ReceivePacket(socket_.get(), buffer);
    if (!packet.ok() || packet->bytes == 0) return true;
  }
}

int RawClient::Attach(const std::string& pool, layout::AccessMode access) {
  layout::AttachRequest request;
  std::strncpy(request.pool, pool.c_str(), sizeof(request.pool) - 1);
  request.access = access;
  if (!SendBytes(layout::BytesOf(request))) return -1;
  auto reply = Receive<layout::AttachReply>();
  if (!reply.ok()) return -1;
  reply_ = reply->first;
  if (reply_.code != 0) return reply_.code;
  SPANPOOL_CHECK_EQ(reply->second.size(), 2u);
  segment_ = std::move(reply->second[0]);
  control_ = std::move(reply->second[1]);
  void* mapped = mmap(nullptr, layout::kSessionSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                      segment_.get(), 0);
  SPANPOOL_CHECK(mapped != MAP_FAILED);
  slots_ = layout::SlotsOf(static_cast<layout::SessionSegment*>(mapped));
  return 0;
}

std::byte* RawClient::MapArena(uint32_t arena, bool writable) {
  layout::ArenaRequest request;
  request.arena = arena;
  if (!SendBytes(layout::BytesOf(request))) return nullptr;
  auto reply = Receive<layout::ArenaReply>();
  if (!reply.ok() || reply->first.code != 0) return nullptr;
  SPANPOOL_CHECK_EQ(reply->second.size(), 2u);
  void* data = mmap(nullptr, kArenaBytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
                    reply->second[0].get(), 0);
  void* table = mmap(nullptr, layout::kBlockTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                     reply->second[1].get(), 0);
  if (data == MAP_FAILED || table == MAP_FAILED) return nullptr;
  if (tables_.size() <= arena) tables_.resize(arena + 1);
  tables_[arena] = static_cast<layout::BlockTable*>(table);
  return static_cast<std::byte*>(data);
}

int RawClient::Detach() {
  if (!SendBytes(layout::BytesOf(layout::DetachRequest()))) return -1;
  auto reply = Receive<layout::DetachReply>();
  return reply.ok() ? reply->first.code : -1;
}

std::shared_ptr<grpc::Channel> RawClient::channel() {
  if (channel_ == nullptr) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel("unix:" + run_dir_ + "/" + layout::kGrpcSocketName,
                                         grpc::InsecureChannelCredentials(), arguments);
  }
  return channel_;
}

RawClient::Call RawClient::Open() {
  return Open(std::string(reinterpret_cast<const char*>(reply_.token), sizeof(reply_.token)));
}

RawClient::Call RawClient::Open(const std::string& token) {
  Call call;
  call.context = std::make_unique<grpc::ClientContext>();
  if (!token.empty()) call.context->AddMetadata("spanpool-token-bin", token);
  call.stream = v1::Pool::NewStub(channel())->Exchange(call.context.get());
  return call;
}

bool RawClient::Exchange(Call& call, const v1::ExchangeRequest& request,
                         v1::ExchangeResponse* response) {
  return call.stream->Write(request) && call.stream->Read(response);
}

v1::ExchangeRequest Want(uint32_t span_class, uint32_t spans, uint64_t pages) {
  v1::ExchangeRequest request;
  v1::SpanWant* want = request.add_wants();
  want->set_span_class(span_class);
  want->set_spans(spans);
  want->set_pages(pages);
  return request;
}

namespace {

std::unique_ptr<v1::Admin::Stub> AdminOf(const std::string& run_dir) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::Admin::NewStub(
      grpc::CreateCustomChannel("unix:" + run_dir + "/" + layout::kGrpcSocketName,
                                grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace

v1::TrimResponse Trim(const std::string& run_dir, const v1::TrimRequest& request,
                      grpc::Status* status) {
  grpc::ClientContext context;
  v1::TrimResponse response;
  const grpc::Status result = AdminOf(run_dir)->Trim(&context, request, &response);
  if (status != nullptr) *status = result;
  return response;
}

v1::PoolStatus StatusOf(const std::string& run_dir) {
  grpc::ClientContext context;
  v1::GetStatusRequest request;
  request.set_pool("default");
  v1::GetStatusResponse response;
  const grpc::Status status = AdminOf(run_dir)->GetStatus(&context, request, &response);
  SPANPOOL_CHECK(status.ok()) << status.error_message();
  return response.pools(0);
}

}  // namespace spanpool

#include "client/rpc_connection.h"

#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "allocator/check.h"

namespace spanpool::internal {
namespace {

// A message is preceded by whether it is compressed, a byte, and its length, 4 bytes.
constexpr size_t kPrefixBytes = 5;
// The daemon sends none nearly as long.
constexpr size_t kMaxMessageBytes = 64 << 20;
// What may be under way to us: more than the longest answer, so that it never waits for a reader.
constexpr int kWindowBytes = 16 << 20;
constexpr size_t kReadBytes = 16 << 10;
// Frames are gathered up to so much for one call of the kernel.
constexpr size_t kWriteBytes = 64 << 10;

layout::UniqueFd ConnectTo(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return layout::UniqueFd();
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  // Non-blocking: a daemon that is stopped and has a queue full of connections is no daemon.
  layout::UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.valid() &&
      connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return layout::UniqueFd();
  }
  return fd;
}

nghttp2_nv Header(absl::string_view name, absl::string_view value) {
  return {reinterpret_cast<uint8_t*>(const_cast<char*>(name.data())),
          reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(),
          NGHTTP2_NV_FLAG_NONE};
}

// "%41" for "A": how gRPC writes what HTTP would not carry.
std::string PercentDecoded(absl::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && absl::ascii_isxdigit(text[i + 1]) &&
        absl::ascii_isxdigit(text[i + 2])) {
      decoded += absl::HexStringToBytes(text.substr(i + 1, 2));
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

}  // namespace

struct RpcConnection::Http2 {
  nghttp2_session* session = nullptr;

  ~Http2() { nghttp2_session_del(session); }

  // False if there is no memory.
  bool Begin(RpcConnection* connection) {
    nghttp2_session_callbacks* callbacks;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) return false;
    nghttp2_session_callbacks_set_on_header_callback(callbacks, &OnHeader);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, &OnData);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, &OnFrame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, &OnClose);
    const int made = nghttp2_session_client_new(&session, callbacks, connection);
    nghttp2_session_callbacks_del(callbacks);
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kWindowBytes},
    };
    return made == 0 &&
           nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, std::size(settings)) ==
               0 &&
           nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, kWindowBytes) == 0;
  }

  // The callbacks run within ReadAvailable and WriteAvailable, and so under the lock.
  static RpcConnection& Of(void* connection) { return *static_cast<RpcConnection*>(connection); }

  static int OnHeader(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name,
                      size_t name_length, const uint8_t* value, size_t value_length, uint8_t,
                      void* connection) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    auto& calls = Of(connection).calls_;
    const auto it = calls.find(frame->hd.stream_id);
    if (it == calls.end()) return 0;
    const absl::string_view key(reinterpret_cast<const char*>(name), name_length);
    const absl::string_view text(reinterpret_cast<const char*>(value), value_length);
    if (key == ":status") {
      if (!absl::SimpleAtoi(text, &it->second.http_status)) it->second.http_status = 0;
    } else if (key == "grpc-status") {
      if (!absl::SimpleAtoi(text, &it->second.grpc_status)) it->second.grpc_status = 2;
    } else if (key == "grpc-message") {
      it->second.grpc_message = PercentDecoded(text);
    }
    return 0;
  }

  static int OnData(nghttp2_session*, uint8_t, int32_t stream, const uint8_t* data, size_t length,
                    void* connection) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Of(connection).Receive(stream, {reinterpret_cast<const char*>(data), length});
    return 0;
  }

  static int OnFrame(nghttp2_session*, const nghttp2_frame* frame,
                     void* connection) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (frame->hd.type == NGHTTP2_GOAWAY) Of(connection).going_away_ = true;
    if ((frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
      Of(connection).Finish(frame->hd.stream_id, NGHTTP2_NO_ERROR);
    }
    return 0;
  }

  static int OnClose(nghttp2_session*, int32_t stream, uint32_t code,
                     void* connection) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Of(connection).Finish(stream, code);
    return 0;
  }

  // Gives out what is next of a call's messages.
  static ssize_t OnSend(nghttp2_session*, int32_t stream, uint8_t* buffer, size_t length,
                        uint32_t* flags, nghttp2_data_source*,
                        void* connection) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    auto& calls = Of(connection).calls_;
    const auto it = calls.find(stream);
    if (it == calls.end()) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;  // cancelled
    Call& call = it->second;
    const size_t count = std::min(length, call.outgoing.size() - call.sent);
    std::memcpy(buffer, call.outgoing.data() + call.sent, count);
    call.sent += count;
    if (call.sent < call.outgoing.size()) return static_cast<ssize_t>(count);
    call.outgoing.clear();
    call.sent = 0;
    if (call.last_sent) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
    } else if (count == 0) {
      return NGHTTP2_ERR_DEFERRED;  // until Send
    }
    return static_cast<ssize_t>(count);
  }
};

RpcConnection::RpcConnection(const std::string& socket_path)
    : socket_path_(socket_path), socket_(ConnectTo(socket_path)), http2_(new Http2) {
  const int error = errno;
  RankedMutexLock lock(&mu_);
  if (!socket_.valid()) {
    End(absl::UnavailableError(absl::StrCat("connecting to ", socket_path, ": ", strerror(error))));
  } else if (!http2_->Begin(this)) {
    End(absl::ResourceExhaustedError("no memory for an HTTP/2 session"));
  }
}

RpcConnection::~RpcConnection() = default;

absl::StatusOr<RpcConnection::CallId> RpcConnection::Start(const std::string& method,
                                                           const Metadata& metadata,
                                                           Listener* listener) {
  if (!ended_.ok()) return ended_;
  if (going_away_) return absl::UnavailableError("the daemon is stopping");
  std::vector<nghttp2_nv> headers = {
      Header(":method", "POST"),        Header(":scheme", "http"),
      Header(":path", method),          Header(":authority", "localhost"),
      Header("te", "trailers"),         Header("content-type", "application/grpc"),
      Header("user-agent", "spanpool"),
  };
  std::vector<std::string> encoded;
  encoded.reserve(metadata.size());  // headers point into it
  for (const auto& [name, value] : metadata) {
    encoded.push_back(absl::EndsWith(name, "-bin") ? absl::Base64Escape(value) : value);
    headers.push_back(Header(name, encoded.back()));
  }
  nghttp2_data_provider body{};
  body.read_callback = &Http2::OnSend;
  const CallId id = nghttp2_submit_request(http2_->session, nullptr, headers.data(), headers.size(),
                                           &body, nullptr);
  if (id < 0) return absl::UnavailableError(absl::StrCat("HTTP/2: ", nghttp2_strerror(id)));
  calls_[id].listener = listener;
  WriteAvailable();
  return id;
}

void RpcConnection::Send(CallId id, const google::protobuf::MessageLite& message) {
  const auto it = calls_.find(id);
  if (it == calls_.end()) return;
  std::string& out = it->second.outgoing;
  const size_t length = message.ByteSizeLong();
  SPANPOOL_CHECK_LE(length, kMaxMessageBytes);
  const char prefix[kPrefixBytes] = {0, static_cast<char>(length >> 24),
                                     static_cast<char>(length >> 16),
                                     static_cast<char>(length >> 8), static_cast<char>(length)};
  out.append(prefix, kPrefixBytes);
  message.AppendToString(&out);
  // An error means that it is not deferred: it has something to send already.
  nghttp2_session_resume_data(http2_->session, id);
  WriteAvailable();
}

void RpcConnection::SendEnd(CallId id) {
  const auto it = calls_.find(id);
  if (it == calls_.end()) return;
  it->second.last_sent = true;
  nghttp2_session_resume_data(http2_->session, id);
  WriteAvailable();
}

void RpcConnection::Cancel(CallId id) {
  if (calls_.erase(id) == 0) return;
  nghttp2_submit_rst_stream(http2_->session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
}

void RpcConnection::Receive(CallId id, absl::string_view bytes) {
  auto it = calls_.find(id);
  if (it == calls_.end()) return;
  // Out of the call, which a listener may end.
  std::string joined = std::exchange(it->second.incoming, {});
  if (!joined.empty()) {
    joined.append(bytes.data(), bytes.size());
    bytes = joined;
  }
  while (bytes.size() >= kPrefixBytes) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
    const size_t length =
        size_t{byte(1)} << 24 | size_t{byte(2)} << 16 | size_t{byte(3)} << 8 | size_t{byte(4)};
    if (byte(0) != 0 || length > kMaxMessageBytes) {
      FinishWith(id, absl::InternalError("the daemon sent a message that is no message of gRPC's"));
      nghttp2_submit_rst_stream(http2_->session, NGHTTP2_FLAG_NONE, id, NGHTTP2_INTERNAL_ERROR);
      return;
    }
    if (bytes.size() < kPrefixBytes + length) break;
    it->second.listener->OnMessage(bytes.substr(kPrefixBytes, length));
    bytes.remove_prefix(kPrefixBytes + length);
    it = calls_.find(id);
    if (it == calls_.end()) return;  // cancelled
  }
  if (bytes.size() == joined.size()) {
    it->second.incoming = std::move(joined);  // a long message is not copied with each part of it
  } else {
    it->second.incoming.assign(bytes.data(), bytes.size());
  }
}

void RpcConnection::Finish(CallId id, uint32_t reset) {
  const auto it = calls_.find(id);
  if (it == calls_.end()) return;
  const Call& call = it->second;
  absl::Status status;
  if (call.grpc_status >= 0) {
    status = absl::Status(static_cast<absl::StatusCode>(call.grpc_status), call.grpc_message);
  } else if (reset != NGHTTP2_NO_ERROR) {
    status = absl::UnavailableError(
        absl::StrCat("the call was broken off: ", nghttp2_http2_strerror(reset)));
  } else {
    status = absl::InternalError(
        absl::StrCat("an answer that is not gRPC's, of HTTP status ", call.http_status));
  }
  FinishWith(id, status);
  // This side may not have ended it yet.
  nghttp2_submit_rst_stream(http2_->session, NGHTTP2_FLAG_NONE, id, NGHTTP2_NO_ERROR);
}

void RpcConnection::FinishWith(CallId id, const absl::Status& status) {
  const auto node = calls_.extract(id);
  if (!node.empty()) node.mapped().listener->OnEnd(status);
}

void RpcConnection::End(const absl::Status& why) {
  if (!ended_.ok()) return;
  ended_ = why;
  output_.clear();
  written_ = 0;
  while (!calls_.empty()) FinishWith(calls_.begin()->first, why);
}

void RpcConnection::ReadAvailable() {
  while (ended_.ok()) {
    std::array<uint8_t, kReadBytes> buffer;
    const ssize_t got = recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return;
      End(absl::UnavailableError(absl::StrCat(socket_path_, ": ", strerror(errno))));
      return;
    }
    const auto length = static_cast<size_t>(got);
    const ssize_t taken =
        got == 0 ? 0 : nghttp2_session_mem_recv(http2_->session, buffer.data(), length);
    if (taken < 0) {
      End(absl::InternalError(
          absl::StrCat(socket_path_, ": HTTP/2: ", nghttp2_strerror(static_cast<int>(taken)))));
    } else if (got == 0 || (nghttp2_session_want_read(http2_->session) == 0 &&
                            nghttp2_session_want_write(http2_->session) == 0)) {
      End(absl::UnavailableError(
          absl::StrCat("the daemon at ", socket_path_, " closed the connection")));
    }
    if (length < buffer.size()) return;
  }
}

void RpcConnection::WriteAvailable() {
  while (ended_.ok()) {
    if (!has_output()) {
      output_.clear();
      written_ = 0;
      while (output_.size() < kWriteBytes) {
        const uint8_t* frame;
        const ssize_t length = nghttp2_session_mem_send(http2_->session, &frame);
        if (length < 0) {
          End(absl::InternalError(
              absl::StrCat("HTTP/2: ", nghttp2_strerror(static_cast<int>(length)))));
          return;
        }
        if (length == 0) break;
        output_.append(reinterpret_cast<const char*>(frame), static_cast<size_t>(length));
      }
      if (output_.empty()) return;
    }
    const ssize_t sent = send(socket_.get(), output_.data() + written_, output_.size() - written_,
                              MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      written_ += static_cast<size_t>(sent);
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR) {
      // What the daemon said before it went may say why.
      const int error = errno;
      ReadAvailable();
      End(absl::UnavailableError(absl::StrCat(socket_path_, ": ", strerror(error))));
    }
  }
}

void RpcConnection::RunOnce() {
  ReadAvailable();
  WriteAvailable();
}

bool RpcConnection::RunUntil(const absl::Condition& done, absl::Time deadline) {
  while (!done.Eval()) {
    if (readers_ > 0 && !has_output()) {
      const auto my_turn = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        return done.Eval() || readers_ == 0 || has_output();
      };
      if (!mu_.AwaitWithDeadline(absl::Condition(&my_turn), deadline)) return false;
      continue;
    }
    if (!ended_.ok()) return false;
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) {
      // Who was stopped for long may find that what he waited for has come in time.
      RunOnce();
      return done.Eval();
    }
    pollfd ready{socket_.get(), static_cast<short>(has_output() ? POLLIN | POLLOUT : POLLIN), 0};
    const timespec wait = absl::ToTimespec(left);
    ++readers_;
    mu_.Unlock();
    const int count = ppoll(&ready, 1, left == absl::InfiniteDuration() ? nullptr : &wait, nullptr);
    mu_.Lock();
    --readers_;
    if (count > 0) RunOnce();
  }
  return true;
}

}  // namespace spanpool::internal

// camera → filter → writer: three processes, and frames that are drawn, inverted and written to a
// file without ever being copied from one process to the next.
//
//   pipeline writer FILE             prints the handle of the channel it takes frames from
//   pipeline filter WRITER           prints that of its own
//   pipeline camera FILTER FRAMES    sends so many frames and closes the channel: all three end

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "spanpool/spanpool.h"

namespace {

using ChannelOr = absl::StatusOr<std::unique_ptr<spanpool::Channel>>;

// A stage that is slower than the one before it makes that one wait, once so many frames are
// queued.
constexpr uint32_t kQueue = 4;

struct Frame {
  uint64_t number;
  uint8_t pixels[480][640];
};

// The frame in a buffer. Who sent it is another program: look before you cast.
absl::StatusOr<Frame*> FrameIn(spanpool::Buffer& buffer) {
  if (buffer.size() == sizeof(Frame)) return reinterpret_cast<Frame*>(buffer.data());
  return absl::InvalidArgumentError(absl::StrCat(buffer.size(), " bytes are no frame"));
}

ChannelOr OpenChannel(spanpool::Session& session, std::string_view text) {
  const absl::StatusOr<spanpool::Handle> handle = spanpool::Handle::Parse(text);
  if (!handle.ok()) return handle.status();
  return spanpool::Channel::Open(session, *handle);
}

ChannelOr CreateChannel(spanpool::Session& session) {
  ChannelOr channel = spanpool::Channel::Create(session, kQueue);
  if (channel.ok()) std::cout << (*channel)->handle().ToString() << std::endl;
  return channel;
}

absl::Status RunCamera(spanpool::Session& session, std::string_view filter, uint64_t frames) {
  const ChannelOr out = OpenChannel(session, filter);
  if (!out.ok()) return out.status();
  for (uint64_t number = 0; number < frames; ++number) {
    absl::StatusOr<spanpool::Buffer> buffer = session.Allocate(sizeof(Frame));
    if (!buffer.ok()) return buffer.status();
    auto* const frame = reinterpret_cast<Frame*>(buffer->data());
    frame->number = number;
    for (auto& row : frame->pixels) {
      for (uint64_t x = 0; x < std::size(row); ++x) row[x] = static_cast<uint8_t>(x + number);
    }
    // The block is the filter's from here on; this process may end before it was even looked at.
    if (absl::Status sent = (*out)->Send(*std::move(buffer)); !sent.ok()) return sent;
  }
  return (*out)->Close();
}

absl::Status RunFilter(spanpool::Session& session, std::string_view writer) {
  const ChannelOr out = OpenChannel(session, writer);
  if (!out.ok()) return out.status();
  const ChannelOr in = CreateChannel(session);
  if (!in.ok()) return in.status();
  for (;;) {
    absl::StatusOr<spanpool::Buffer> buffer = (*in)->Receive();
    if (absl::IsOutOfRange(buffer.status())) return (*out)->Close();  // that was the last
    if (!buffer.ok()) return buffer.status();
    const absl::StatusOr<Frame*> frame = FrameIn(*buffer);
    if (!frame.ok()) return frame.status();
    // In place: whoever received a frame is its only owner.
    for (auto& row : (*frame)->pixels) {
      for (uint8_t& pixel : row) pixel = static_cast<uint8_t>(255 - pixel);
    }
    if (absl::Status sent = (*out)->Send(*std::move(buffer)); !sent.ok()) return sent;
  }
}

// Writes grey images in the PGM format, one after the other.
absl::Status RunWriter(spanpool::Session& session, const std::string& path) {
  const ChannelOr in = CreateChannel(session);
  if (!in.ok()) return in.status();
  std::ofstream file(path, std::ios::binary);
  uint64_t frames = 0;
  for (;; ++frames) {
    absl::StatusOr<spanpool::Buffer> buffer = (*in)->Receive();
    if (absl::IsOutOfRange(buffer.status())) break;
    if (!buffer.ok()) return buffer.status();
    const absl::StatusOr<Frame*> frame = FrameIn(*buffer);
    if (!frame.ok()) return frame.status();
    file << "P5\n640 480\n255\n";
    file.write(reinterpret_cast<const char*>((*frame)->pixels), sizeof((*frame)->pixels));
  }  // the buffer goes, and the camera may have its block again
  if (!file.flush()) return absl::DataLossError(absl::StrCat("cannot write ", path));
  std::cout << "wrote " << frames << " frames" << std::endl;
  return absl::OkStatus();
}

absl::Status Run(std::string_view stage, const std::string& argument, uint64_t frames) {
  const auto session = spanpool::Session::Attach({});
  if (!session.ok()) return session.status();
  if (stage == "camera") return RunCamera(**session, argument, frames);
  return stage == "filter" ? RunFilter(**session, argument) : RunWriter(**session, argument);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view stage = argc < 2 ? "" : argv[1];
  uint64_t frames = 0;
  if (!(argc == 3 && (stage == "filter" || stage == "writer")) &&
      !(argc == 4 && stage == "camera" && absl::SimpleAtoi(argv[3], &frames))) {
    std::cerr << "usage: pipeline writer FILE | filter WRITER | camera FILTER FRAMES\n";
    return 2;
  }
  const absl::Status status = Run(stage, argv[2], frames);
  if (!status.ok()) std::cerr << "pipeline " << stage << ": " << status << "\n";
  return status.ok() ? 0 : 1;
}

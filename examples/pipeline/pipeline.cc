// camera → filter → writer: three processes, and frames that are drawn, inverted and written to a
// file without ever being copied from one process to the next. They may start in any order.
//
//   pipeline camera FRAMES | pipeline filter | pipeline writer FILE

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "spanpool/spanpool.h"

namespace {

using spanpool::Buffer;
using spanpool::Channel;
using spanpool::Session;

struct Frame {
  uint8_t pixels[480][640];
};

// Who takes frames makes a channel for them, and calls `work` until its senders have closed it.
absl::Status ForEachFrame(Session& session, std::string_view name,
                          absl::FunctionRef<absl::Status(Frame& frame, Buffer buffer)> work) {
  const auto in = Channel::Create(session, 4);  // whoever sends a fifth frame waits
  if (!in.ok()) return in.status();
  absl::Status status = session.Publish(name, (*in)->block(), {.replace = true});
  while (status.ok()) {
    absl::StatusOr<Buffer> buffer = (*in)->Receive();
    if (absl::IsOutOfRange(buffer.status())) break;  // that was the last
    if (!buffer.ok()) return buffer.status();
    // Who sent it is another program: look before you cast.
    if (buffer->size() != sizeof(Frame)) return absl::InvalidArgumentError("this is no frame");
    auto* const frame = reinterpret_cast<Frame*>(buffer->data());
    status = work(*frame, *std::move(buffer));
  }
  return status;
}

// Who sends frames finds the channel by its name, or waits for that.
absl::StatusOr<std::unique_ptr<Channel>> FindChannel(Session& session, std::string_view name) {
  absl::StatusOr<Buffer> block = session.Open(name, absl::InfiniteFuture());
  if (!block.ok()) return block.status();
  return Channel::Open(*std::move(block));
}

absl::Status RunCamera(Session& session, int frames) {
  const auto out = FindChannel(session, "pipeline/filter");
  if (!out.ok()) return out.status();
  for (int number = 0; number < frames; ++number) {
    absl::StatusOr<Buffer> buffer = session.Allocate(sizeof(Frame));
    if (!buffer.ok()) return buffer.status();
    for (auto& row : reinterpret_cast<Frame*>(buffer->data())->pixels) {
      for (size_t x = 0; x < std::size(row); ++x) row[x] = static_cast<uint8_t>(x + number);
    }
    // The block is the filter's from here on; this process may end before it was even looked at.
    if (absl::Status sent = (*out)->Send(*std::move(buffer)); !sent.ok()) return sent;
  }
  return (*out)->Close();
}

absl::Status RunFilter(Session& session) {
  const auto out = FindChannel(session, "pipeline/writer");
  if (!out.ok()) return out.status();
  absl::Status status =
      ForEachFrame(session, "pipeline/filter", [&out](Frame& frame, Buffer buffer) {
        for (auto& row : frame.pixels) {  // in place: whoever received a frame is its only owner
          for (uint8_t& pixel : row) pixel = static_cast<uint8_t>(255 - pixel);
        }
        return (*out)->Send(std::move(buffer));
      });
  return status.ok() ? (*out)->Close() : status;
}

absl::Status RunWriter(Session& session, const char* path) {
  std::ofstream file(path, std::ios::binary);
  return ForEachFrame(session, "pipeline/writer", [&file](Frame& frame, const Buffer&) {
    file << "P5\n640 480\n255\n";  // grey images in the PGM format, one after the other
    file.write(reinterpret_cast<const char*>(frame.pixels), sizeof(frame.pixels)).flush();
    return file ? absl::OkStatus() : absl::DataLossError("cannot write to the file");
  });
}

absl::Status Run(std::string_view stage, const char* argument) {
  const auto session = Session::Attach({});
  if (!session.ok()) return session.status();
  if (stage == "camera") return RunCamera(**session, std::atoi(argument));
  return stage == "filter" ? RunFilter(**session) : RunWriter(**session, argument);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view stage = argc < 2 ? "" : argv[1];
  if (stage == "filter" ? argc != 2 : argc != 3 || (stage != "camera" && stage != "writer")) {
    return std::cerr << "usage: pipeline camera FRAMES | filter | writer FILE\n", 2;
  }
  const absl::Status status = Run(stage, argv[argc - 1]);
  if (!status.ok()) std::cerr << "pipeline " << stage << ": " << status << "\n";
  return status.ok() ? 0 : 1;
}

#include "examples/files/consumer.h"

#include <unistd.h>

#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "examples/files/messages.h"
#include "examples/files/sha256.h"
#include "spanpool/spanpool.h"

namespace spanpool::demo {
namespace {

int Fail(const std::string& what) {
  std::fprintf(stderr, "consumer: %s\n", what.c_str());
  return 1;
}

}  // namespace

int RunConsumer(const std::string& target, const std::vector<int>& producers) {
  auto session = Session::Attach({.target = target});
  if (!session.ok()) return Fail(session.status().ToString());
  auto channel = Channel::Create(**session, kPiecesUnderWay);
  if (!channel.ok()) return Fail(channel.status().ToString());
  const Handle handle = (*channel)->handle();
  for (const int producer : producers) {
    if (write(producer, &handle, sizeof(handle)) != sizeof(handle)) {
      return Fail("a producer went away");
    }
  }

  std::map<uint32_t, Sha256> hashes;
  uint64_t buffers = 0;
  uint64_t bytes = 0;
  for (size_t done = 0; done < producers.size();) {
    const auto message = (*channel)->Receive();
    if (!message.ok()) return Fail(message.status().ToString());
    const Label label = LabelOf(*message);
    switch (label.kind) {
      case Label::kPiece:
        hashes[label.file].Add(message->data(), BytesOf(*message));
        ++buffers;
        bytes += BytesOf(*message);
        break;
      case Label::kEndOfFile:
        std::printf("hash %u %s\n", label.file, hashes[label.file].Finish().c_str());
        std::fflush(stdout);
        hashes.erase(label.file);
        break;
      case Label::kBye:
        ++done;
        break;
      default:
        return Fail("a message without a label");
    }
  }  // each buffer is let go here
  std::printf("consumed %llu %llu\n", static_cast<unsigned long long>(buffers),
              static_cast<unsigned long long>(bytes));
  return 0;
}

}  // namespace spanpool::demo

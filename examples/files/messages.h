// What the demo's processes tell each other.
//
// Each consumer has a channel, which both producers send to. A message is a buffer: a piece of a
// file, and behind it, in the last 16 bytes, which one it is. All pieces of a file come from one
// producer, so they arrive in their order.

#ifndef SPANPOOL_EXAMPLES_FILES_MESSAGES_H_
#define SPANPOOL_EXAMPLES_FILES_MESSAGES_H_

#include <cstdint>
#include <cstring>

#include "spanpool/spanpool.h"

namespace spanpool::demo {

inline constexpr int kProducers = 2;
inline constexpr int kConsumers = 2;
inline constexpr uint32_t kPiecesUnderWay = 64;  // in a channel

struct Label {
  enum Kind : uint32_t {
    kPiece,      // of file `file`
    kEndOfFile,  // there are no more pieces of `file`
    kBye,        // this producer sends no more
  };
  uint32_t kind = kPiece;
  uint32_t file = 0;
  uint64_t reserved = 0;
};
static_assert(sizeof(Label) == 16);
inline constexpr size_t kSmallestMessage = 64;  // smaller blocks cannot be shared

// The label of a message of `bytes` bytes and a label.
inline void WriteLabel(Buffer& message, size_t bytes, const Label& label) {
  std::memcpy(message.data() + bytes, &label, sizeof(label));
}
// Of a message that was received: its bytes are those before the label.
inline size_t BytesOf(const Buffer& message) { return message.size() - sizeof(Label); }
inline Label LabelOf(const Buffer& message) {
  Label label;
  std::memcpy(&label, message.data() + BytesOf(message), sizeof(label));
  return label;
}

}  // namespace spanpool::demo

#endif  // SPANPOOL_EXAMPLES_FILES_MESSAGES_H_

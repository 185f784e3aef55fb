// What the demo's processes tell each other.

#ifndef SPANPOOL_EXAMPLES_FILES_MESSAGES_H_
#define SPANPOOL_EXAMPLES_FILES_MESSAGES_H_

#include <cstdint>

#include "spanpool/spanpool.h"

namespace spanpool::demo {

inline constexpr int kProducers = 2;
inline constexpr int kConsumers = 2;

// Producer → consumer, one packet each: a piece of a file, or (bytes = 0) the end of that file.
struct Piece {
  uint32_t file = 0;
  uint32_t bytes = 0;
  Handle handle{};
};

// Consumer → producer: so many pieces were read; their buffers may go.
struct Receipt {
  uint32_t pieces = 0;
};

}  // namespace spanpool::demo

#endif  // SPANPOOL_EXAMPLES_FILES_MESSAGES_H_

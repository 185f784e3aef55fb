// The name of a shared block: 16 bytes that any process attached to the same pool can open.
//
// A handle is plain data: send it through a socket, a ring, a file or a protobuf message (as
// `spanpool.v1.BlockHandle`: low = bits[0], high = bits[1]). It names one block in one generation
// of one pool; once the block is freed, or the pool is gone, opening the handle is refused. Holding
// a handle keeps nothing alive: a Buffer does.

#ifndef SPANPOOL_HANDLE_H_
#define SPANPOOL_HANDLE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/statusor.h"

namespace spanpool {

struct Handle {
  uint64_t bits[2];

  // 32 hexadecimal digits.
  std::string ToString() const;

  // The inverse of ToString().
  //   INVALID_ARGUMENT  `text` is not exactly 32 hexadecimal digits
  static absl::StatusOr<Handle> Parse(std::string_view text);

  friend bool operator==(const Handle&, const Handle&) = default;
};

static_assert(sizeof(Handle) == 16 && std::is_trivially_copyable_v<Handle>);

}  // namespace spanpool

#endif  // SPANPOOL_HANDLE_H_

#include "spanpool/handle.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace spanpool {

std::string Handle::ToString() const { return absl::StrFormat("%016x%016x", bits[1], bits[0]); }

absl::StatusOr<Handle> Handle::Parse(std::string_view text) {
  Handle handle{};
  bool good = text.size() == 32;
  for (size_t i = 0; good && i < text.size(); ++i) {
    const char c = text[i];
    uint64_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<uint64_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<uint64_t>(c - 'a' + 10);
    } else if (c >= 'A' && c <= 'F') {
      digit = static_cast<uint64_t>(c - 'A' + 10);
    } else {
      good = false;
    }
    uint64_t& half = handle.bits[i < 16 ? 1 : 0];
    half = half << 4 | digit;
  }
  if (!good) {
    return absl::InvalidArgumentError(absl::StrCat("a handle is 32 hexadecimal digits, not \"",
                                                   std::string(text.substr(0, 40)), "\""));
  }
  return handle;
}

}  // namespace spanpool

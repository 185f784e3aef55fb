// What a block can be called (spanpool/v1/pool.proto, "Names"): 1 to 200 letters, digits, dots,
// underscores, hyphens and slashes. So a name is one word in a shell, a log and a URL.

#ifndef SPANPOOL_PROTO_LAYOUT_BLOCK_NAME_H_
#define SPANPOOL_PROTO_LAYOUT_BLOCK_NAME_H_

#include <cstddef>
#include <string_view>

namespace spanpool::layout {

inline constexpr size_t kMaxNameBytes = 200;
inline constexpr char kNameRule[] = "1 to 200 of A-Z a-z 0-9 . _ - /";

constexpr bool IsNameByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-' || c == '/';
}

constexpr bool IsBlockName(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes) return false;
  for (const char c : name) {
    if (!IsNameByte(c)) return false;
  }
  return true;
}

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_BLOCK_NAME_H_

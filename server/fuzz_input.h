// For fuzz targets: bytes read as decisions. After the last byte every answer is 0.

#ifndef SPANPOOL_SERVER_FUZZ_INPUT_H_
#define SPANPOOL_SERVER_FUZZ_INPUT_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace spanpool {

class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : left_(data, size) {}

  bool empty() const { return left_.empty(); }

  uint8_t Byte() {
    if (left_.empty()) return 0;
    const uint8_t byte = left_.front();
    left_ = left_.subspan(1);
    return byte;
  }
  // Below `end`, which is at most 256.
  uint32_t Below(uint32_t end) { return Byte() % end; }
  // Any number, the small ones more often.
  uint64_t Number() {
    uint64_t number = 0;
    for (uint32_t bytes = Below(9); bytes > 0; --bytes) number = number << 8 | Byte();
    return number;
  }
  // The next `size` bytes, or what there is.
  std::span<const uint8_t> Bytes(size_t size) {
    const std::span<const uint8_t> bytes = left_.first(size < left_.size() ? size : left_.size());
    left_ = left_.subspan(bytes.size());
    return bytes;
  }

 private:
  std::span<const uint8_t> left_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_FUZZ_INPUT_H_

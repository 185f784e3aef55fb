// The 68 block sizes of the heap, generated at compile time by the rules of the Go runtime.
//
// Size class 0 stands for large runs: one block of whole pages. Classes 1..67 cut spans of one to
// ten pages into equal blocks of 8 to 32768 bytes, so that rounding a size up to its class and the
// tail of a span together never waste more than 16.7 % of a span whose blocks are longer than 80
// bytes. The rules (Go's mksizeclasses.go):
//   1. Candidate sizes are spaced by 8 below 32, 16 below 128, then an eighth of the power of two
//      below, and 256 from 2048 up.
//   2. A span has the fewest pages that leave a tail of at most an eighth.
//   3. A candidate with the same pages and number of blocks as the one before replaces it.
//   4. Each size grows to what an equal share of its span allows, rounded down to 128 bytes.
//
// A span class is a size class together with whether its blocks may hold handles to other blocks
// (scan) or are plain bytes (noscan).
//
// Everything here is constant; thread-safe.

#ifndef SPANPOOL_ALLOCATOR_SIZE_CLASSES_H_
#define SPANPOOL_ALLOCATOR_SIZE_CLASSES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <utility>

#include "allocator/units.h"

namespace spanpool {

using SizeClass = Unit<struct SizeClassTag, uint8_t>;

inline constexpr size_t kNumSizeClasses = 68;
inline constexpr size_t kNumSpanClasses = 2 * kNumSizeClasses;
inline constexpr SizeClass kLargeSizeClass = SizeClass(0);
inline constexpr size_t kMaxSmallBytes = 32768;
inline constexpr size_t kMaxBlocksPerSpan = 1024;  // 8-byte blocks in one page

// What is known of one size class; all zero for kLargeSizeClass.
struct SizeClassInfo {
  uint32_t block_bytes = 0;
  uint32_t span_pages = 0;
  uint32_t blocks = 0;      // per span
  uint32_t alignment = 0;   // every block's; a power of two, at most a page
  uint32_t reciprocal = 0;  // ⌈2^32 / block_bytes⌉, see BlockIndex
};

namespace size_classes_internal {

struct Tables {
  std::array<SizeClassInfo, kNumSizeClasses> info{};
  // Class of sizes up to 1024 in steps of 8, and above in steps of 128.
  std::array<uint8_t, 1024 / 8 + 1> small{};
  std::array<uint8_t, (kMaxSmallBytes - 1024) / 128 + 1> medium{};
  size_t count = 0;  // classes that the rules yield
};

constexpr Tables Generate() {
  Tables t;
  size_t count = 1;  // class 0
  uint32_t step = 8;
  for (uint32_t bytes = step; bytes <= kMaxSmallBytes; bytes += step) {
    if ((bytes & (bytes - 1)) == 0) {
      if (bytes >= 2048) {
        step = 256;
      } else if (bytes >= 128) {
        step = bytes / 8;
      } else if (bytes >= 32) {
        step = 16;
      }
    }
    uint32_t span_bytes = kPageBytes;
    while (span_bytes % bytes > span_bytes / 8) span_bytes += kPageBytes;
    const uint32_t pages = span_bytes / kPageBytes;
    const uint32_t blocks = span_bytes / bytes;
    if (count > 1 && t.info[count - 1].span_pages == pages && t.info[count - 1].blocks == blocks) {
      --count;
    }
    t.info[count].block_bytes = bytes;
    t.info[count].span_pages = pages;
    t.info[count].blocks = blocks;
    ++count;
  }
  for (size_t i = 1; i < count; ++i) {
    SizeClassInfo& info = t.info[i];
    const uint32_t share =
        info.span_pages * static_cast<uint32_t>(kPageBytes) / info.blocks / 128 * 128;
    if (share > info.block_bytes) info.block_bytes = share;
    info.alignment = info.block_bytes & -info.block_bytes;
    if (info.alignment > kPageBytes) info.alignment = kPageBytes;
    info.reciprocal = UINT32_MAX / info.block_bytes + 1;
  }
  uint8_t size_class = 1;
  for (size_t bytes = 0; bytes <= kMaxSmallBytes; bytes += 8) {
    if (bytes > t.info[size_class].block_bytes) ++size_class;
    if (bytes <= 1024) t.small[bytes / 8] = size_class;
    if (bytes >= 1024 && bytes % 128 == 0) t.medium[(bytes - 1024) / 128] = size_class;
  }
  t.count = count;
  return t;
}

inline constexpr Tables kTables = Generate();
static_assert(kTables.count == kNumSizeClasses);

}  // namespace size_classes_internal

// Requires a class below kNumSizeClasses, as do all functions here.
constexpr const SizeClassInfo& InfoOf(SizeClass size_class) {
  return size_classes_internal::kTables.info[size_class.value()];
}
constexpr size_t BlockBytes(SizeClass size_class) { return InfoOf(size_class).block_bytes; }
constexpr PageCount SpanPages(SizeClass size_class) {
  return PageCount(InfoOf(size_class).span_pages);
}
constexpr uint32_t BlocksPerSpan(SizeClass size_class) { return InfoOf(size_class).blocks; }
constexpr size_t GuaranteedAlignment(SizeClass size_class) { return InfoOf(size_class).alignment; }

// The smallest class whose blocks hold `bytes` bytes; 0 bytes count as 1; kLargeSizeClass above
// kMaxSmallBytes.
constexpr SizeClass SizeClassFor(size_t bytes) {
  if (bytes <= 1024) return SizeClass(size_classes_internal::kTables.small[(bytes + 7) / 8]);
  if (bytes <= kMaxSmallBytes) {
    return SizeClass(size_classes_internal::kTables.medium[(bytes - 1024 + 127) / 128]);
  }
  return kLargeSizeClass;
}

// The same, of those that guarantee `alignment` (a power of two); kLargeSizeClass if there is none:
// pages are aligned to 8 KiB, and more has to be asked of the heap.
constexpr SizeClass SizeClassFor(size_t bytes, size_t alignment) {
  SizeClass size_class = SizeClassFor(bytes);
  if (size_class == kLargeSizeClass) return kLargeSizeClass;
  while (GuaranteedAlignment(size_class) < alignment) {
    ++size_class;
    if (size_class.value() == kNumSizeClasses) return kLargeSizeClass;
  }
  return size_class;
}

// The block that byte `offset` of a span lies in: offset / block_bytes, by multiplication. Exact
// for every offset up to and including the length of a span of a small class.
constexpr uint32_t BlockIndex(SizeClass size_class, uint32_t offset) {
  return static_cast<uint32_t>((uint64_t{offset} * InfoOf(size_class).reciprocal) >> 32);
}

// A size class × {scan, noscan}.
class SpanClass {
 public:
  constexpr SpanClass() = default;  // large, scan
  constexpr SpanClass(SizeClass size_class, bool noscan)
      : value_(static_cast<uint8_t>(size_class.value() * 2 + noscan)) {}
  // Requires value < kNumSpanClasses: validate what comes from outside first.
  static constexpr SpanClass FromValue(uint8_t value) {
    return SpanClass(SizeClass(value / 2), (value & 1) != 0);
  }

  constexpr uint8_t value() const { return value_; }
  constexpr SizeClass size_class() const { return SizeClass(value_ / 2); }
  constexpr bool noscan() const { return (value_ & 1) != 0; }
  constexpr bool large() const { return size_class() == kLargeSizeClass; }

  friend constexpr auto operator<=>(SpanClass, SpanClass) = default;
  template <typename H>
  friend H AbslHashValue(H h, SpanClass c) {
    return H::combine(std::move(h), c.value_);
  }
  friend std::ostream& operator<<(std::ostream& out, SpanClass c) {
    return out << +c.size_class().value() << (c.noscan() ? " noscan" : " scan");
  }

 private:
  uint8_t value_ = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SIZE_CLASSES_H_

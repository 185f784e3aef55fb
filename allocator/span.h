// A span: a run of pages cut into equal blocks of one span class, or one large block.

#ifndef SPANPOOL_ALLOCATOR_SPAN_H_
#define SPANPOOL_ALLOCATOR_SPAN_H_

#include <atomic>
#include <bit>
#include <cstdint>

#include "absl/types/span.h"
#include "allocator/size_classes.h"
#include "allocator/units.h"

namespace spanpool {

inline constexpr size_t kMaxBlocksPerSpan = 1024;  // 8-byte blocks in one page
inline constexpr size_t kSpanBitmapWords = kMaxBlocksPerSpan / 64;

struct Span {
  // Constant while the span is in use.
  PageId first_page;
  PageCount pages;
  SpanClass span_class;
  uint32_t blocks = 0;       // 1 for a large span
  uint64_t block_bytes = 0;  // pages × 8 KiB for a large span

  // For the heap's user (the daemon's pool), who guards it: whose loan this is, 0 = nobody's.
  uint64_t loan_session = 0;
  uint64_t loan_sequence = 0;

  bool large() const { return span_class.size_class() == kLargeSizeClass; }
  PageRange range() const { return PageRange{first_page, pages}; }

  // Bit i: block i is referred to by somebody, as of the last sweep. Written by the heap only while
  // the span is not on loan; constant, and readable by the holder, while it is.
  absl::Span<const uint64_t> in_use() const;
};

// What is known of a span's blocks outside the heap. The daemon implements it over the block table.
class BlockStates {
 public:
  virtual ~BlockStates() = default;

  // Called for a span that is not on loan, so no block of it is private to a holder. Sets bit i of
  // `in_use` (zeroed by the caller) for each block that somebody refers to; a block whose last
  // reference was dropped is collected: made reusable under its next generation. Returns the
  // number of bits set. Thread-safe for different spans.
  virtual uint32_t Sweep(const Span& span, absl::Span<uint64_t> in_use) = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SPAN_H_

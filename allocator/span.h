// A span: a run of pages cut into equal blocks of one span class, or one large block.
//
// Span records are never given back to the system: a pointer to one stays readable for ever, even
// when the span it once described is gone. So a sweeper may look at a record that it found a moment
// ago, and lose the race for it by a compare-and-swap.
//
// Where a span is, is said by its sweep generation g. With h the heap's, which is even and grows by
// 2 whenever a sweep begins:
//
//   g           the span is                           who may touch it
//   kFree       not there; the record may be reused   the heap
//   kOnLoan     granted                               its holder
//   kReturning  being taken back                      who swapped g to that
//   kManual     cut into runs by hand (run_pool.h)    its run pool
//   h - 2       listed, and not swept in this cycle   whoever swaps g to h - 1
//   h - 1       being swept                           who swapped g to that
//   h           listed, and swept                     its central list
//
// h += 2 thereby turns every swept span into one to be swept without touching any. Spans on loan
// take no part: no holder can hold a cycle up. Generations are 64 bits and never wrap.

#ifndef SPANPOOL_ALLOCATOR_SPAN_H_
#define SPANPOOL_ALLOCATOR_SPAN_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "allocator/size_classes.h"
#include "allocator/units.h"

namespace spanpool {

class SpanSet;
struct SpecialRecord;

inline constexpr size_t kSpanBitmapWords = kMaxBlocksPerSpan / 64;

struct Span {
  // Constant while the span is in use.
  PageId first_page;
  PageCount pages;
  SpanClass span_class;
  bool needs_zero = false;  // false: all its memory is known to be zero

  // Bits set in in_use(). Written by whoever the table above says may touch the span.
  uint16_t blocks_in_use = 0;

  // Constant while the span is in use.
  uint32_t blocks = 0;       // 1 for a large span
  uint64_t block_bytes = 0;  // pages × 8 KiB for a large span

  // For the heap's user (the daemon's pool), who guards it: whose loan this is, 0 = nobody's.
  uint64_t loan_session = 0;
  uint64_t loan_sequence = 0;

  bool large() const { return span_class.large(); }
  PageRange range() const { return PageRange{first_page, pages}; }
  size_t bitmap_words() const { return (blocks + 63) / 64; }

  // Bit i: block i is referred to by somebody, as of the last sweep. Written by the heap only while
  // the span is not on loan; constant, and readable by the holder, while it is.
  absl::Span<const uint64_t> in_use() const { return {bits(), bitmap_words()}; }

  // The rest is the heap's own.
  static constexpr uint64_t kFree = 0;
  static constexpr uint64_t kOnLoan = 1;
  static constexpr uint64_t kReturning = 3;
  static constexpr uint64_t kManual = 5;
  static constexpr uint64_t kFirstGeneration = 8;  // of the heap; h - 2 and h - 1 differ from these

  std::atomic<uint64_t> sweep_generation{kFree};

  // The words behind in_use(): the span's own, or a bitmap of the heap's records. Written by
  // whoever may touch the span.
  bool has_own_bits() const { return blocks <= 64; }
  uint64_t* bits() { return has_own_bits() ? &own_bits : bitmap; }
  const uint64_t* bits() const { return has_own_bits() ? &own_bits : bitmap; }
  union {
    uint64_t own_bits = 0;
    uint64_t* bitmap;
  };

  // Guarded by the lock of the specials.
  SpecialRecord* specials = nullptr;

  // Guarded by the lock of the set's owner.
  SpanSet* set = nullptr;  // which holds the span; null = none
  Span* next = nullptr;
  Span* previous = nullptr;
};
// With a bitmap and its links this is what most of the heap's metadata is made of.
static_assert(sizeof(Span) == 96);

// What is known of a span's blocks outside the heap. The daemon implements it over the block table.
class BlockStates {
 public:
  virtual ~BlockStates() = default;

  // Called for a span that is not on loan, so no block of it is private to a holder. Sets bit i of
  // `in_use` (zeroed by the caller) for each block that somebody refers to; a block whose last
  // reference was dropped is collected: made reusable under its next generation. Returns the
  // number of bits set. Thread-safe for different spans. No lock of the heap is held; but it must
  // not call the heap, for a sweep does not end before it returns.
  virtual uint32_t Sweep(const Span& span, absl::Span<uint64_t> in_use) = 0;
};

// Where it is written down which spans there are, for a heap that comes after this one
// (Heap::Restore). Grants are written down by the heap's user, who knows to whom; what becomes of
// spans then, the heap alone knows at the right moment.
//
// Thread-safe for different spans. The calls for one page come one after another, and each is over
// before the heap goes on: a few stores, for they are on every return. No lock of the heap is held;
// but they must not call the heap.
class SpanJournal {
 public:
  virtual ~SpanJournal() = default;

  // `span` was returned with blocks still in use. Called before anybody else can be granted it. A
  // span that was listed and is swept, or granted and not yet written down, is not told of again.
  virtual void Listed(const Span& span) = 0;

  // No block of `span`, which was returned or listed, is in use. Called before its pages can be
  // granted again, and while the heap still finds it by them. Also of a span whose grant was never
  // written down.
  virtual void Freed(const Span& span) = 0;
};

// What Heap::Restore is told of a span.
struct SpanState {
  enum class Place : uint8_t { kOnLoan, kListed };

  PageId first_page;
  PageCount pages;
  SpanClass span_class;
  Place place = Place::kOnLoan;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SPAN_H_

// The classes that the cache sorts blocks into.
//
// A small block is cached by span class. A large one by *step*: sizes in pages at most 12.5 % apart
// (every length up to 8 pages, then eight to each doubling), times scan or noscan; a large span is
// then simply a span with one block, and all tiers but the heap treat it as any other.
//
//   CacheClass 0..135    span classes (0 and 1, large, are unused)
//              136..     136 + 2 × step + noscan
//
// Constants and pure functions; thread-safe.

#ifndef SPANPOOL_CLIENT_CACHE_CLASS_H_
#define SPANPOOL_CLIENT_CACHE_CLASS_H_

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "allocator/size_classes.h"
#include "allocator/units.h"
#include "spanpool/thread_cache.h"

namespace spanpool::internal {

using CacheClass = Unit<struct CacheClassTag, uint16_t>;

// A length of large blocks.
using Step = Unit<struct StepTag, uint16_t>;

// Up to 2^31 pages: a pool of 2^44 bytes.
inline constexpr size_t kSteps = 8 + (31 - 3) * 8;
inline constexpr size_t kCacheClasses = kNumSpanClasses + 2 * kSteps;

// The smallest step that holds `pages`, which is 1..2^31.
constexpr Step StepFor(PageCount pages) {
  const uint64_t n = pages.value() - 1;
  if (n < 8) return Step(static_cast<uint16_t>(n));
  const int exponent = std::bit_width(n) - 1;
  const uint64_t eighth = (n >> (exponent - 3)) & 7;
  return Step(static_cast<uint16_t>(8 + (exponent - 3) * 8 + eighth));
}

constexpr PageCount PagesOf(Step step) {
  const uint64_t n = step.value();
  if (n < 8) return PageCount(n + 1);
  return PageCount((n % 8 + 9) << (n / 8 - 1));
}

constexpr CacheClass CacheClassOf(SpanClass span_class) { return CacheClass(span_class.value()); }
constexpr CacheClass CacheClassOf(Step step, bool noscan) {
  return CacheClass(static_cast<uint16_t>(kNumSpanClasses + 2 * step.value() + noscan));
}

constexpr bool IsLarge(CacheClass c) { return c.value() >= kNumSpanClasses; }
constexpr Step StepOf(CacheClass c) {
  return Step(static_cast<uint16_t>((c.value() - kNumSpanClasses) / 2));
}
constexpr SpanClass SpanClassOf(CacheClass c) {
  if (IsLarge(c)) return SpanClass(kLargeSizeClass, c.value() % 2 != 0);
  return SpanClass::FromValue(static_cast<uint8_t>(c.value()));
}
// Bytes per block, and what one span of the class takes.
constexpr uint64_t BlockBytesOf(CacheClass c) {
  return IsLarge(c) ? Bytes(PagesOf(StepOf(c))) : BlockBytes(SpanClassOf(c).size_class());
}
constexpr uint64_t SpanBytesOf(CacheClass c) {
  return IsLarge(c) ? Bytes(PagesOf(StepOf(c))) : Bytes(SpanPages(SpanClassOf(c).size_class()));
}

// Threads keep stacks of all small blocks, and of noscan large ones of 5 to 512 pages.
inline constexpr Step kFirstStackStep = StepFor(PageCount(5));
static_assert(kSpanClassStacks == kNumSpanClasses);
static_assert(StepFor(PageCount(512)).value() - kFirstStackStep.value() + 1 == kLargeStacks);
static_assert(kInlineBytes == Bytes(PageCount(512)));

// The stack of a class in ThreadCache::stacks; 0 (always empty, always full) if it has none.
constexpr size_t StackIndexOf(CacheClass c) {
  if (!IsLarge(c)) return c.value() < 2 ? 0 : c.value();
  if (!SpanClassOf(c).noscan() || StepOf(c) < kFirstStackStep) return 0;
  const size_t index = kSpanClassStacks + StepOf(c).value() - kFirstStackStep.value();
  return index < kStacks ? index : 0;
}
// The inverse. Requires a stack that is some class's.
constexpr CacheClass CacheClassOfStack(size_t index) {
  if (index < kSpanClassStacks) return CacheClass(static_cast<uint16_t>(index));
  const size_t step = index - kSpanClassStacks + kFirstStackStep.value();
  return CacheClassOf(Step(static_cast<uint16_t>(step)), /*noscan=*/true);
}

// The stack that malloc's sizes are served from; 0 if there is none.
constexpr size_t MallocStackIndex(size_t bytes) {
  if (bytes <= kMaxSmallBytes) {
    // What is larger than 8 bytes may hold something that is aligned to 16.
    const SizeClass size_class =
        bytes <= 8 || bytes > 32 ? SizeClassFor(bytes) : SizeClassFor(bytes, 16);
    return StackIndexOf(CacheClassOf(SpanClass(size_class, /*noscan=*/true)));
  }
  if (bytes > Bytes(PageCount(512))) return 0;
  return StackIndexOf(CacheClassOf(StepFor(PagesFor(bytes)), /*noscan=*/true));
}

// How many blocks move between tiers at a time: TCMalloc's rule.
constexpr size_t BatchOf(CacheClass c) {
  return std::clamp<size_t>((64 << 10) / BlockBytesOf(c), IsLarge(c) ? 1 : 2, 32);
}

// Most blocks in one thread's stack of the class.
constexpr size_t StackCapacityOf(CacheClass c) {
  if (IsLarge(c)) return std::clamp<size_t>((512 << 10) / BlockBytesOf(c), 2, 8);
  return std::clamp<size_t>((256 << 10) / BlockBytesOf(c), 4, 1024);
}

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_CACHE_CLASS_H_

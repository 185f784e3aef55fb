// A set of spans, first in, first out.
//
// The links are in the spans, so adding to a set needs no memory and cannot fail, an empty set
// costs nothing, and a span can be taken out of the middle. (Go keeps pointers in a growable spine
// of blocks instead, so that sets need no lock; then adding may need memory, removing from the
// middle is impossible, and a reader must wait for a slot that a writer has claimed and not filled.
// Here every set has an owner with a lock of its own per span class, and giving back a span must
// not fail.)
//
// Invariants
//  1. A span is in at most one set: the one that span->set names.
//  2. size() and pages() are those of the spans that are linked.
//
// Not thread-safe: the owner's lock guards the set and the links of the spans in it. empty() alone
// may be called without it, for a guess.

#ifndef SPANPOOL_ALLOCATOR_SPAN_SET_H_
#define SPANPOOL_ALLOCATOR_SPAN_SET_H_

#include <atomic>
#include <cstddef>

#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool {

class SpanSet {
 public:
  SpanSet() = default;
  SpanSet(const SpanSet&) = delete;
  SpanSet& operator=(const SpanSet&) = delete;

  // Adds a span that is in no set (CHECK).
  void Push(Span* span);
  // The span that has been in the set longest; null if it is empty.
  Span* First() const { return first_; }
  // Removes and returns the span that has been in the set longest; null if it is empty.
  Span* Pop();
  // Removes a span that is in this set (CHECK).
  void Remove(Span* span);

  bool empty() const { return size_.load(std::memory_order_relaxed) == 0; }
  size_t size() const { return size_.load(std::memory_order_relaxed); }
  PageCount pages() const { return pages_; }

  // Calls f(span) for each, first in first.
  template <typename F>
  void ForEach(F f) const {
    for (Span* span = first_; span != nullptr; span = span->next) f(span);
  }

  void CheckInvariants() const;

 private:
  Span* first_ = nullptr;
  Span* last_ = nullptr;
  // Atomic for the guess of empty(); written under the owner's lock.
  std::atomic<size_t> size_{0};
  PageCount pages_;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SPAN_SET_H_

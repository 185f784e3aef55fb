#include "allocator/span_set.h"

#include "allocator/check.h"

namespace spanpool {

void SpanSet::Push(Span* span) {
  SPANPOOL_CHECK(span->set == nullptr) << "span at page " << span->first_page << " is in a set";
  span->set = this;
  span->next = nullptr;
  span->previous = last_;
  (last_ == nullptr ? first_ : last_->next) = span;
  last_ = span;
  pages_ += span->pages;
  size_.store(size() + 1, std::memory_order_relaxed);
}

Span* SpanSet::Pop() {
  Span* span = first_;
  if (span != nullptr) Remove(span);
  return span;
}

void SpanSet::Remove(Span* span) {
  SPANPOOL_CHECK(span->set == this) << "span at page " << span->first_page;
  (span->previous == nullptr ? first_ : span->previous->next) = span->next;
  (span->next == nullptr ? last_ : span->next->previous) = span->previous;
  span->set = nullptr;
  span->next = nullptr;
  span->previous = nullptr;
  pages_ -= span->pages;
  size_.store(size() - 1, std::memory_order_relaxed);
}

void SpanSet::CheckInvariants() const {
  size_t size = 0;
  PageCount pages;
  const Span* previous = nullptr;
  for (const Span* span = first_; span != nullptr; span = span->next) {
    SPANPOOL_CHECK(span->set == this);
    SPANPOOL_CHECK_EQ(span->previous, previous);
    previous = span;
    ++size;
    pages += span->pages;
  }
  SPANPOOL_CHECK_EQ(last_, previous);
  SPANPOOL_CHECK_EQ(size_.load(std::memory_order_relaxed), size);
  SPANPOOL_CHECK_EQ(pages_, pages);
}

}  // namespace spanpool

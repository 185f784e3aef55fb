#include "allocator/free_list_alloc.h"

#include <algorithm>
#include <bit>

#include "allocator/check.h"

namespace spanpool {

FreeListAlloc::FreeListAlloc(PersistentAlloc* memory, uint64_t begin, uint64_t end)
    : begin_(begin), end_(begin), nodes_(memory) {
  SPANPOOL_CHECK_EQ(begin % kGrain, 0u);
  SPANPOOL_CHECK_LE(begin, end);
  if (end > begin) (void)Extend(end);  // without memory the range stays empty until extended
}

std::optional<uint64_t> FreeListAlloc::Round(uint64_t bytes) {
  if (bytes > UINT64_MAX - kGrain) return std::nullopt;
  return std::max(kGrain, (bytes + kGrain - 1) & ~(kGrain - 1));
}

std::optional<uint64_t> FreeListAlloc::Alloc(uint64_t bytes, uint64_t alignment) {
  SPANPOOL_CHECK(std::has_single_bit(alignment)) << alignment;
  const std::optional<uint64_t> length = Round(bytes);
  if (!length.has_value()) return std::nullopt;
  alignment = std::max(alignment, kGrain);
  for (Node** link = &head_; *link != nullptr; link = &(*link)->next) {
    ++steps_;
    Node* node = *link;
    const uint64_t padding = -node->begin & (alignment - 1);
    const uint64_t available = node->end - node->begin;
    if (padding > available || available - padding < *length) continue;
    const uint64_t position = node->begin + padding;
    const uint64_t rest = node->end - position - *length;
    if (padding > 0 && rest > 0) {
      Node* tail = nodes_.Alloc();
      if (tail == nullptr) return std::nullopt;
      *tail = Node{.begin = position + *length, .end = node->end, .next = node->next};
      node->end = position;
      node->next = tail;
    } else if (padding > 0) {
      node->end = position;
    } else if (rest > 0) {
      node->begin += *length;
    } else {
      *link = node->next;
      nodes_.Free(node);
    }
    free_bytes_ -= *length;
    return position;
  }
  return std::nullopt;
}

bool FreeListAlloc::Free(uint64_t position, uint64_t bytes) {
  const std::optional<uint64_t> length = Round(bytes);
  SPANPOOL_CHECK(length.has_value() && position % kGrain == 0);
  SPANPOOL_CHECK(position >= begin_ && position <= end_ && *length <= end_ - position)
      << position << "+" << bytes << " lies outside the range";
  const uint64_t limit = position + *length;
  Node* before = nullptr;
  Node* after = head_;
  while (after != nullptr && after->begin < position) {
    ++steps_;
    before = after;
    after = after->next;
  }
  SPANPOOL_CHECK(before == nullptr || before->end <= position) << position << " is free";
  SPANPOOL_CHECK(after == nullptr || after->begin >= limit) << position << " is free in part";
  const bool joins_before = before != nullptr && before->end == position;
  const bool joins_after = after != nullptr && after->begin == limit;
  if (joins_before && joins_after) {
    before->end = after->end;
    before->next = after->next;
    nodes_.Free(after);
  } else if (joins_before) {
    before->end = limit;
  } else if (joins_after) {
    after->begin = position;
  } else {
    Node* node = nodes_.Alloc();
    if (node == nullptr) return false;
    *node = Node{.begin = position, .end = limit, .next = after};
    (before == nullptr ? head_ : before->next) = node;
  }
  free_bytes_ += *length;
  return true;
}

bool FreeListAlloc::Extend(uint64_t new_end) {
  SPANPOOL_CHECK(new_end > end_ && new_end % kGrain == 0);
  const uint64_t old_end = end_;
  end_ = new_end;
  if (Free(old_end, new_end - old_end)) return true;
  end_ = old_end;
  return false;
}

uint64_t FreeListAlloc::largest_free() const {
  uint64_t largest = 0;
  for (const Node* node = head_; node != nullptr; node = node->next) {
    largest = std::max(largest, node->end - node->begin);
  }
  return largest;
}

void FreeListAlloc::CheckInvariants() const {
  uint64_t free = 0;
  size_t blocks = 0;
  const Node* previous = nullptr;
  for (const Node* node = head_; node != nullptr; node = node->next) {
    SPANPOOL_CHECK_LT(node->begin, node->end);
    SPANPOOL_CHECK(node->begin % kGrain == 0 && node->end % kGrain == 0);
    SPANPOOL_CHECK(node->begin >= begin_ && node->end <= end_);
    SPANPOOL_CHECK(previous == nullptr || previous->end < node->begin);
    free += node->end - node->begin;
    ++blocks;
    previous = node;
  }
  SPANPOOL_CHECK_EQ(free, free_bytes_);
  SPANPOOL_CHECK_EQ(blocks, nodes_.in_use());
  nodes_.CheckInvariants();
}

}  // namespace spanpool

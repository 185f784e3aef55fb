#include "allocator/span_records.h"

#include <algorithm>

#include "allocator/check.h"

namespace spanpool {
namespace {

// Which bitmap a record of `blocks` blocks has: its own word, 512 or 1024 bits.
size_t KindOf(uint32_t blocks) { return blocks <= 64 ? 0 : blocks <= 512 ? 1 : 2; }

// Makes a record fit for its next user.
Span* Prepare(Span* span, uint32_t blocks) {
  span->blocks = blocks;
  span->next = nullptr;
  std::fill_n(span->bits(), span->bitmap_words(), 0);
  return span;
}

}  // namespace

Span* SpanRecords::NewLocked(size_t kind) {
  Span* const span = spans_.Alloc();
  if (span == nullptr) return nullptr;
  if (kind == 0) return span;
  if (kind == 1) {
    Bitmap<8>* const bitmap = small_bitmaps_.Alloc();
    span->bitmap = bitmap == nullptr ? nullptr : bitmap->words.data();
  } else {
    Bitmap<16>* const bitmap = large_bitmaps_.Alloc();
    span->bitmap = bitmap == nullptr ? nullptr : bitmap->words.data();
  }
  if (span->bitmap != nullptr) return span;
  spans_.Free(span);
  return nullptr;
}

void SpanRecords::DeleteLocked(Span* span, size_t kind) {
  // A bitmap's words are its only member.
  if (kind == 1) {
    small_bitmaps_.Free(reinterpret_cast<Bitmap<8>*>(span->bitmap));
  } else if (kind == 2) {
    large_bitmaps_.Free(reinterpret_cast<Bitmap<16>*>(span->bitmap));
  }
  span->next = nullptr;
  spans_.Free(span);
}

Span* SpanRecords::New(uint32_t blocks) {
  RankedMutexLock lock(&mu_);
  Span* const span = NewLocked(KindOf(blocks));
  return span == nullptr ? nullptr : Prepare(span, blocks);
}

void SpanRecords::Delete(Span* span) {
  SPANPOOL_DCHECK(span->set == nullptr);
  RankedMutexLock lock(&mu_);
  DeleteLocked(span, KindOf(span->blocks));
}

Span* SpanRecords::New(uint32_t blocks, Cache* cache) {
  const size_t kind = KindOf(blocks);
  Cache::List& list = cache->lists_[kind];
  if (list.first == nullptr) {
    RankedMutexLock lock(&mu_);
    while (list.size < Cache::kBatch) {
      Span* const span = NewLocked(kind);
      if (span == nullptr) break;  // fewer will do
      span->next = list.first;
      list.first = span;
      ++list.size;
    }
    if (list.first == nullptr) return nullptr;
  }
  Span* const span = list.first;
  list.first = span->next;
  --list.size;
  return Prepare(span, blocks);
}

void SpanRecords::Delete(Span* span, Cache* cache) {
  SPANPOOL_DCHECK(span->set == nullptr);
  const size_t kind = KindOf(span->blocks);
  Cache::List& list = cache->lists_[kind];
  if (list.size >= 2 * Cache::kBatch) {
    RankedMutexLock lock(&mu_);
    while (list.size > Cache::kBatch) {
      Span* const first = list.first;
      list.first = first->next;
      --list.size;
      DeleteLocked(first, kind);
    }
  }
  span->next = list.first;
  list.first = span;
  ++list.size;
}

void SpanRecords::Flush(Cache* cache) {
  RankedMutexLock lock(&mu_);
  for (size_t kind = 0; kind < cache->lists_.size(); ++kind) {
    Cache::List& list = cache->lists_[kind];
    while (list.first != nullptr) {
      Span* const first = list.first;
      list.first = first->next;
      DeleteLocked(first, kind);
    }
    list.size = 0;
  }
}

size_t SpanRecords::carved() const {
  RankedMutexLock lock(&mu_);
  return spans_.carved();
}

size_t SpanRecords::in_use() const {
  RankedMutexLock lock(&mu_);
  return spans_.in_use();
}

uint64_t SpanRecords::metadata_bytes() const {
  RankedMutexLock lock(&mu_);
  return memory_.committed_bytes();
}

void SpanRecords::CheckInvariants() const {
  RankedMutexLock lock(&mu_);
  memory_.CheckInvariants();
  spans_.CheckInvariants();
  small_bitmaps_.CheckInvariants();
  large_bitmaps_.CheckInvariants();
}

}  // namespace spanpool

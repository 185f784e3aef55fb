#include "allocator/span_records.h"

#include <algorithm>
#include <new>

#include "allocator/check.h"

namespace spanpool {
namespace {

constexpr size_t kBitmapBytes[] = {64, 128};

// Which bitmap `blocks` blocks need.
size_t BitmapKind(uint32_t blocks) { return blocks <= kBitmapBytes[0] * 8 ? 0 : 1; }

}  // namespace

SpanRecords::~SpanRecords() {
  RankedMutexLock lock(&mu_);
  for (const Chunk& chunk : chunks_) metadata_->Release(chunk.spans, kChunkBytes);
  for (void* chunk : bitmap_chunks_) metadata_->Release(chunk, kChunkBytes);
}

void* SpanRecords::NewChunk() {
  void* chunk = metadata_->Reserve(kChunkBytes);
  if (chunk == nullptr) return nullptr;
  if (!metadata_->Commit(chunk, kChunkBytes)) {
    metadata_->Release(chunk, kChunkBytes);
    return nullptr;
  }
  return chunk;
}

uint64_t* SpanRecords::NewBitmap(size_t kind) {
  if (free_bitmaps_[kind] == nullptr) {
    std::byte* const chunk = static_cast<std::byte*>(NewChunk());
    if (chunk == nullptr) return nullptr;
    bitmap_chunks_.push_back(chunk);
    for (size_t at = kChunkBytes; at != 0; at -= kBitmapBytes[kind]) {
      free_bitmaps_[kind] = new (chunk + at - kBitmapBytes[kind]) Bitmap{free_bitmaps_[kind]};
    }
  }
  Bitmap* const bitmap = free_bitmaps_[kind];
  free_bitmaps_[kind] = bitmap->next;
  return reinterpret_cast<uint64_t*>(bitmap);
}

Span* SpanRecords::New(uint32_t blocks) {
  RankedMutexLock lock(&mu_);
  uint64_t* bitmap = nullptr;
  if (blocks > 64) {
    bitmap = NewBitmap(BitmapKind(blocks));
    if (bitmap == nullptr) return nullptr;
  }
  Span* span = free_;
  if (span != nullptr) {
    free_ = span->next;
    span->next = nullptr;
  } else {
    if (chunks_.empty() || chunks_.back().used == kChunkBytes / sizeof(Span)) {
      void* const chunk = NewChunk();
      if (chunk == nullptr) {
        if (bitmap != nullptr) {
          free_bitmaps_[BitmapKind(blocks)] =
              new (bitmap) Bitmap{free_bitmaps_[BitmapKind(blocks)]};
        }
        return nullptr;
      }
      chunks_.push_back({static_cast<Span*>(chunk), 0});
    }
    span = new (chunks_.back().spans + chunks_.back().used++) Span;
  }
  span->blocks = blocks;
  span->bits = bitmap == nullptr ? &span->own_bits : bitmap;
  std::fill_n(span->bits, span->bitmap_words(), 0);
  return span;
}

void SpanRecords::Delete(Span* span) {
  SPANPOOL_DCHECK(span->set == nullptr);
  RankedMutexLock lock(&mu_);
  if (span->bits != &span->own_bits) {
    const size_t kind = BitmapKind(span->blocks);
    free_bitmaps_[kind] = new (span->bits) Bitmap{free_bitmaps_[kind]};
    span->bits = &span->own_bits;
  }
  span->next = free_;
  free_ = span;
}

uint64_t SpanRecords::metadata_bytes() const {
  RankedMutexLock lock(&mu_);
  return (chunks_.size() + bitmap_chunks_.size()) * kChunkBytes;
}

}  // namespace spanpool

// The records of spans, and of their bitmaps where those do not fit into the span's own word.
//
// Records are reused but never given back, and a reused record keeps its sweep generation: a
// sweeper that holds a pointer to a span of the past loses its compare-and-swap instead of winning
// it on a zeroed field.
//
// Thread-safe. Lock rank: kRecords.

#ifndef SPANPOOL_ALLOCATOR_SPAN_RECORDS_H_
#define SPANPOOL_ALLOCATOR_SPAN_RECORDS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "allocator/lock_rank.h"
#include "allocator/metadata_source.h"
#include "allocator/span.h"

namespace spanpool {

class SpanRecords {
 public:
  // `metadata` outlives this object.
  explicit SpanRecords(MetadataSource* metadata) : metadata_(metadata) {}
  ~SpanRecords();
  SpanRecords(const SpanRecords&) = delete;
  SpanRecords& operator=(const SpanRecords&) = delete;

  // A record with a zeroed bitmap for `blocks` blocks, 1 to kMaxBlocksPerSpan; state, sweep
  // generation and set links are as its last user left them, the rest is for the caller to fill in.
  // Null when there is no memory.
  Span* New(uint32_t blocks);
  void Delete(Span* span);

  // Calls f(span) for every record there ever was, in use or not (Go's allspans).
  template <typename F>
  void ForEach(F f) const {
    RankedMutexLock lock(&mu_);
    for (const Chunk& chunk : chunks_) {
      for (size_t i = 0; i < chunk.used; ++i) f(chunk.spans + i);
    }
  }

  uint64_t metadata_bytes() const;

 private:
  static constexpr size_t kChunkBytes = 16 << 10;
  struct Chunk {
    Span* spans;
    size_t used;
  };
  struct Bitmap {
    Bitmap* next;
  };

  void* NewChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t* NewBitmap(size_t kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  MetadataSource* const metadata_;
  mutable RankedMutex mu_{LockRank::kRecords};
  Span* free_ ABSL_GUARDED_BY(mu_) = nullptr;  // through next
  std::vector<Chunk> chunks_ ABSL_GUARDED_BY(mu_);
  Bitmap* free_bitmaps_[2] ABSL_GUARDED_BY(mu_) = {};  // of 64 and 128 bytes
  std::vector<void*> bitmap_chunks_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SPAN_RECORDS_H_

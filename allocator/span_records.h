// The records of spans, and of their bitmaps where those do not fit into the span's own word.
//
// Records are reused but never given back, and a reused record keeps its sweep generation: a
// sweeper that holds a pointer to a span of the past loses its compare-and-swap instead of winning
// it on a zeroed field.
//
// Thread-safe. Lock rank: kRecords.

#ifndef SPANPOOL_ALLOCATOR_SPAN_RECORDS_H_
#define SPANPOOL_ALLOCATOR_SPAN_RECORDS_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "allocator/fix_alloc.h"
#include "allocator/linear_alloc.h"
#include "allocator/lock_rank.h"
#include "allocator/metadata_source.h"
#include "allocator/span.h"

namespace spanpool {

class SpanRecords {
 public:
  // `metadata` outlives this object.
  explicit SpanRecords(MetadataSource* metadata)
      : memory_(metadata), spans_(&memory_), small_bitmaps_(&memory_), large_bitmaps_(&memory_) {}
  SpanRecords(const SpanRecords&) = delete;
  SpanRecords& operator=(const SpanRecords&) = delete;

  // A record with a zeroed bitmap for `blocks` blocks, 1 to kMaxBlocksPerSpan; state, sweep
  // generation and set links are as its last user left them, the rest is for the caller to fill in.
  // Null when there is no memory.
  Span* New(uint32_t blocks) ABSL_LOCKS_EXCLUDED(mu_);
  void Delete(Span* span) ABSL_LOCKS_EXCLUDED(mu_);

  // A few free records, with bitmaps, that an owner keeps to itself: New and Delete through it take
  // the lock once in kBatch times. Not thread-safe.
  class Cache {
   public:
    static constexpr size_t kBatch = 16;

   private:
    friend class SpanRecords;
    // Of each size of bitmap; linked through next.
    struct List {
      Span* first = nullptr;
      size_t size = 0;
    };
    std::array<List, 3> lists_;
  };
  Span* New(uint32_t blocks, Cache* cache) ABSL_LOCKS_EXCLUDED(mu_);
  void Delete(Span* span, Cache* cache) ABSL_LOCKS_EXCLUDED(mu_);
  void Flush(Cache* cache) ABSL_LOCKS_EXCLUDED(mu_);

  // Calls f(span) for every record there ever was, in use or not (Go's allspans). Under the lock.
  template <typename F>
  void ForEach(F f) ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    spans_.ForEach(f);
  }

  // Records there ever were, in use or not; in caches or with users.
  size_t carved() const;
  size_t in_use() const;
  uint64_t metadata_bytes() const;
  void CheckInvariants() const;

 private:
  Span* NewLocked(size_t kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DeleteLocked(Span* span, size_t kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  template <size_t kWords>
  struct Bitmap {
    std::array<uint64_t, kWords> words;
  };

  mutable RankedMutex mu_{LockRank::kRecords};
  PersistentAlloc memory_ ABSL_GUARDED_BY(mu_);
  FixAlloc<Span> spans_ ABSL_GUARDED_BY(mu_);
  FixAlloc<Bitmap<8>> small_bitmaps_ ABSL_GUARDED_BY(mu_);   // up to 512 blocks
  FixAlloc<Bitmap<16>> large_bitmaps_ ABSL_GUARDED_BY(mu_);  // up to 1024
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_SPAN_RECORDS_H_

// The simplest allocator there is: a pointer that only moves up.
//
// LinearAlloc hands out [next, next + bytes) of a range it was given and advances. There is no
// free. What it costs is one addition; what it cannot do is give anything back, so whoever uses it
// for memory with a life of its own pays for the sum of all that was ever allocated (`./dev bench
// fragmentation` shows how much that is). The heap uses it for what lives as long as the heap does.
//
// Positions are plain bytes: addresses or offsets, as the owner likes; the memory is not touched.
// A range may be backed step by step: then the allocator calls `commit` for whole OS pages as they
// are first needed.
//
//        begin            next      committed            end
//          |######## used ##|........... |                |
//
// PersistentAlloc is LinearAlloc over 256 KiB chunks of metadata (metadata_source.h), for records
// of any number. Large requests get a reservation of their own. Nothing is given back before the
// end.
//
// Invariants
//  1. begin <= next <= committed <= end; committed is on an OS page's border or at an end.
//  2. A refused request changes nothing.
//
// Not thread-safe: one owner, or its lock. Differences from Go's linearAlloc: what is committed is
// rounded up from the end of the request, so that requests of odd sizes are backed to their last
// byte; running out of memory is an answer, not a crash.

#ifndef SPANPOOL_ALLOCATOR_LINEAR_ALLOC_H_
#define SPANPOOL_ALLOCATOR_LINEAR_ALLOC_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "allocator/metadata_source.h"

namespace spanpool {

class LinearAlloc {
 public:
  // Backs [begin, begin + bytes), whole OS pages but for the range's own ends; false if it cannot.
  using Commit = std::function<bool(uint64_t begin, uint64_t bytes)>;

  // Nothing to allocate from.
  LinearAlloc() = default;
  // The range [begin, end) needs no backing, or `commit` does it.
  LinearAlloc(uint64_t begin, uint64_t end, Commit commit = nullptr);

  // `bytes` bytes whose position is a multiple of `alignment`, a power of two (CHECK). Nothing if
  // they do not fit, or cannot be backed.
  std::optional<uint64_t> Alloc(uint64_t bytes, uint64_t alignment);

  uint64_t begin() const { return begin_; }
  uint64_t next() const { return next_; }
  uint64_t committed() const { return committed_; }
  uint64_t end() const { return end_; }

  // Aborts unless the invariants hold.
  void CheckInvariants() const;

 private:
  uint64_t begin_ = 0;
  uint64_t next_ = 0;
  uint64_t committed_ = 0;
  uint64_t end_ = 0;
  Commit commit_;
};

class PersistentAlloc {
 public:
  static constexpr size_t kChunkBytes = size_t{256} << 10;
  // From here on a request gets a reservation of its own.
  static constexpr size_t kDirectBytes = size_t{64} << 10;
  static constexpr size_t kMaxAlignment = kOsPageBytes;

  // `metadata` outlives the allocator.
  explicit PersistentAlloc(MetadataSource* metadata = MetadataSource::System());
  // Gives all memory back. No destructor of what was put there runs.
  ~PersistentAlloc();
  PersistentAlloc(const PersistentAlloc&) = delete;
  PersistentAlloc& operator=(const PersistentAlloc&) = delete;

  // `bytes` >= 1 zeroed bytes, aligned to a power of two up to kMaxAlignment (CHECK). Null when the
  // system has no memory; try again later.
  void* Alloc(size_t bytes, size_t alignment);

  // Memory committed, used or not.
  uint64_t committed_bytes() const;

  // Aborts unless the current chunk is sound.
  void CheckInvariants() const;

 private:
  struct Reservation {
    void* begin;
    size_t bytes;
  };
  // Null on failure, and then nothing is kept.
  void* Reserve(size_t bytes, size_t committed_bytes);

  MetadataSource* const metadata_;
  std::vector<Reservation> reservations_;
  LinearAlloc chunk_;                    // positions are addresses
  uint64_t committed_before_chunk_ = 0;  // in all reservations but the current chunk's
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_LINEAR_ALLOC_H_

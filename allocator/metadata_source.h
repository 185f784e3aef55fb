// Where the heap's own records live: address space reserved in one piece, memory committed as
// needed.
//
// Metadata is private memory of the process that owns the heap; it never lies in an arena and is
// never mapped by a client. Large sparse indices (page_alloc.h) reserve far more than they commit.
// The class is an interface only so that tests can make every single commit fail.

#ifndef SPANPOOL_ALLOCATOR_METADATA_SOURCE_H_
#define SPANPOOL_ALLOCATOR_METADATA_SOURCE_H_

#include <cstddef>

namespace spanpool {

// The granularity of Commit, and of the memory the system hands out.
inline constexpr size_t kOsPageBytes = 4096;

// Thread-safe.
class MetadataSource {
 public:
  virtual ~MetadataSource() = default;

  // Reserves `bytes` (a multiple of kOsPageBytes) of address space, aligned to kOsPageBytes.
  // Touching it before Commit faults. Null when the process has no address space left.
  virtual void* Reserve(size_t bytes) = 0;

  // Makes the OS pages that hold [begin, begin + bytes), inside one reservation, readable, writable
  // and zero; those that are so already keep their contents. False when the system refuses.
  virtual bool Commit(void* begin, size_t bytes) = 0;

  // Gives a whole reservation back.
  virtual void Release(void* begin, size_t bytes) = 0;

  // The system's own: mmap and mprotect.
  static MetadataSource* System();
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_METADATA_SOURCE_H_

#include "allocator/metadata_source.h"

#include <sys/mman.h>

#include <cstdint>

namespace spanpool {
namespace {

class SystemMetadataSource final : public MetadataSource {
 public:
  void* Reserve(size_t bytes) override {
    void* begin =
        mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) return nullptr;
    // Huge pages would back sparse indices with 512 times what they need. Kernels without them
    // refuse the advice, which is as good.
    (void)madvise(begin, bytes, MADV_NOHUGEPAGE);
    return begin;
  }

  bool Commit(void* begin, size_t bytes) override {
    const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
    const uintptr_t first = address & ~(kOsPageBytes - 1);
    return mprotect(reinterpret_cast<void*>(first), address + bytes - first,
                    PROT_READ | PROT_WRITE) == 0;
  }

  void Release(void* begin, size_t bytes) override { munmap(begin, bytes); }
};

}  // namespace

MetadataSource* MetadataSource::System() {
  static SystemMetadataSource* const source = new SystemMetadataSource;
  return source;
}

}  // namespace spanpool

#include "client/memory_resource.h"

#include <new>

namespace spanpool::internal {
namespace {

class PoolResource final : public std::pmr::memory_resource {
 public:
  explicit PoolResource(SessionCore* core) : core_(core) {}

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    void* block = alignment <= kMaxAlignment ? core_->Malloc(bytes, alignment) : nullptr;
    if (block == nullptr) throw std::bad_alloc();
    return block;
  }
  // A block's page knows its size; the caller's word for it is not needed.
  void do_deallocate(void* block, size_t, size_t) override {
    core_->Free(block, __builtin_return_address(0));
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }

  static constexpr size_t kMaxAlignment = 2 << 20;
  SessionCore* const core_;
};

}  // namespace

std::unique_ptr<std::pmr::memory_resource> NewMemoryResource(SessionCore* core) {
  return std::make_unique<PoolResource>(core);
}

}  // namespace spanpool::internal

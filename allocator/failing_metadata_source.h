// A metadata source that stops working after a number of calls: for tests that let every single
// reservation and commit fail once.

#ifndef SPANPOOL_ALLOCATOR_FAILING_METADATA_SOURCE_H_
#define SPANPOOL_ALLOCATOR_FAILING_METADATA_SOURCE_H_

#include <cstddef>
#include <cstdint>

#include "allocator/metadata_source.h"

namespace spanpool {

// Not thread-safe.
class FailingMetadataSource : public MetadataSource {
 public:
  // The first `allowed` calls of Reserve and Commit succeed, and none after them.
  explicit FailingMetadataSource(int64_t allowed) : allowed_(allowed) {}

  void* Reserve(size_t bytes) override { return Fails() ? nullptr : System()->Reserve(bytes); }
  bool Commit(void* begin, size_t bytes) override {
    return !Fails() && System()->Commit(begin, bytes);
  }
  void Release(void* begin, size_t bytes) override { System()->Release(begin, bytes); }

  // Whether a call has failed.
  bool hit() const { return hit_; }
  // From now on calls succeed.
  void Heal() { allowed_ = INT64_MAX; }

 private:
  bool Fails() {
    if (allowed_-- > 0) return false;
    hit_ = true;
    return true;
  }

  int64_t allowed_;
  bool hit_ = false;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_FAILING_METADATA_SOURCE_H_

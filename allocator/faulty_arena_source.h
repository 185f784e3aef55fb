// An arena source that fails when told to, for tests of what its users do then.
//
//   FaultyArenaSource source(&real);
//   source.FailCall(FaultyArenaSource::Call::kPopulate, 3);   // the third from now
//
// Without a real source behind it, it accepts every call and has no memory: enough for a heap,
// which never looks at its memory. Thread-safe.

#ifndef SPANPOOL_ALLOCATOR_FAULTY_ARENA_SOURCE_H_
#define SPANPOOL_ALLOCATOR_FAULTY_ARENA_SOURCE_H_

#include <array>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/arena_source.h"
#include "allocator/lock_rank.h"
#include "allocator/page_ranges.h"
#include "allocator/units.h"

namespace spanpool {

class FaultyArenaSource : public ArenaSource {
 public:
  enum class Call : uint8_t { kCreate, kPopulate, kDiscard, kFindBacked };

  // `real` may be null and outlives this object.
  explicit FaultyArenaSource(ArenaSource* real = nullptr) : real_(real) {}

  PageCount unit() const override { return real_ == nullptr ? PageCount(1) : real_->unit(); }

  // The `n`-th call of this kind from now fails with RESOURCE_EXHAUSTED, and so do `times - 1` more
  // after it; n = 0: none does.
  void FailCall(Call call, uint64_t n, uint64_t times = 1) {
    RankedMutexLock lock(&mu_);
    kinds_[Index(call)].fail_at = n == 0 ? 0 : kinds_[Index(call)].calls + n;
    kinds_[Index(call)].fail_times = times;
  }
  // Calls of this kind so far, and how many of them were made to fail.
  uint64_t calls(Call call) const {
    RankedMutexLock lock(&mu_);
    return kinds_[Index(call)].calls;
  }
  uint64_t failures(Call call) const {
    RankedMutexLock lock(&mu_);
    return kinds_[Index(call)].failures;
  }

  absl::Status Create(ArenaIndex arena) override {
    if (Fails(Call::kCreate)) return absl::ResourceExhaustedError("no arena, as ordered");
    return real_ == nullptr ? absl::OkStatus() : real_->Create(arena);
  }
  absl::Status Populate(PageRange pages) override {
    if (Fails(Call::kPopulate)) return absl::ResourceExhaustedError("no memory, as ordered");
    return real_ == nullptr ? absl::OkStatus() : real_->Populate(pages);
  }
  absl::Status Discard(PageRange pages) override {
    if (Fails(Call::kDiscard)) return absl::ResourceExhaustedError("no discarding, as ordered");
    return real_ == nullptr ? absl::OkStatus() : real_->Discard(pages);
  }
  absl::StatusOr<PageRanges> FindBacked(PageRange pages) override {
    if (Fails(Call::kFindBacked)) return absl::ResourceExhaustedError("no answer, as ordered");
    return real_ == nullptr ? PageRanges() : real_->FindBacked(pages);
  }

 private:
  struct Kind {
    uint64_t calls = 0;
    uint64_t failures = 0;
    uint64_t fail_at = 0;  // the number of the call that fails first; 0 = none
    uint64_t fail_times = 0;
  };

  static size_t Index(Call call) { return static_cast<size_t>(call); }

  bool Fails(Call call) {
    RankedMutexLock lock(&mu_);
    Kind& kind = kinds_[Index(call)];
    ++kind.calls;
    if (kind.fail_at == 0 || kind.calls < kind.fail_at ||
        kind.calls - kind.fail_at >= kind.fail_times) {
      return false;
    }
    ++kind.failures;
    return true;
  }

  ArenaSource* const real_;
  mutable RankedMutex mu_{LockRank::kArenaSource};
  std::array<Kind, 4> kinds_ ABSL_GUARDED_BY(mu_);
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_FAULTY_ARENA_SOURCE_H_

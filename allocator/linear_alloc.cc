#include "allocator/linear_alloc.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "allocator/check.h"

namespace spanpool {

LinearAlloc::LinearAlloc(uint64_t begin, uint64_t end, Commit commit)
    : begin_(begin),
      next_(begin),
      committed_(commit ? begin : end),
      end_(end),
      commit_(std::move(commit)) {
  SPANPOOL_CHECK_LE(begin, end);
}

std::optional<uint64_t> LinearAlloc::Alloc(uint64_t bytes, uint64_t alignment) {
  SPANPOOL_CHECK(std::has_single_bit(alignment)) << alignment;
  const uint64_t padding = -next_ & (alignment - 1);
  if (padding > end_ - next_ || bytes > end_ - next_ - padding) return std::nullopt;
  const uint64_t position = next_ + padding;
  const uint64_t new_next = position + bytes;
  if (new_next > committed_) {
    const uint64_t beyond = -new_next & (kOsPageBytes - 1);
    const uint64_t up_to = new_next + std::min(beyond, end_ - new_next);
    if (!commit_(committed_, up_to - committed_)) return std::nullopt;
    committed_ = up_to;
  }
  next_ = new_next;
  return position;
}

void LinearAlloc::CheckInvariants() const {
  SPANPOOL_CHECK_LE(begin_, next_);
  SPANPOOL_CHECK_LE(next_, committed_);
  SPANPOOL_CHECK_LE(committed_, end_);
  SPANPOOL_CHECK(committed_ == begin_ || committed_ == end_ || committed_ % kOsPageBytes == 0);
}

PersistentAlloc::PersistentAlloc(MetadataSource* metadata) : metadata_(metadata) {}

PersistentAlloc::~PersistentAlloc() {
  for (const Reservation& r : reservations_) metadata_->Release(r.begin, r.bytes);
}

void* PersistentAlloc::Reserve(size_t bytes, size_t committed_bytes) {
  void* begin = metadata_->Reserve(bytes);
  if (begin == nullptr) return nullptr;
  if (committed_bytes > 0 && !metadata_->Commit(begin, committed_bytes)) {
    metadata_->Release(begin, bytes);
    return nullptr;
  }
  reservations_.push_back({begin, bytes});
  return begin;
}

void* PersistentAlloc::Alloc(size_t bytes, size_t alignment) {
  SPANPOOL_CHECK_GE(bytes, 1u);
  SPANPOOL_CHECK_LE(alignment, kMaxAlignment);
  if (bytes >= kDirectBytes) {
    if (bytes > SIZE_MAX - kOsPageBytes) return nullptr;
    const size_t whole = (bytes + kOsPageBytes - 1) & ~(kOsPageBytes - 1);
    void* begin = Reserve(whole, whole);
    if (begin != nullptr) committed_before_chunk_ += whole;
    return begin;
  }
  // A second failure is the system's: a request that is not direct fits an empty chunk.
  for (const bool may_reserve : {true, false}) {
    if (const auto position = chunk_.Alloc(bytes, alignment); position.has_value()) {
      return reinterpret_cast<void*>(*position);
    }
    const uint64_t left = chunk_.end() - chunk_.next();
    if (!may_reserve || left >= bytes + alignment - 1) break;  // it fits: it cannot be backed
    void* begin = Reserve(kChunkBytes, 0);
    if (begin == nullptr) break;
    committed_before_chunk_ += chunk_.committed() - chunk_.begin();
    const uint64_t address = reinterpret_cast<uint64_t>(begin);
    chunk_ = LinearAlloc(address, address + kChunkBytes, [this](uint64_t from, uint64_t n) {
      return metadata_->Commit(reinterpret_cast<void*>(from), n);
    });
  }
  return nullptr;
}

uint64_t PersistentAlloc::committed_bytes() const {
  return committed_before_chunk_ + (chunk_.committed() - chunk_.begin());
}

void PersistentAlloc::CheckInvariants() const {
  chunk_.CheckInvariants();
  uint64_t reserved = 0;
  for (const Reservation& r : reservations_) reserved += r.bytes;
  SPANPOOL_CHECK_LE(committed_bytes(), reserved);
}

}  // namespace spanpool

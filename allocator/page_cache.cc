#include "allocator/page_cache.h"

#include <bit>

#include "allocator/check.h"

namespace spanpool {

std::optional<PageAlloc::Run> PageCache::Alloc(PageCount n) {
  const size_t count = n.value();
  SPANPOOL_CHECK(count >= 1 && count <= kMaxRun);
  uint64_t starts = block_.pages;  // bit i: pages i … i + known - 1 are here
  for (size_t known = 1; known < count;) {
    const size_t step = known < count - known ? known : count - known;
    starts &= starts >> step;
    known += step;
  }
  if (starts == 0) return std::nullopt;
  const uint64_t i = static_cast<uint64_t>(std::countr_zero(starts));
  const uint64_t mask = ((uint64_t{1} << count) - 1) << i;
  const uint64_t scavenged = static_cast<uint64_t>(std::popcount(block_.scavenged & mask));
  block_.pages &= ~mask;
  block_.scavenged &= ~mask;
  return PageAlloc::Run{block_.first + PageCount(i), PageCount(scavenged)};
}

bool PageCache::Free(PageRange range) {
  const PageId block = PageId(range.first.value() / 64 * 64);
  if (range.end() > block + PageCount(64)) return false;
  if (empty()) block_.first = block;
  if (block_.first != block) return false;
  const uint64_t ones =
      range.count.value() == 64 ? UINT64_MAX : (uint64_t{1} << range.count.value()) - 1;
  const uint64_t mask = ones << (range.first - block).value();
  SPANPOOL_CHECK((block_.pages & mask) == 0) << "page " << range.first << " is free already";
  block_.pages |= mask;
  return true;
}

void PageCache::ClearScavenged(PageRange range) {
  SPANPOOL_CHECK(range.first.value() % 64 == 0 && range.count.value() % 64 == 0);
  if (block_.first >= range.first && block_.first < range.end()) block_.scavenged = 0;
}

bool PageCache::Refill(PageAlloc* pages) {
  SPANPOOL_CHECK(empty());
  const std::optional<PageAlloc::Block> block = pages->TakeBlock();
  if (!block.has_value()) return false;
  block_ = *block;
  return true;
}

void PageCache::Flush(PageAlloc* pages) {
  pages->ReturnBlock(block_);
  block_ = {};
}

PageCount PageCache::pages() const {
  return PageCount(static_cast<uint64_t>(std::popcount(block_.pages)));
}

PageCount PageCache::scavenged() const {
  return PageCount(static_cast<uint64_t>(std::popcount(block_.scavenged)));
}

void PageCache::CheckInvariants(const PageAlloc& pages) const {
  SPANPOOL_CHECK((block_.scavenged & ~block_.pages) == 0);
  for (uint64_t i = 0; i < 64; ++i) {
    if ((block_.pages >> i & 1) != 0) {
      SPANPOOL_CHECK(!pages.IsFree(block_.first + PageCount(i)));
    }
  }
}

}  // namespace spanpool

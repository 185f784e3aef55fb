#include "client/page_map.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "allocator/check.h"
#include "client/cache_class.h"

namespace spanpool::internal {

absl::StatusOr<std::unique_ptr<PageMap>> PageMap::Create(PageCount pages) {
  std::unique_ptr<PageMap> map(new PageMap(pages));
  const size_t bytes = pages.value() * (sizeof(PageEntry) + sizeof(std::atomic<ClientSpan*>));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot reserve ", bytes,
                                                     " bytes for the page map: ", strerror(errno),
                                                     "; see ulimit -v and vm.overcommit_memory"));
  }
  map->memory_ = memory;
  map->memory_bytes_ = bytes;
  // Zero bytes are zero entries and null pointers.
  map->entries_ = static_cast<PageEntry*>(memory);
  map->spans_ = reinterpret_cast<std::atomic<ClientSpan*>*>(map->entries_ + pages.value());
  return map;
}

PageMap::~PageMap() {
  if (memory_ != nullptr) munmap(memory_, memory_bytes_);
}

void PageMap::Add(ClientSpan* span) {
  const uint64_t first = span->pages.first.value();
  SPANPOOL_CHECK_LE(span->pages.end().value(), pages_.value());
  const size_t stack = StackIndexOf(CacheClass(span->cache_class.load(std::memory_order_relaxed)));
  const bool large = span->span_class.large();
  uint16_t stack_offset = 0;
  uint32_t product = 0;
  if (stack != 0 && span->exact_step) {
    const uint32_t reciprocal = large ? uint32_t{1} << (32 - kPageShift) : span->reciprocal;
    product = static_cast<uint32_t>(span->offset().value()) * reciprocal;
    stack_offset = static_cast<uint16_t>(stack * sizeof(Stack));
  }
  for (uint64_t i = 0; i < span->pages.count.value(); ++i) {
    // A large block starts in the first page; what points into the others is no block.
    if (!large || i == 0) SetEntry(first + i, stack_offset, product);
    // release: pairs with the acquire in SpanOf.
    spans_[first + i].store(span, std::memory_order_release);
  }
}

void PageMap::SetEntry(uint64_t page, uint16_t stack, uint32_t product) {
  WritePlain(&entries_[page].product, product);
  WritePlain(&entries_[page].stack, stack);
}

bool PageMap::NoteMapped(PageRange pages) {
  bool any = false;
  for (PageId page = pages.first; page < pages.end(); ++page) {
    uint16_t& flags = entries_[page.value()].flags;
    if ((ReadPlain(&flags) & kMapped) != 0) continue;
    any = true;
    WritePlain(&flags, kMapped);
  }
  return any;
}

void PageMap::Remove(const ClientSpan* span) {
  const uint64_t first = span->pages.first.value();
  for (uint64_t i = 0; i < span->pages.count.value(); ++i) {
    SetEntry(first + i, 0, 0);
    spans_[first + i].store(nullptr, std::memory_order_relaxed);
  }
}

}  // namespace spanpool::internal

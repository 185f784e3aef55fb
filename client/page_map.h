// What each page of the pool is to this session: whose span it belongs to, and how a block of it is
// freed inline.
//
// Two sparse arrays over the pages of the pool, in memory that is reserved at once and taken up
// page by page as entries are written.
//
// Thread-safe: an entry is written by whoever adds or removes the span and read by anyone without a
// lock. A reader who holds a block of the page sees the entry, since the block reached it after the
// entry was written; a reader of any other page may see either state and must check under the lock
// of the span's class.

#ifndef SPANPOOL_CLIENT_PAGE_MAP_H_
#define SPANPOOL_CLIENT_PAGE_MAP_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "allocator/units.h"
#include "client/client_span.h"
#include "spanpool/thread_cache.h"

namespace spanpool::internal {

class PageMap {
 public:
  //   RESOURCE_EXHAUSTED  the process has no such stretch of address space
  static absl::StatusOr<std::unique_ptr<PageMap>> Create(PageCount pages);
  ~PageMap();
  PageMap(const PageMap&) = delete;
  PageMap& operator=(const PageMap&) = delete;

  // Enters a span. Requires that it lies within the map.
  void Add(ClientSpan* span);
  // Removes it: none of its blocks can be freed from now on.
  void Remove(const ClientSpan* span);

  // Notes that `pages` are mapped; false if all of them were noted before, in this or an earlier
  // loan. A note: two threads may both be told true.
  bool NoteMapped(PageRange pages);

  // The span on loan that owns `page`, or null. Requires a page within the map.
  ClientSpan* SpanOf(PageId page) const {
    // acquire: pairs with the release in Add; the record is written before.
    return spans_[page.value()].load(std::memory_order_acquire);
  }
  const PageEntry* entries() const { return entries_; }

 private:
  // PageEntry::flags
  static constexpr uint16_t kMapped = 1;

  explicit PageMap(PageCount pages) : pages_(pages) {}
  void SetEntry(uint64_t page, uint16_t stack, uint32_t product);

  const PageCount pages_;
  void* memory_ = nullptr;
  size_t memory_bytes_ = 0;
  PageEntry* entries_ = nullptr;
  std::atomic<ClientSpan*>* spans_ = nullptr;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_PAGE_MAP_H_

#include "allocator/arena_map.h"

#include <algorithm>
#include <new>

#include "allocator/check.h"

namespace spanpool {
namespace {

constexpr size_t RoundedBytes(size_t bytes) {
  return (bytes + kOsPageBytes - 1) / kOsPageBytes * kOsPageBytes;
}

}  // namespace

template <typename T>
T* ArenaMap::New() {
  void* memory = metadata_->Reserve(RoundedBytes(sizeof(T)));
  if (memory == nullptr) return nullptr;
  if (!metadata_->Commit(memory, sizeof(T))) {
    metadata_->Release(memory, RoundedBytes(sizeof(T)));
    return nullptr;
  }
  metadata_bytes_.fetch_add(RoundedBytes(sizeof(T)), std::memory_order_relaxed);
  return new (memory) T;
}

ArenaMap::~ArenaMap() {
  for (std::atomic<Table*>& entry : tables_) {
    Table* const table = entry.load(std::memory_order_relaxed);
    if (table == nullptr) continue;
    for (std::atomic<Arena*>& arena : *table) {
      if (Arena* const record = arena.load(std::memory_order_relaxed); record != nullptr) {
        metadata_->Release(record, RoundedBytes(sizeof(Arena)));
      }
    }
    metadata_->Release(table, RoundedBytes(sizeof(Table)));
  }
}

bool ArenaMap::Add(ArenaIndex arena) {
  SPANPOOL_CHECK_LT(arena.value(), kMaxArenas);
  SPANPOOL_CHECK(Find(arena) == nullptr) << "arena " << arena;
  std::atomic<Table*>& entry = tables_[arena.value() / kTableEntries];
  Table* table = entry.load(std::memory_order_relaxed);  // only we write
  if (table == nullptr) {
    table = New<Table>();
    if (table == nullptr) return false;
    entry.store(table, std::memory_order_release);  // pairs with Find
  }
  Arena* const record = New<Arena>();
  if (record == nullptr) return false;
  (*table)[arena.value() % kTableEntries].store(record, std::memory_order_release);
  return true;
}

template <typename F>
void ArenaMap::ForEachPage(const Span& span, F f) {
  PageId page = span.first_page;
  const PageId end = span.range().end();
  while (page < end) {
    Arena* const arena = Find(ArenaOf(page));
    const PageId next = std::min(end, FirstPageOf(ArenaOf(page)) + PageCount(kPagesPerArena));
    for (; page < next; ++page) f(arena->spans[page.value() % kPagesPerArena]);
  }
}

void ArenaMap::Enter(Span* span) {
  ForEachPage(*span, [span](std::atomic<Span*>& entry) {
    SPANPOOL_DCHECK(entry.load(std::memory_order_relaxed) == nullptr);
    entry.store(span, std::memory_order_release);  // pairs with SpanOf
  });
}

void ArenaMap::Leave(Span* span) {
  ForEachPage(*span, [span](std::atomic<Span*>& entry) {
    SPANPOOL_DCHECK_EQ(entry.load(std::memory_order_relaxed), span);
    entry.store(nullptr, std::memory_order_release);
  });
}

bool ArenaMap::MarkUsed(PageRange pages) {
  bool used_before = false;
  PageId page = pages.first;
  while (page < pages.end()) {
    const PageId arena_first = FirstPageOf(ArenaOf(page));
    const PageId next = std::min(pages.end(), arena_first + PageCount(kPagesPerArena));
    std::atomic<uint64_t>& zeroed = Find(ArenaOf(page))->zeroed_pages;
    const uint64_t begin = (page - arena_first).value();
    const uint64_t end = (next - arena_first).value();
    // relaxed: the watermark guards nothing but itself; pages reach their owner under a lock.
    uint64_t mark = zeroed.load(std::memory_order_relaxed);
    if (begin < mark) used_before = true;
    while (mark < end) {
      const uint64_t seen = mark;
      if (zeroed.compare_exchange_weak(mark, end, std::memory_order_relaxed)) break;
      // It moved; to within our own pages only if somebody else was given one of them as well.
      SPANPOOL_CHECK(mark == seen || mark <= begin || mark > end)
          << "pages " << begin << " to " << end << " of an arena were handed out twice";
    }
    page = next;
  }
  return used_before;
}

}  // namespace spanpool

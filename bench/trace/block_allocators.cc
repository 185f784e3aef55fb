#include "bench/trace/block_allocators.h"

#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <optional>

#include "allocator/anonymous_arena_source.h"
#include "allocator/check.h"
#include "allocator/fix_alloc.h"
#include "allocator/free_list_alloc.h"
#include "allocator/heap.h"
#include "allocator/linear_alloc.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/units.h"

namespace spanpool::bench {
namespace {

constexpr uint64_t kReservedBytes = uint64_t{64} << 30;

std::byte* ReserveAddresses() {
  void* memory = mmap(nullptr, kReservedBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  SPANPOOL_CHECK(memory != MAP_FAILED);
  return static_cast<std::byte*>(memory);
}

class Malloc : public BlockAllocator {
 public:
  void* Alloc(size_t bytes, size_t alignment) override {
    if (alignment <= 16) return malloc(bytes);
    void* block = nullptr;
    return posix_memalign(&block, alignment, bytes) == 0 ? block : nullptr;
  }
  void Free(void* block, size_t) override { free(block); }
  size_t Usable(void* block, size_t) override { return malloc_usable_size(block); }
};

class Linear : public BlockAllocator {
 public:
  Linear() : base_(ReserveAddresses()), linear_(0, kReservedBytes) {}
  ~Linear() override { munmap(base_, kReservedBytes); }

  void* Alloc(size_t bytes, size_t alignment) override {
    const std::optional<uint64_t> offset = linear_.Alloc(std::max<size_t>(1, bytes), alignment);
    return offset.has_value() ? base_ + *offset : nullptr;
  }
  void Free(void*, size_t) override {}
  size_t Usable(void*, size_t bytes) override { return bytes; }

 private:
  std::byte* const base_;
  LinearAlloc linear_;
};

class FreeList : public BlockAllocator {
 public:
  FreeList() : base_(ReserveAddresses()), list_(&records_, 0, kStepBytes) {}
  ~FreeList() override { munmap(base_, kReservedBytes); }

  void* Alloc(size_t bytes, size_t alignment) override {
    std::optional<uint64_t> offset = list_.Alloc(bytes, alignment);
    if (!offset.has_value()) {
      const uint64_t wanted = bytes + alignment + FreeListAlloc::kGrain;
      const uint64_t step = (wanted + kStepBytes - 1) / kStepBytes * kStepBytes;
      if (step > kReservedBytes - list_.end() || !list_.Extend(list_.end() + step)) return nullptr;
      offset = list_.Alloc(bytes, alignment);
    }
    return offset.has_value() ? base_ + *offset : nullptr;
  }
  void Free(void* block, size_t bytes) override {
    const bool noted =
        list_.Free(static_cast<uint64_t>(static_cast<std::byte*>(block) - base_), bytes);
    SPANPOOL_CHECK(noted);
  }
  size_t Usable(void*, size_t bytes) override {
    return std::max<size_t>(16, (bytes + 15) / 16 * 16);
  }
  size_t holes() const override { return list_.free_blocks(); }

 private:
  static constexpr uint64_t kStepBytes = 128 << 10;  // what the C library moves its break by

  std::byte* const base_;
  PersistentAlloc records_;
  FreeListAlloc list_;
};

// What a span's holder knows of it: which of its blocks are free.
struct Held {
  Span* span = nullptr;
  Held* previous = nullptr;  // in the list of its class, if a block is free and one is used
  Held* next = nullptr;
  uint32_t free_blocks = 0;
  std::array<uint64_t, kMaxBlocksPerSpan / 64> free_bits{};
};

class SizeClassBlocks : public BlockAllocator {
 public:
  SizeClassBlocks()
      : source_(kReservedBytes / kArenaBytes),
        heap_(HeapOptions{.limit_bytes = kReservedBytes, .reserve_bytes = 0}, &source_, nullptr),
        held_(&records_) {
    void* map = mmap(nullptr, kMapBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    SPANPOOL_CHECK(map != MAP_FAILED);
    holder_of_ = static_cast<Held**>(map);
  }
  ~SizeClassBlocks() override { munmap(holder_of_, kMapBytes); }

  void* Alloc(size_t bytes, size_t alignment) override {
    // malloc's rule: whatever is as large as 16 bytes is aligned to them.
    if (alignment <= 16) alignment = bytes >= 16 ? 16 : 8;
    const SizeClass size_class = SizeClassFor(bytes, alignment);
    if (size_class == kLargeSizeClass) return AllocLarge(bytes, alignment);
    Held*& first = partial_[size_class.value()];
    if (first == nullptr) {
      const auto span = heap_.Grant(SpanClass(size_class, /*noscan=*/true));
      if (!span.ok()) return nullptr;
      first = Hold(*span);
      if (first == nullptr) return nullptr;
    }
    Held* held = first;
    size_t word = 0;
    while (held->free_bits[word] == 0) ++word;
    const size_t index = word * 64 + static_cast<size_t>(std::countr_zero(held->free_bits[word]));
    held->free_bits[word] &= held->free_bits[word] - 1;
    if (--held->free_blocks == 0) Unlink(&first, held);
    return source_.At(OffsetOf(held->span->first_page)) + index * held->span->block_bytes;
  }

  void Free(void* block, size_t) override {
    const PoolOffset offset = source_.OffsetOfAddress(block);
    Held* held = holder_of_[PageOf(offset).value()];
    Span* span = held->span;
    if (span->large()) {
      Release(held);
      return;
    }
    Held*& first = partial_[span->span_class.size_class().value()];
    const uint64_t index =
        BlockIndex(span->span_class.size_class(),
                   static_cast<uint32_t>(offset.value() - OffsetOf(span->first_page).value()));
    held->free_bits[index / 64] |= uint64_t{1} << index % 64;
    if (held->free_blocks++ == 0) Link(&first, held);
    if (held->free_blocks == span->blocks) {
      Unlink(&first, held);
      Release(held);
    }
  }

  size_t Usable(void* block, size_t) override {
    return holder_of_[PageOf(source_.OffsetOfAddress(block)).value()]->span->block_bytes;
  }

 private:
  void* AllocLarge(size_t bytes, size_t alignment) {
    const auto span =
        heap_.GrantLarge(PagesFor(std::max<size_t>(1, bytes)), /*scan=*/false, PagesFor(alignment));
    if (!span.ok()) return nullptr;
    Held* held = Hold(*span);
    return held == nullptr ? nullptr : source_.At(OffsetOf((*span)->first_page));
  }

  Held* Hold(Span* span) {
    Held* held = held_.Alloc();
    if (held == nullptr) return nullptr;
    *held = Held{.span = span, .free_blocks = span->blocks};
    for (uint32_t i = 0; i < span->blocks; ++i) held->free_bits[i / 64] |= uint64_t{1} << i % 64;
    // A large block is only ever named by its start.
    const uint64_t pages = span->large() ? 1 : span->pages.value();
    for (uint64_t i = 0; i < pages; ++i) holder_of_[span->first_page.value() + i] = held;
    return held;
  }

  void Release(Held* held) {
    heap_.Return(held->span);
    held_.Free(held);
  }

  void Link(Held** first, Held* held) {
    held->previous = nullptr;
    held->next = *first;
    if (held->next != nullptr) held->next->previous = held;
    *first = held;
  }

  void Unlink(Held** first, Held* held) {
    (held->previous == nullptr ? *first : held->previous->next) = held->next;
    if (held->next != nullptr) held->next->previous = held->previous;
    held->previous = held->next = nullptr;
  }

  static constexpr size_t kMapBytes = kReservedBytes / kPageBytes * sizeof(void*);

  AnonymousArenaSource source_;
  Heap heap_;
  PersistentAlloc records_;
  FixAlloc<Held> held_;
  Held** holder_of_;  // by page
  std::array<Held*, kNumSizeClasses> partial_{};
};

}  // namespace

std::unique_ptr<BlockAllocator> MakeBlockAllocator(std::string_view name) {
  if (name == "malloc") return std::make_unique<Malloc>();
  if (name == "linear") return std::make_unique<Linear>();
  if (name == "free_list") return std::make_unique<FreeList>();
  if (name == "size_class") return std::make_unique<SizeClassBlocks>();
  return nullptr;
}

}  // namespace spanpool::bench

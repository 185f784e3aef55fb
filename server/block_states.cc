#include "server/block_states.h"

#include "allocator/check.h"
#include "proto/layout/block_table.h"

namespace spanpool {

GranuleId GranuleOfBlock(const Span& span, uint32_t index) {
  return GranuleOf(PoolOffset(OffsetOf(span.first_page).value() + index * span.block_bytes));
}

uint32_t TableBlockStates::Sweep(const Span& span, absl::Span<uint64_t> in_use) {
  // Smaller blocks have no word of their own: they are never shared, so nobody else has them.
  if (span.block_bytes < kGranuleBytes) return 0;
  if (quarantine_->Touches(span.range())) {
    for (uint32_t block = 0; block < span.blocks; ++block) {
      in_use[block / 64] |= uint64_t{1} << (block % 64);
    }
    return span.blocks;
  }
  const uint64_t pages = span.large() ? 1 : span.pages.value();
  for (uint64_t i = 0; i < pages; ++i) {
    // Before the words are looked at: a block freed after that sets the hint again.
    const PageId page = span.first_page + PageCount(i);
    layout::TakeHint(arenas_->TableOf(ArenaOf(page))->marks, page);
  }
  uint32_t count = 0;
  for (uint32_t block = 0; block < span.blocks; ++block) {
    layout::SharedWord* word = arenas_->WordOf(GranuleOfBlock(span, block));
    // Null only if the span's words were never backed: it was never granted to anybody.
    if (word == nullptr || layout::CollectBlock(*word)) continue;
    in_use[block / 64] |= uint64_t{1} << (block % 64);
    ++count;
  }
  return count;
}

}  // namespace spanpool

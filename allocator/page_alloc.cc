#include "allocator/page_alloc.h"

#include <algorithm>
#include <bit>

#include "allocator/check.h"

namespace spanpool {
namespace {

constexpr uint64_t RoundUp(uint64_t value, uint64_t power_of_two) {
  return (value + power_of_two - 1) & ~(power_of_two - 1);
}
constexpr uint64_t RoundDown(uint64_t value, uint64_t power_of_two) {
  return value & ~(power_of_two - 1);
}

// First bit of `bits` at or after `from` whose value is `set`; kPagesPerChunk if there is none.
size_t NextBit(const ChunkBits& bits, size_t from, bool set) {
  for (size_t i = from / 64; i < kChunkWords; ++i) {
    uint64_t word = set ? bits.words[i] : ~bits.words[i];
    if (from > i * 64) word &= ~uint64_t{0} << (from - i * 64);
    if (word != 0) return i * 64 + static_cast<size_t>(std::countr_zero(word));
  }
  return kPagesPerChunk;
}

}  // namespace

PageAlloc::PageAlloc(MetadataSource* metadata) : metadata_(metadata) {}

PageAlloc::~PageAlloc() {
  for (size_t level = 0; level < kLevels; ++level) {
    if (summaries_[level] != nullptr) {
      metadata_->Release(summaries_[level], Entries(level) * sizeof(PageSummary));
    }
  }
  if (chunks_ != nullptr) metadata_->Release(chunks_, Entries(kLeaf) * sizeof(Chunk));
}

// ---- Growth

bool PageAlloc::Reserve() {
  for (size_t level = 0; level < kLevels; ++level) {
    if (summaries_[level] != nullptr) continue;
    void* memory = metadata_->Reserve(Entries(level) * sizeof(PageSummary));
    if (memory == nullptr) return false;
    summaries_[level] = static_cast<PageSummary*>(memory);
  }
  if (chunks_ == nullptr) {
    void* memory = metadata_->Reserve(Entries(kLeaf) * sizeof(Chunk));
    if (memory == nullptr) return false;
    chunks_ = static_cast<Chunk*>(memory);
  }
  return true;
}

absl::Status PageAlloc::Grow(PageRange range) {
  const uint64_t first = range.first.value();
  const uint64_t count = range.count.value();
  SPANPOOL_CHECK(first % kPagesPerChunk == 0 && count % kPagesPerChunk == 0 && count > 0);
  SPANPOOL_CHECK(first < kMaxPages && count <= kMaxPages - first);
  const uint64_t begin_chunk = first / kPagesPerChunk;
  const uint64_t end_chunk = begin_chunk + count / kPagesPerChunk;
  auto next = grown_.upper_bound(begin_chunk);
  SPANPOOL_CHECK(next == grown_.end() || end_chunk <= next->first);
  SPANPOOL_CHECK(next == grown_.begin() || std::prev(next)->second <= begin_chunk);

  // All that can fail comes first. What was committed before a failure is committed again next
  // time.
  absl::Status no_memory = absl::ResourceExhaustedError("no memory for the page allocator's index");
  if (!Reserve()) return no_memory;
  if (!metadata_->Commit(summaries_[0], Entries(0) * sizeof(PageSummary))) return no_memory;
  for (size_t level = 1; level < kLevels; ++level) {
    // Whole groups of siblings, which a parent is computed from: they share an OS page.
    const uint64_t lo = RoundDown(first >> PagesShift(level), 1 << kFanOutShift);
    const uint64_t hi = RoundUp(((first + count - 1) >> PagesShift(level)) + 1, 1 << kFanOutShift);
    if (!metadata_->Commit(summaries_[level] + lo, (hi - lo) * sizeof(PageSummary))) {
      return no_memory;
    }
  }
  if (!metadata_->Commit(chunks_ + begin_chunk, (end_chunk - begin_chunk) * sizeof(Chunk))) {
    return no_memory;
  }

  auto joined = grown_.emplace(begin_chunk, end_chunk).first;
  if (next != grown_.end() && next->first == end_chunk) {
    joined->second = next->second;
    grown_.erase(next);
  }
  if (joined != grown_.begin() && std::prev(joined)->second == begin_chunk) {
    std::prev(joined)->second = joined->second;
    grown_.erase(joined);
  }
  end_ = std::max(end_, first + count);

  ForEachChunk(first, count,
               [](Chunk& chunk, size_t begin, size_t n) { chunk.scavenged.Set(begin, n); });
  free_scavenged_ += range.count;
  Update(first, count);
  HintFree(first, count);
  return absl::OkStatus();
}

uint64_t PageAlloc::metadata_bytes() const {
  if (grown_.empty()) return 0;
  uint64_t os_pages = Entries(0) * sizeof(PageSummary) / kOsPageBytes;
  // Ranges come in order, so an OS page shared by two of them is the last of the one before.
  const auto count_array = [this](size_t pages_shift, size_t entry_bytes, size_t group) {
    uint64_t sum = 0;
    uint64_t counted_to = 0;
    for (const auto& [begin_chunk, end_chunk] : grown_) {
      const uint64_t lo = RoundDown(begin_chunk >> pages_shift, group) * entry_bytes / kOsPageBytes;
      const uint64_t hi =
          RoundUp(RoundUp(((end_chunk - 1) >> pages_shift) + 1, group) * entry_bytes,
                  kOsPageBytes) /
          kOsPageBytes;
      sum += hi - std::min(hi, std::max(lo, counted_to));
      counted_to = std::max(counted_to, hi);
    }
    return sum;
  };
  for (size_t level = 1; level < kLevels; ++level) {
    os_pages += count_array(PagesShift(level) - kChunkPagesShift, sizeof(PageSummary),
                            size_t{1} << kFanOutShift);
  }
  os_pages += count_array(0, sizeof(Chunk), 1);
  return os_pages * kOsPageBytes;
}

// ---- Search

bool PageAlloc::Search::Fits(uint64_t first, uint64_t length) {
  const uint64_t aligned = RoundUp(first, alignment);
  if (aligned + count > first + length) return false;
  result = aligned;
  return true;
}

// The first call decides: a later free page is not the first one.
void PageAlloc::Search::PassedFree(uint64_t exact_or_none) {
  if (passed_free) return;
  passed_free = true;
  first_free = exact_or_none;
}

// Walks over entry `index` of `level`. True when the search ends here, with search.result set; else
// search.run is the free run that the entry ends with.
bool PageAlloc::WalkEntry(size_t level, uint64_t index, Search& search) const {
  const uint64_t pages = uint64_t{1} << PagesShift(level);
  const uint64_t lo = index << PagesShift(level);
  if (lo + pages <= search.from) return false;
  const PageSummary summary = summaries_[level][index];
  if (summary.none_free()) {
    search.run = 0;
    return false;
  }
  if (lo >= search.from) {
    const uint64_t start = summary.start().value();
    if (start > 0) search.PassedFree(lo);
    // A run that crosses into this entry begins before any run inside it.
    if (search.Fits(lo - search.run, search.run + start)) return true;
    if (summary.max().value() < search.count) {
      search.PassedFree(kNoPage);
      search.run = start == pages ? search.run + pages : summary.end().value();
      return false;
    }
  }
  if (level == kLeaf) return WalkChunk(index, search);
  for (uint64_t child = index << kFanOutShift; child < (index + 1) << kFanOutShift; ++child) {
    if (WalkEntry(level + 1, child, search)) return true;
  }
  return false;
}

bool PageAlloc::WalkChunk(uint64_t chunk, Search& search) const {
  const ChunkBits& bits = chunks_[chunk].allocated;
  const uint64_t lo = chunk << kChunkPagesShift;
  const size_t from = search.from > lo ? search.from - lo : 0;
  if (!search.passed_free) {
    const size_t first_free = NextBit(bits, from, false);
    if (first_free < kPagesPerChunk) search.PassedFree(lo + first_free);
  }
  if (search.alignment == 1) {
    const ptrdiff_t found = bits.FindZeroes(search.count, from, search.run);
    if (found != ChunkBits::kNone) {
      search.result = lo + static_cast<uint64_t>(found);
      return true;
    }
    const size_t trailing = std::min(bits.TrailingZeroes(), kPagesPerChunk - from);
    search.run = trailing == kPagesPerChunk ? search.run + trailing : trailing;
    return false;
  }
  size_t end = from;
  while (true) {
    const size_t begin = NextBit(bits, end, false);
    if (begin > end || begin == kPagesPerChunk) search.run = 0;
    if (begin == kPagesPerChunk) return false;
    end = NextBit(bits, begin, true);
    const uint64_t length = search.run + (end - begin);
    if (search.Fits(lo + begin - search.run, length)) return true;
    search.run = end == kPagesPerChunk ? length : 0;
    if (end == kPagesPerChunk) return false;
  }
}

// The lowest fitting run, or kNoPage. Raises search_ as far as the walk has shown to be full.
uint64_t PageAlloc::Find(uint64_t count, uint64_t alignment) {
  if (search_ == kNoPage) return kNoPage;
  Search search{.from = search_, .count = count, .alignment = alignment};
  // Nearly always there is a page or a few in the very chunk where free pages begin.
  const uint64_t chunk = search_ >> kChunkPagesShift;
  if (summaries_[kLeaf][chunk].max().value() >= count && WalkChunk(chunk, search)) {
    RaiseSearch(search.first_free);
    return search.result;
  }
  search = Search{.from = search_, .count = count, .alignment = alignment};
  // The root is walked only where pages exist; what lies between has none free.
  constexpr size_t kRootShift = PagesShift(0) - kChunkPagesShift;
  uint64_t root = search_ >> PagesShift(0);
  bool found = false;
  for (auto range = std::prev(grown_.upper_bound(chunk)); !found && range != grown_.end();
       ++range) {
    if (range->first >> kRootShift > root) {
      root = range->first >> kRootShift;
      search.run = 0;
    }
    for (; !found && root <= (range->second - 1) >> kRootShift; ++root) {
      found = WalkEntry(0, root, search);
    }
  }
  if (!search.passed_free) {
    search_ = kNoPage;
  } else if (search.first_free != kNoPage) {
    RaiseSearch(search.first_free);
  }
  return search.result;
}

void PageAlloc::RaiseSearch(uint64_t page) { search_ = std::max(search_, page); }

std::optional<PageAlloc::Run> PageAlloc::Alloc(PageCount n, PageCount alignment) {
  SPANPOOL_CHECK(n.value() >= 1 && std::has_single_bit(alignment.value()));
  if (n.value() > kMaxPages || alignment.value() > kMaxPages) return std::nullopt;
  const uint64_t first = Find(n.value(), alignment.value());
  if (first == kNoPage) return std::nullopt;
  const PageRange range{PageId(first), n};
  const Census census = Count(range);
  SPANPOOL_CHECK(census.free == n.value());
  ForEachChunk(first, n.value(), [](Chunk& chunk, size_t begin, size_t count) {
    chunk.allocated.Set(begin, count);
    chunk.scavenged.Clear(begin, count);
  });
  allocated_ += n;
  free_scavenged_ -= PageCount(census.free_scavenged);
  free_backed_ -= PageCount(census.free - census.free_scavenged);
  Update(first, n.value());
  // The last page is allocated and exists, where the one after it need not.
  if (search_ == first) search_ = first + n.value() - 1;
  return Run{PageId(first), PageCount(census.free_scavenged)};
}

void PageAlloc::AllocRange(PageRange range) {
  const Census census = Count(range);
  SPANPOOL_CHECK(range.count.value() >= 1 && census.free == range.count.value());
  ForEachChunk(range.first.value(), range.count.value(),
               [](Chunk& chunk, size_t begin, size_t n) { chunk.allocated.Set(begin, n); });
  allocated_ += range.count;
  free_scavenged_ -= PageCount(census.free_scavenged);
  free_backed_ -= PageCount(census.free - census.free_scavenged);
  Update(range.first.value(), range.count.value());
}

void PageAlloc::Free(PageRange range) {
  const Census census = Count(range);
  SPANPOOL_CHECK(range.count.value() >= 1 && census.free == 0);
  const uint64_t first = range.first.value();
  ForEachChunk(first, range.count.value(),
               [](Chunk& chunk, size_t begin, size_t n) { chunk.allocated.Clear(begin, n); });
  allocated_ -= range.count;
  free_scavenged_ += PageCount(census.scavenged);
  free_backed_ += range.count - PageCount(census.scavenged);
  Update(first, range.count.value());
  HintFree(first, range.count.value());
}

void PageAlloc::FreeScavenged(PageRange range) {
  SetScavenged(range);
  Free(range);
}

// ---- Scavenged bits

void PageAlloc::SetScavenged(PageRange range) {
  const Census census = Count(range);
  ForEachChunk(range.first.value(), range.count.value(),
               [](Chunk& chunk, size_t begin, size_t n) { chunk.scavenged.Set(begin, n); });
  const PageCount moved(census.free - census.free_scavenged);
  free_backed_ -= moved;
  free_scavenged_ += moved;
  if (census.free > 0) scavenged_from_ = std::min(scavenged_from_, range.first.value());
}

void PageAlloc::ClearScavenged(PageRange range) {
  const Census census = Count(range);
  ForEachChunk(range.first.value(), range.count.value(),
               [](Chunk& chunk, size_t begin, size_t n) { chunk.scavenged.Clear(begin, n); });
  free_scavenged_ -= PageCount(census.free_scavenged);
  free_backed_ += PageCount(census.free_scavenged);
  if (census.free_scavenged > 0) HintFree(range.first.value(), range.count.value());
}

std::optional<PageRange> PageAlloc::FindScavenged(PageCount max) {
  SPANPOOL_CHECK(max.value() >= 1);
  if (free_scavenged_ == PageCount(0)) return std::nullopt;
  uint64_t first = kNoPage;
  uint64_t count = 0;
  const uint64_t from_chunk = scavenged_from_ >> kChunkPagesShift;
  auto range = grown_.upper_bound(from_chunk);
  if (range != grown_.begin()) --range;
  for (; range != grown_.end(); ++range) {
    for (uint64_t c = std::max(range->first, from_chunk); c < range->second; ++c) {
      ChunkBits other{};  // ones are what is not looked for
      if (summaries_[kLeaf][c].none_free()) {
        other.Set(0, kPagesPerChunk);
      } else {
        for (size_t i = 0; i < kChunkWords; ++i) {
          other.words[i] = chunks_[c].allocated.words[i] | ~chunks_[c].scavenged.words[i];
        }
      }
      const size_t begin = count > 0 ? 0 : NextBit(other, 0, false);
      if (begin == kPagesPerChunk) continue;
      if (count == 0) first = (c << kChunkPagesShift) + begin;
      const size_t end = NextBit(other, begin, true);
      count += end - begin;
      if (count >= max.value() || end < kPagesPerChunk) {
        scavenged_from_ = first;
        return PageRange{PageId(first), PageCount(std::min(count, max.value()))};
      }
    }
    if (count > 0) break;  // the range ends within the run
  }
  SPANPOOL_CHECK(count > 0);  // or free_scavenged_ lies
  scavenged_from_ = first;
  return PageRange{PageId(first), PageCount(count)};
}

std::optional<PageRange> PageAlloc::TakeScavengable(PageCount run_pages) {
  const uint64_t run = run_pages.value();
  SPANPOOL_CHECK(std::has_single_bit(run) && run <= kPagesPerChunk);
  // Shorter runs may lie above where no longer one does.
  if (run < scavenge_run_) scavengable_end_ = end_;
  scavenge_run_ = run;
  auto range = grown_.lower_bound(RoundUp(scavengable_end_, kPagesPerChunk) >> kChunkPagesShift);
  while (range != grown_.begin()) {
    --range;
    const uint64_t top =
        std::min(range->second, (scavengable_end_ + kPagesPerChunk - 1) >> kChunkPagesShift);
    for (uint64_t c = top; c-- > range->first;) {
      if (summaries_[kLeaf][c].max().value() < run) continue;
      for (size_t begin = kPagesPerChunk; begin > 0;) {
        begin -= run;
        const PageRange candidate{PageId((c << kChunkPagesShift) + begin), run_pages};
        if (!chunks_[c].allocated.NoneSet(begin, run)) continue;
        if (chunks_[c].scavenged.AllSet(begin, run)) continue;
        AllocRange(candidate);
        scavengable_end_ = candidate.first.value();
        return candidate;
      }
    }
  }
  scavengable_end_ = 0;
  return std::nullopt;
}

// ---- Blocks for page caches

std::optional<PageAlloc::Block> PageAlloc::TakeBlock() {
  const uint64_t page = Find(1, 1);
  if (page == kNoPage) return std::nullopt;
  const uint64_t first = RoundDown(page, 64);
  Chunk& chunk = chunks_[first >> kChunkPagesShift];
  const size_t word = (first % kPagesPerChunk) / 64;
  Block block{.first = PageId(first), .pages = ~chunk.allocated.words[word]};
  block.scavenged = chunk.scavenged.words[word] & block.pages;
  chunk.allocated.words[word] = ~uint64_t{0};
  chunk.scavenged.words[word] &= ~block.pages;
  const PageCount pages(static_cast<uint64_t>(std::popcount(block.pages)));
  const PageCount scavenged(static_cast<uint64_t>(std::popcount(block.scavenged)));
  allocated_ += pages;
  free_scavenged_ -= scavenged;
  free_backed_ -= pages - scavenged;
  Update(first, 64);
  RaiseSearch(first + 63);
  return block;
}

void PageAlloc::ReturnBlock(const Block& block) {
  const uint64_t first = block.first.value();
  if (block.pages == 0) return;
  Chunk& chunk = chunks_[first >> kChunkPagesShift];
  uint64_t& allocated = chunk.allocated.words[(first % kPagesPerChunk) / 64];
  uint64_t& scavenged_bits = chunk.scavenged.words[(first % kPagesPerChunk) / 64];
  SPANPOOL_CHECK(first % 64 == 0 && (allocated & block.pages) == block.pages);
  SPANPOOL_CHECK((block.scavenged & ~block.pages) == 0);
  allocated &= ~block.pages;
  scavenged_bits |= block.scavenged;
  const PageCount pages(static_cast<uint64_t>(std::popcount(block.pages)));
  const PageCount scavenged(static_cast<uint64_t>(std::popcount(scavenged_bits & block.pages)));
  allocated_ -= pages;
  free_scavenged_ += scavenged;
  free_backed_ += pages - scavenged;
  Update(first, 64);
  const uint64_t lowest = static_cast<uint64_t>(std::countr_zero(block.pages));
  HintFree(first + lowest, 64 - lowest);
}

// ---- Bookkeeping

template <typename F>
void PageAlloc::ForEachChunk(uint64_t first, uint64_t count, F f) const {
  while (count > 0) {
    const size_t begin = first % kPagesPerChunk;
    const size_t n = std::min<uint64_t>(count, kPagesPerChunk - begin);
    f(chunks_[first >> kChunkPagesShift], begin, n);
    first += n;
    count -= n;
  }
}

PageAlloc::Census PageAlloc::Count(PageRange range) const {
  SPANPOOL_CHECK(range.first.value() < end_ && range.count.value() <= end_ - range.first.value());
  Census census;
  ForEachChunk(range.first.value(), range.count.value(),
               [&census](const Chunk& chunk, size_t begin, size_t n) {
                 ChunkBits free_scavenged;
                 for (size_t i = 0; i < kChunkWords; ++i) {
                   free_scavenged.words[i] = chunk.scavenged.words[i] & ~chunk.allocated.words[i];
                 }
                 census.free += n - chunk.allocated.Count(begin, n);
                 census.scavenged += chunk.scavenged.Count(begin, n);
                 census.free_scavenged += free_scavenged.Count(begin, n);
               });
  return census;
}

void PageAlloc::HintFree(uint64_t first, uint64_t count) {
  search_ = std::min(search_, first);
  scavenged_from_ = std::min(scavenged_from_, first);
  scavengable_end_ = std::max(scavengable_end_, RoundUp(first + count, kPagesPerChunk));
}

void PageAlloc::Update(uint64_t first, uint64_t count) {
  uint64_t lo = first >> kChunkPagesShift;
  uint64_t hi = (first + count - 1) >> kChunkPagesShift;
  bool changed = false;
  for (uint64_t c = lo; c <= hi; ++c) {
    const PageSummary now = chunks_[c].allocated.SummarizeZeroes();
    changed |= now != summaries_[kLeaf][c];
    summaries_[kLeaf][c] = now;
  }
  for (size_t level = kLeaf; changed && level-- > 0;) {
    changed = false;
    lo >>= kFanOutShift;
    hi >>= kFanOutShift;
    for (uint64_t i = lo; i <= hi; ++i) {
      const PageSummary now =
          PageSummary::Merge(summaries_[level + 1] + (i << kFanOutShift), 1 << kFanOutShift,
                             PageCount(uint64_t{1} << PagesShift(level + 1)));
      changed |= now != summaries_[level][i];
      summaries_[level][i] = now;
    }
  }
}

bool PageAlloc::IsFree(PageId page) const {
  const uint64_t chunk = page.value() >> kChunkPagesShift;
  const auto next = grown_.upper_bound(chunk);
  if (next == grown_.begin() || std::prev(next)->second <= chunk) return false;
  return !chunks_[chunk].allocated.Get(page.value() % kPagesPerChunk);
}

// ---- Invariants

void PageAlloc::CheckSummaries() const {
  for (const auto& [begin_chunk, end_chunk] : grown_) {
    for (uint64_t c = begin_chunk; c < end_chunk; ++c) {
      SPANPOOL_CHECK(summaries_[kLeaf][c] == chunks_[c].allocated.SummarizeZeroes());
    }
    for (size_t level = 0; level < kLeaf; ++level) {
      const size_t shift = PagesShift(level) - kChunkPagesShift;
      for (uint64_t i = begin_chunk >> shift; i <= (end_chunk - 1) >> shift; ++i) {
        const PageSummary merged =
            PageSummary::Merge(summaries_[level + 1] + (i << kFanOutShift), 1 << kFanOutShift,
                               PageCount(uint64_t{1} << PagesShift(level + 1)));
        SPANPOOL_CHECK(summaries_[level][i] == merged);
      }
    }
  }
}

void PageAlloc::CheckInvariants() const {
  if (grown_.empty()) return;
  CheckSummaries();
  uint64_t pages = 0;
  uint64_t lowest_free = kNoPage;
  uint64_t lowest_scavenged = kNoPage;
  uint64_t scavengable_end = 0;
  Census total;
  bool search_exists = search_ == kNoPage;
  uint64_t previous_end = 0;
  for (const auto& [begin_chunk, end_chunk] : grown_) {
    SPANPOOL_CHECK(begin_chunk < end_chunk && (previous_end < begin_chunk || previous_end == 0));
    previous_end = end_chunk;
    const uint64_t search_chunk = search_ >> kChunkPagesShift;
    search_exists |= begin_chunk <= search_chunk && search_chunk < end_chunk;
    pages += (end_chunk - begin_chunk) * kPagesPerChunk;
    for (uint64_t c = begin_chunk; c < end_chunk; ++c) {
      const Chunk& chunk = chunks_[c];
      const uint64_t lo = c << kChunkPagesShift;
      const Census census = Count(PageRange{PageId(lo), PageCount(kPagesPerChunk)});
      total.free += census.free;
      total.free_scavenged += census.free_scavenged;
      if (census.free > 0 && lowest_free == kNoPage) {
        lowest_free = lo + NextBit(chunk.allocated, 0, false);
      }
      if (census.free_scavenged > 0 && lowest_scavenged == kNoPage) {
        size_t i = 0;
        while (chunk.allocated.Get(i) || !chunk.scavenged.Get(i)) ++i;
        lowest_scavenged = lo + i;
      }
      for (size_t begin = 0; begin < kPagesPerChunk; begin += scavenge_run_) {
        if (chunk.allocated.NoneSet(begin, scavenge_run_) &&
            !chunk.scavenged.AllSet(begin, scavenge_run_)) {
          scavengable_end = lo + begin + scavenge_run_;
        }
      }
    }
  }
  SPANPOOL_CHECK(search_exists);
  SPANPOOL_CHECK(search_ <= lowest_free);
  SPANPOOL_CHECK(scavenged_from_ <= lowest_scavenged);
  SPANPOOL_CHECK(scavengable_end <= scavengable_end_);
  SPANPOOL_CHECK(total.free_scavenged == free_scavenged_.value());
  SPANPOOL_CHECK(total.free - total.free_scavenged == free_backed_.value());
  SPANPOOL_CHECK(pages - total.free == allocated_.value());
}

}  // namespace spanpool

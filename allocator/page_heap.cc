#include "allocator/page_heap.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocator/check.h"

namespace spanpool {
namespace {

// Pages backed in one call: enough to be worth it, few enough to leave the rest to others.
constexpr PageCount kReplenishStep(256);  // 2 MiB

}  // namespace

PageHeap::PageHeap(const PageHeapOptions& options, ArenaSource* source, MetadataSource* metadata)
    : options_(options),
      source_(source),
      unit_(source->unit()),
      records_(metadata),
      map_(metadata),
      pages_(metadata) {
  SPANPOOL_CHECK_LE(options.max_arenas, kMaxArenas);
  // Page caches hold aligned blocks of 64 pages: a unit is within one or made of whole ones.
  SPANPOOL_CHECK(unit_ == PageCount(1) || unit_ == kDiscardRun);
}

PageHeap::Shard& PageHeap::MyShard() const {
  static std::atomic<size_t> threads{0};
  thread_local const size_t mine = threads.fetch_add(1, std::memory_order_relaxed);
  return shards_[mine % kShards];
}

absl::StatusOr<Span*> PageHeap::Allocate(SpanClass span_class, PageCount pages,
                                         PageCount alignment) {
  const SizeClass size_class = span_class.size_class();
  SPANPOOL_CHECK(span_class.large() || pages == SpanPages(size_class));
  Shard& shard = MyShard();
  Span* span;
  std::optional<PageAlloc::Run> run;
  {
    RankedMutexLock lock(&shard.mu);
    // The record first: once there are pages nothing but the lack of memory can fail.
    span = records_.New(span_class.large() ? 1 : BlocksPerSpan(size_class), &shard.records);
    if (span == nullptr) return absl::ResourceExhaustedError("no memory for the record of a span");
    if (pages <= PageCount(PageCache::kMaxRun) && alignment == PageCount(1)) {
      run = TakeCached(shard, pages);
    }
  }
  if (!run.has_value()) {
    absl::StatusOr<PageAlloc::Run> taken = Take(pages, alignment);
    if (!taken.ok()) {
      records_.Delete(span);
      return taken.status();
    }
    run = *taken;
  }
  const PageRange range{run->first, pages};
  bool zero = false;
  if (run->scavenged > PageCount(0)) {
    DiscardExcess(range);
    const absl::Status status = Back(range, /*dig=*/true);
    if (!status.ok()) {
      GiveUp(range);
      records_.Delete(span);
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory behind ", pages.value(), " pages: ", status.message()));
    }
    zero = run->scavenged == pages && scavenged_is_zero_.load(std::memory_order_relaxed);
  }
  const bool used_before = map_.MarkUsed(range);
  Describe(span, span_class, range, used_before && !zero);
  shard.spans.fetch_add(1, std::memory_order_relaxed);
  shard.taken.fetch_add(pages.value(), std::memory_order_relaxed);
  return span;
}

void PageHeap::Describe(Span* span, SpanClass span_class, PageRange range, bool needs_zero) {
  span->first_page = range.first;
  span->pages = range.count;
  span->span_class = span_class;
  span->needs_zero = needs_zero;
  span->block_bytes = span_class.large() ? Bytes(range.count) : BlockBytes(span_class.size_class());
  span->loan_session = 0;
  span->loan_sequence = 0;
  span->blocks_in_use = 0;
  // Whoever finds the span by a page acquires what Enter releases.
  span->sweep_generation.store(Span::kOnLoan, std::memory_order_relaxed);
  map_.Enter(span);
}

std::optional<PageAlloc::Run> PageHeap::TakeCached(Shard& shard, PageCount pages) {
  std::optional<PageAlloc::Run> run = shard.pages.Alloc(pages);
  if (!run.has_value()) {
    RankedMutexLock lock(&mu_);
    const PageCount held = shard.pages.pages();
    shard.pages.Flush(&pages_);
    charged_ -= held;
    // Near the limit what one cache hoards another thread may need.
    if (Bytes(charged_ + kMaxCached) <= options_.limit_bytes && shard.pages.Refill(&pages_)) {
      ChargeLocked(shard.pages.pages());
      run = shard.pages.Alloc(pages);
    }
    // Under the heap's lock, too: what has left pages_ is seen in the cache.
    shard.CountPages();
    return run;
  }
  shard.CountPages();
  return run;
}

PageCount PageHeap::FlushCaches() {
  PageCount flushed;
  for (Shard& shard : shards_) {
    if (shard.cached_pages.load(std::memory_order_relaxed) == 0) continue;
    RankedMutexLock shard_lock(&shard.mu);
    RankedMutexLock lock(&mu_);
    const PageCount held = shard.pages.pages();
    shard.pages.Flush(&pages_);
    charged_ -= held;
    flushed += held;
    shard.CountPages();
  }
  return flushed;
}

PageCount PageHeap::Cached() const {
  PageCount cached;
  for (const Shard& shard : shards_) {
    cached += PageCount(shard.cached_pages.load(std::memory_order_relaxed));
  }
  return cached;
}

absl::StatusOr<PageAlloc::Run> PageHeap::Take(PageCount pages, PageCount alignment) {
  absl::StatusOr<PageAlloc::Run> run;
  {
    RankedMutexLock lock(&mu_);
    run = TakeLocked(pages, alignment);
  }
  if (run.ok() || FlushCaches() == PageCount(0)) return run;
  RankedMutexLock lock(&mu_);
  return TakeLocked(pages, alignment);
}

absl::StatusOr<PageAlloc::Run> PageHeap::TakeLocked(PageCount pages, PageCount alignment) {
  const uint64_t limit_pages = options_.limit_bytes / kPageBytes;
  if (pages.value() > limit_pages || charged_.value() > limit_pages - pages.value()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the pool is at its limit: ", Bytes(charged_), " of ", options_.limit_bytes,
                     " bytes are in use and ", Bytes(pages),
                     " more are asked for; return idle spans and try again"));
  }
  ChargeLocked(pages);  // before the lock is released, or the limit could be passed
  while (true) {
    if (std::optional<PageAlloc::Run> run = pages_.Alloc(pages, alignment); run.has_value()) {
      return *run;
    }
    // A run that ends in an arena to come starts at this page or later.
    const uint64_t end = FirstPageOf(ArenaIndex(next_arena_)).value();
    const uint64_t earliest = end >= pages.value() ? end - pages.value() + 1 : 0;
    const uint64_t first = (earliest + alignment.value() - 1) & ~(alignment.value() - 1);
    absl::Status status;
    if (first + pages.value() > uint64_t{options_.max_arenas} * kPagesPerArena) {
      if (MovingLocked() > PageCount(0)) {
        // Free pages are with threads that back or discard them; they come back.
        const auto none_moves = [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
          return MovingLocked() == PageCount(0);
        };
        mu_.Await(absl::Condition(&none_moves));
        continue;
      }
      status = absl::ResourceExhaustedError(
          absl::StrCat("no run of ", pages.value(), " pages is left in the ", options_.max_arenas,
                       " arenas there may be; return idle spans and try again"));
    } else {
      status = GrowLocked();
    }
    if (!status.ok()) {
      charged_ -= pages;
      return status;
    }
  }
}

absl::Status PageHeap::GrowLocked() {
  if (growing_) {
    mu_.Await(absl::Condition(
        +[](bool* growing) { return !*growing; }, &growing_));
    return absl::OkStatus();  // the caller looks again; if that thread failed, it is our turn
  }
  if (next_arena_ >= options_.max_arenas) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", options_.max_arenas, " arenas there may be exist"));
  }
  const ArenaIndex arena(next_arena_);
  if (!next_created_) {
    growing_ = true;
    mu_.Unlock();
    const absl::Status status = source_->Create(arena);
    mu_.Lock();
    growing_ = false;
    if (absl::IsAlreadyExists(status)) {
      // Its index was used by somebody before us; it stays a hole.
      ++next_arena_;
      return absl::OkStatus();
    }
    if (!status.ok()) return status;
    next_created_ = true;
  }
  if (map_.Find(arena) == nullptr && !map_.Add(arena)) {
    return absl::ResourceExhaustedError("no memory for the record of an arena");
  }
  const absl::Status status = pages_.Grow({FirstPageOf(arena), PageCount(kPagesPerArena)});
  if (!status.ok()) return status;
  next_created_ = false;
  ++next_arena_;
  ++arenas_;
  return absl::OkStatus();
}

void PageHeap::Forget(Span* span) {
  SPANPOOL_CHECK_NE(span->sweep_generation.load(std::memory_order_relaxed), Span::kFree);
  SPANPOOL_CHECK(span->set == nullptr);
  SPANPOOL_DCHECK(!map_.HasSpecials(*span));
  if (journal() != nullptr) TellFreed(*span);
  map_.Leave(span);
  span->sweep_generation.store(Span::kFree, std::memory_order_relaxed);
}

void PageHeap::TellFreed(const Span& span) {
  // Manual spans are of the heap's owner, who is gone when another heap asks.
  if (span.sweep_generation.load(std::memory_order_relaxed) == Span::kManual) return;
  journal()->Freed(span);
}

void PageHeap::FreeAll(absl::Span<Span*> spans) {
  std::sort(spans.begin(), spans.end(),
            [](const Span* a, const Span* b) { return a->first_page < b->first_page; });
  std::vector<PageRange> runs;
  PageCount pages;
  for (Span* span : spans) {
    Forget(span);
    pages += span->pages;
    if (!runs.empty() && runs.back().end() == span->first_page) {
      runs.back().count += span->pages;
    } else {
      runs.push_back(span->range());
    }
  }
  Shard& shard = MyShard();
  shard.spans.fetch_sub(static_cast<int64_t>(spans.size()), std::memory_order_relaxed);
  {
    RankedMutexLock lock(&shard.mu);
    for (Span* span : spans) records_.Delete(span, &shard.records);
  }
  RankedMutexLock lock(&mu_);
  for (const PageRange& run : runs) pages_.Free(run);
  charged_ -= pages;
}

void PageHeap::Free(Span* span) {
  Forget(span);
  const PageRange range = span->range();
  Shard& shard = MyShard();
  shard.spans.fetch_sub(1, std::memory_order_relaxed);
  {
    RankedMutexLock lock(&shard.mu);
    records_.Delete(span, &shard.records);
    if (range.count <= PageCount(PageCache::kMaxRun) && shard.pages.Free(range)) {
      shard.CountPages();
      return;
    }
  }
  RankedMutexLock lock(&mu_);
  pages_.Free(range);
  charged_ -= range.count;
}

absl::Status PageHeap::Replenish() {
  RankedMutexLock lock(&mu_);
  while (true) {
    const uint64_t limit = options_.limit_bytes / kPageBytes;
    const PageHeapStats stats = StatsLocked();
    const uint64_t target = std::min(options_.reserve_bytes / kPageBytes,
                                     limit - std::min(limit, stats.in_use.value()));
    const uint64_t have = (stats.free + moving_scavenged_).value();
    if (have >= target) return absl::OkStatus();
    const std::optional<PageRange> range =
        pages_.FindScavenged(std::min(kReplenishStep, PageCount(target - have)));
    if (!range.has_value()) {
      const absl::Status status = GrowLocked();
      if (!status.ok()) return status;
      continue;
    }
    pages_.AllocRange(*range);
    moving_scavenged_ += range->count;
    mu_.Unlock();
    const absl::Status status = Back(*range, /*dig=*/false);
    // Best effort: if memory stays behind some of the pages it is found there later. Of units it is
    // known which have been backed.
    if (!status.ok() && unit_ == PageCount(1)) source_->Discard(*range).IgnoreError();
    mu_.Lock();
    moving_scavenged_ -= range->count;
    if (status.ok()) pages_.ClearScavenged(*range);
    pages_.Free(*range);
    if (!status.ok()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for the reserve: ", status.message()));
    }
  }
}

PageCount PageHeap::DiscardOne() {
  PageRange range;
  PageCount backed;
  {
    RankedMutexLock lock(&mu_);
    const PageCount before = pages_.free_backed();
    const std::optional<PageRange> run = pages_.TakeScavengable(kDiscardRun);
    if (!run.has_value()) return PageCount(0);
    range = *run;
    backed = before - pages_.free_backed();
    moving_backed_ += backed;
    moving_scavenged_ += range.count - backed;
  }
  const bool discarded = source_->Discard(range).ok();
  // Part of it may be gone: it must not be granted as backed, nor trusted to be zero.
  if (!discarded) scavenged_is_zero_.store(false, std::memory_order_relaxed);
  RankedMutexLock lock(&mu_);
  moving_backed_ -= backed;
  moving_scavenged_ -= range.count - backed;
  pages_.FreeScavenged(range);
  return discarded ? backed : PageCount(0);
}

PageRange PageHeap::WholeUnits(PageRange range) const {
  const uint64_t unit = unit_.value();
  const uint64_t first = range.first.value() / unit * unit;
  const uint64_t end = (range.end().value() + unit - 1) / unit * unit;
  return {PageId(first), PageCount(end - first)};
}

absl::Status PageHeap::Back(PageRange range, bool dig) {
  if (unit_ == PageCount(1)) return source_->Populate(range);
  const PageRange whole = WholeUnits(range);
  for (PageId first = whole.first; first < whole.end(); first = first + unit_) {
    const PageRange unit{first, unit_};
    absl::Status status = source_->Populate(unit);
    while (absl::IsResourceExhausted(status) && dig &&
           (DiscardOne() > PageCount(0) || FlushCaches() > PageCount(0))) {
      status = source_->Populate(unit);
    }
    if (!status.ok()) return status;
    NoteBacked(unit);
  }
  return absl::OkStatus();
}

void PageHeap::NoteBacked(PageRange unit) {
  // A page that is on its way into or out of a cache may keep its old note: then it will be backed
  // again, which does nothing.
  for (Shard& shard : shards_) {
    RankedMutexLock shard_lock(&shard.mu);
    RankedMutexLock lock(&mu_);
    shard.pages.ClearScavenged(unit);
    shard.CountPages();
  }
  RankedMutexLock lock(&mu_);
  pages_.ClearScavenged(unit);
}

void PageHeap::GiveUp(PageRange range) {
  // Which pages have memory nobody knows. Where a whole unit is ours none has after this. A unit
  // that others have part of has memory if it can be backed; that is asked first, while there is
  // none new to be had.
  const uint64_t unit = unit_.value();
  const PageId begin((range.first.value() + unit - 1) / unit * unit);
  const PageId end(range.end().value() / unit * unit);
  if (begin > end) {  // all within one unit
    GiveUpPart(range);
    return;
  }
  GiveUpPart({range.first, begin - range.first});
  GiveUpPart({end, range.end() - end});
  if (begin == end) return;
  const PageRange whole{begin, end - begin};
  if (!source_->Discard(whole).ok()) scavenged_is_zero_.store(false, std::memory_order_relaxed);
  RankedMutexLock lock(&mu_);
  pages_.FreeScavenged(whole);
  charged_ -= whole.count;
}

void PageHeap::GiveUpPart(PageRange part) {
  if (part.count == PageCount(0)) return;
  const PageRange unit = WholeUnits(part);
  const bool backed = source_->Populate(unit).ok();
  if (backed) NoteBacked(unit);
  RankedMutexLock lock(&mu_);
  if (backed) {
    pages_.Free(part);
  } else {
    pages_.FreeScavenged(part);
  }
  charged_ -= part.count;
}

void PageHeap::DiscardExcess(PageRange range) {
  while (true) {
    PageHeapStats now;
    PageCount more;
    {
      RankedMutexLock lock(&mu_);
      now = StatsLocked();
      if (unit_ > PageCount(1)) more = pages_.FreeScavengedIn(WholeUnits(range));
    }
    if (Bytes(now.in_use + now.free + more) <= options_.limit_bytes) return;
    if (now.free < kDiscardRun || DiscardOne() == PageCount(0)) return;
  }
}

void PageHeap::ChargeLocked(PageCount pages) {
  charged_ += pages;
  peak_ = std::max(peak_, charged_);
}

PageCount PageHeap::TakePeak() {
  RankedMutexLock lock(&mu_);
  return std::exchange(peak_, charged_);
}

PageHeapStats PageHeap::StatsLocked() const {
  PageCount cached;
  PageCount cached_scavenged;
  int64_t spans = 0;
  for (const Shard& shard : shards_) {
    // Caches change without our lock, but only together with spans: what leaves one is in use.
    const uint64_t pages = shard.cached_pages.load(std::memory_order_relaxed);
    cached += PageCount(pages);
    cached_scavenged +=
        PageCount(std::min(pages, shard.cached_scavenged.load(std::memory_order_relaxed)));
    spans += shard.spans.load(std::memory_order_relaxed);
  }
  PageHeapStats stats;
  stats.reserved = PageCount(arenas_ * kPagesPerArena);
  stats.in_use = pages_.allocated() - MovingLocked() - cached;
  stats.free = pages_.free_backed() + moving_backed_ + (cached - cached_scavenged);
  stats.scavenged = pages_.free_scavenged() + moving_scavenged_ + cached_scavenged;
  stats.spans = spans < 0 ? 0 : static_cast<uint64_t>(spans);
  return stats;
}

PageHeapStats PageHeap::stats() const {
  RankedMutexLock lock(&mu_);
  return StatsLocked();
}

PageCount PageHeap::taken() const {
  uint64_t taken = 0;
  for (const Shard& shard : shards_) taken += shard.taken.load(std::memory_order_relaxed);
  return PageCount(taken);
}

uint32_t PageHeap::arenas_end() const {
  RankedMutexLock lock(&mu_);
  return next_arena_;
}

uint64_t PageHeap::metadata_bytes() const {
  uint64_t index_bytes;
  {
    RankedMutexLock lock(&mu_);
    index_bytes = pages_.metadata_bytes();
  }
  return index_bytes + map_.metadata_bytes() + records_.metadata_bytes();
}

void PageHeap::CheckInvariants() const {
  records_.CheckInvariants();
  for (Shard& shard : shards_) {
    RankedMutexLock shard_lock(&shard.mu);
    RankedMutexLock lock(&mu_);
    shard.pages.CheckInvariants(pages_);
    SPANPOOL_CHECK_EQ(shard.cached_pages.load(), shard.pages.pages().value());
    SPANPOOL_CHECK_EQ(shard.cached_scavenged.load(), shard.pages.scavenged().value());
  }

  RankedMutexLock lock(&mu_);
  pages_.CheckInvariants();
  const PageHeapStats stats = StatsLocked();
  SPANPOOL_CHECK_EQ(stats.in_use + stats.free + stats.scavenged, stats.reserved);
  SPANPOOL_CHECK_EQ(stats.in_use + Cached(), charged_);
  SPANPOOL_CHECK_LE(Bytes(charged_), options_.limit_bytes);
  SPANPOOL_CHECK_EQ(MovingLocked(), PageCount(0));

  uint64_t spans = 0;
  PageCount in_use;
  PageCount reserved;
  for (uint32_t index = 0; index < next_arena_; ++index) {
    const Arena* const arena = map_.Find(ArenaIndex(index));
    if (arena == nullptr) continue;  // a hole
    reserved += PageCount(kPagesPerArena);
    for (size_t i = 0; i < kPagesPerArena; ++i) {
      const PageId page = FirstPageOf(ArenaIndex(index)) + PageCount(i);
      const Span* const span = arena->spans[i].load(std::memory_order_acquire);
      const bool first = span != nullptr && span->first_page == page;
      SPANPOOL_CHECK(first || !arena->listed.Test(i)) << "page " << page;
      SPANPOOL_CHECK(first || !arena->specials.Test(i)) << "page " << page;
      if (span == nullptr) continue;
      SPANPOOL_CHECK_NE(span->sweep_generation.load(std::memory_order_relaxed), Span::kFree);
      SPANPOOL_CHECK(span->first_page <= page && page < span->range().end()) << "page " << page;
      SPANPOOL_CHECK(!pages_.IsFree(page)) << "page " << page;
      SPANPOOL_CHECK_LT(i, arena->zeroed_pages.load(std::memory_order_relaxed));
      in_use += PageCount(1);
      if (first) {
        const bool manual = span->sweep_generation.load() == Span::kManual;
        SPANPOOL_CHECK_EQ(arena->listed.Test(i), span->set != nullptr && !manual)
            << "page " << page;
        ++spans;
      }
    }
  }
  SPANPOOL_CHECK_EQ(reserved, stats.reserved);
  SPANPOOL_CHECK_EQ(in_use, stats.in_use);
  SPANPOOL_CHECK_EQ(spans, stats.spans);

  // Each record is free, or of the span that its pages map to.
  uint64_t records = 0;
  records_.ForEach([&](const Span* span) {
    if (span->sweep_generation.load(std::memory_order_relaxed) == Span::kFree) return;
    SPANPOOL_CHECK_EQ(map_.SpanOf(span->first_page), span);
    ++records;
  });
  SPANPOOL_CHECK_EQ(records, spans);
}

}  // namespace spanpool

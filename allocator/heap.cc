#include "allocator/heap.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "allocator/central_list.h"
#include "allocator/check.h"
#include "allocator/metadata_source.h"
#include "allocator/page_heap.h"
#include "allocator/scavenger.h"
#include "allocator/sweeper.h"

namespace spanpool {

class Heap::Impl {
 public:
  // Requires options without defaults.
  Impl(const HeapOptions& options, ArenaSource* source, BlockStates* states)
      : pages_({.limit_bytes = options.limit_bytes,
                .reserve_bytes = options.reserve_bytes,
                .max_arenas = options.max_arenas,
                .journal = options.journal},
               source, options.metadata),
        specials_(&pages_.map(), options.metadata, options.listener),
        runs_(&pages_),
        scavenger_(&pages_, options.reserve_bytes),
        max_arenas_(options.max_arenas) {
    std::vector<CentralList*> lists(kNumSpanClasses);
    for (size_t i = 0; i < kNumSpanClasses; ++i) {
      lists[i] = &lists_[i].emplace(SpanClass::FromValue(static_cast<uint8_t>(i)), &pages_, states,
                                    &specials_);
    }
    sweeper_.emplace(&pages_, lists);
  }

  absl::StatusOr<std::vector<Span*>> Restore(absl::Span<const ArenaIndex> arenas,
                                             absl::Span<const SpanState> spans) {
    absl::StatusOr<std::vector<Span*>> records = pages_.Restore(arenas, spans);
    if (!records.ok()) return records;
    bool listed = false;
    for (size_t i = 0; i < spans.size(); ++i) {
      if (spans[i].place != SpanState::Place::kListed) continue;
      ListOf(spans[i].span_class).Restore((*records)[i]);
      (*records)[i] = nullptr;
      listed = true;
    }
    // They are swept as all spans are, before anything of them is granted: by a cycle, which begins
    // with them unswept.
    if (listed) SPANPOOL_CHECK(sweeper_->BeginCycle());
    return records;
  }

  absl::StatusOr<Span*> Grant(SpanClass span_class) {
    if (span_class.large() || span_class.value() >= kNumSpanClasses) {
      return absl::InvalidArgumentError(
          absl::StrCat("span class ", span_class.value(), " has no blocks; ask for a large span"));
    }
    CentralList& list = ListOf(span_class);
    if (Span* const span = list.Take(sweeper_->active()); span != nullptr) return span;
    const PageCount pages = SpanPages(span_class.size_class());
    absl::StatusOr<Span*> made = Make(span_class, pages, PageCount(1));
    if (!absl::IsResourceExhausted(made.status())) return made;
    const bool freed = SweepBeforeRefusing();
    // A full span may have a free block now.
    if (Span* const span = list.Take(sweeper_->active()); span != nullptr) return span;
    return freed ? pages_.Allocate(span_class, pages, PageCount(1)) : made;
  }

  absl::StatusOr<Span*> GrantLarge(PageCount pages, bool scan, PageCount alignment) {
    if (pages == PageCount(0)) return absl::InvalidArgumentError("a span has at least one page");
    if (!std::has_single_bit(alignment.value())) {
      return absl::InvalidArgumentError(
          absl::StrCat("an alignment of ", alignment.value(), " pages is not a power of two"));
    }
    const SpanClass span_class(kLargeSizeClass, !scan);
    absl::StatusOr<Span*> made = Make(span_class, pages, alignment);
    if (!absl::IsResourceExhausted(made.status()) || !SweepBeforeRefusing()) return made;
    return pages_.Allocate(span_class, pages, alignment);
  }

  void Return(Span* span) { ListOf(span->span_class).Return(span); }

  void ReturnAll(absl::Span<Span* const> spans) {
    std::vector<Span*> free;
    free.reserve(spans.size());
    std::vector<FreedBlock> due;
    for (Span* span : spans) {
      if (ListOf(span->span_class).TakeBack(span, &due)) free.push_back(span);
    }
    pages_.FreeAll(absl::MakeSpan(free));
    specials_.Report(due);
  }

  Span* SpanOf(PageId page) const { return pages_.SpanOf(page); }

  absl::Status AddSpecial(Span* span, uint32_t block, SpecialKind kind, uint64_t value) {
    return specials_.Add(span, block, kind, value);
  }
  bool RemoveSpecial(Span* span, uint32_t block, SpecialKind kind) {
    return specials_.Remove(span, block, kind);
  }

  RunPool* runs() { return &runs_; }

  PageCount Sweep() { return sweeper_->SweepAll(); }

  bool SweepInBackground(uint32_t spans) {
    if (sweeper_->done() && !(sweeper_->CycleDue() && sweeper_->BeginCycle())) return false;
    for (; spans != 0; --spans) {
      if (!sweeper_->SweepOne().has_value()) return false;
    }
    return true;
  }

  absl::Status Replenish() { return pages_.Replenish(); }

  absl::Duration Scavenge() { return scavenger_.Step(); }

  PageCount Trim() { return scavenger_.Trim(); }

  uint32_t max_arenas() const { return max_arenas_; }

  HeapStats stats() const {
    HeapStats stats;
    stats.limit_bytes = pages_.limit_bytes();
    stats.metadata_bytes = pages_.metadata_bytes() + specials_.metadata_bytes() + sizeof(*this);
    const PageHeapStats pages = pages_.stats();
    PageCount listed;
    for (const auto& list : lists_) {
      listed += list->listed_pages();
      stats.spans_in_lists += list->listed_spans();
      stats.live_listed_blocks += list->live_blocks();
    }
    // Spans that were listed since the pages were counted may be more than were in use then.
    listed = std::min(listed, pages.in_use);
    stats.spans_in_lists = std::min(stats.spans_in_lists, pages.spans);
    stats.reserved_bytes = Bytes(pages.reserved);
    stats.in_lists_bytes = Bytes(listed);
    stats.on_loan_bytes = Bytes(pages.in_use - listed);
    stats.free_bytes = Bytes(pages.free);
    stats.scavenged_bytes = Bytes(pages.scavenged);
    stats.spans_on_loan = pages.spans - stats.spans_in_lists;
    return stats;
  }

  void CheckInvariants() const {
    pages_.CheckInvariants();
    for (const auto& list : lists_) list->CheckInvariants();
    runs_.CheckInvariants();
    uint64_t specials = 0;
    pages_.ForEachSpan([&](const Span& span) { specials += specials_.CheckInvariants(span); });
    SPANPOOL_CHECK_EQ(specials, specials_.size());
    const HeapStats s = stats();
    SPANPOOL_CHECK_EQ(s.on_loan_bytes + s.in_lists_bytes + s.free_bytes + s.scavenged_bytes,
                      s.reserved_bytes);
    SPANPOOL_CHECK_LE(s.on_loan_bytes + s.in_lists_bytes, s.limit_bytes);
  }

 private:
  CentralList& ListOf(SpanClass span_class) { return *lists_[span_class.value()]; }

  absl::StatusOr<Span*> Make(SpanClass span_class, PageCount pages, PageCount alignment) {
    sweeper_->PayFor(pages);
    return pages_.Allocate(span_class, pages, alignment);
  }

  // Blocks may have been freed in listed spans since anybody looked. Whether pages came free.
  bool SweepBeforeRefusing() {
    const PageCount in_use = pages_.stats().in_use;
    // What other threads sweep meanwhile counts, too.
    return Sweep() > PageCount(0) || pages_.stats().in_use < in_use;
  }

  PageHeap pages_;
  Specials specials_;
  RunPool runs_;
  Scavenger scavenger_;
  const uint32_t max_arenas_;
  // In place, for a list cannot be moved; constant after construction.
  std::array<std::optional<CentralList>, kNumSpanClasses> lists_;
  std::optional<Sweeper> sweeper_;
};

namespace {

HeapOptions WithDefaults(HeapOptions options) {
  if (options.max_arenas == 0) options.max_arenas = Heap::MaxArenas(options.limit_bytes);
  if (options.metadata == nullptr) options.metadata = MetadataSource::System();
  return options;
}

}  // namespace

uint32_t Heap::MaxArenas(uint64_t limit_bytes) {
  const uint64_t filled = limit_bytes / kArenaBytes + (limit_bytes % kArenaBytes != 0);
  return static_cast<uint32_t>(std::min<uint64_t>(2 * filled + 2, kMaxArenas));
}

Heap::Heap(const HeapOptions& options, ArenaSource* source, BlockStates* states)
    : impl_(std::make_unique<Impl>(WithDefaults(options), source, states)) {}
Heap::~Heap() = default;

absl::StatusOr<std::vector<Span*>> Heap::Restore(absl::Span<const ArenaIndex> arenas,
                                                 absl::Span<const SpanState> spans) {
  return impl_->Restore(arenas, spans);
}
absl::StatusOr<Span*> Heap::Grant(SpanClass span_class) { return impl_->Grant(span_class); }
absl::StatusOr<Span*> Heap::GrantLarge(PageCount pages, bool scan, PageCount alignment) {
  return impl_->GrantLarge(pages, scan, alignment);
}
void Heap::Return(Span* span) { impl_->Return(span); }
void Heap::ReturnAll(absl::Span<Span* const> spans) { impl_->ReturnAll(spans); }
Span* Heap::SpanOf(PageId page) const { return impl_->SpanOf(page); }
absl::Status Heap::AddSpecial(Span* span, uint32_t block, SpecialKind kind, uint64_t value) {
  return impl_->AddSpecial(span, block, kind, value);
}
bool Heap::RemoveSpecial(Span* span, uint32_t block, SpecialKind kind) {
  return impl_->RemoveSpecial(span, block, kind);
}
RunPool* Heap::runs() { return impl_->runs(); }
PageCount Heap::Sweep() { return impl_->Sweep(); }
bool Heap::SweepInBackground(uint32_t spans) { return impl_->SweepInBackground(spans); }
absl::Status Heap::Replenish() { return impl_->Replenish(); }
absl::Duration Heap::Scavenge() { return impl_->Scavenge(); }
PageCount Heap::Trim() { return impl_->Trim(); }
uint32_t Heap::max_arenas() const { return impl_->max_arenas(); }
HeapStats Heap::stats() const { return impl_->stats(); }
void Heap::CheckInvariants() const { impl_->CheckInvariants(); }

}  // namespace spanpool

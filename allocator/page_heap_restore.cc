// PageHeap::Restore: a page heap made of what is known of another one.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "allocator/check.h"
#include "allocator/page_heap.h"
#include "allocator/page_ranges.h"
#include "allocator/size_classes.h"

namespace spanpool {
namespace {

uint32_t BlocksOf(const SpanState& span) {
  return span.span_class.large() ? 1 : BlocksPerSpan(span.span_class.size_class());
}

std::string NameOf(const SpanState& span) {
  return absl::StrCat("the span of class ", span.span_class.value(), ", pages ",
                      span.first_page.value(), " to ",
                      span.first_page.value() + span.pages.value());
}

// What is wrong with a span by itself; empty if nothing is.
std::string ShapeError(const SpanState& span) {
  if (span.span_class.value() >= kNumSpanClasses) return "there is no such class";
  if (span.pages == PageCount(0)) return "it has no page";
  const SizeClass size_class = span.span_class.size_class();
  if (!span.span_class.large() && span.pages != SpanPages(size_class)) {
    return absl::StrCat("it has ", span.pages.value(), " pages and its class ",
                        SpanPages(size_class).value());
  }
  // Before they are added.
  if (span.first_page.value() >= PageAlloc::kMaxPages ||
      span.pages.value() > PageAlloc::kMaxPages) {
    return "a pool has no such pages";
  }
  return "";
}

PageRanges PagesOf(absl::Span<const ArenaIndex> arenas) {
  PageRanges pages;
  for (const ArenaIndex arena : arenas) {
    Append(&pages, {FirstPageOf(arena), PageCount(kPagesPerArena)});
  }
  return pages;
}

}  // namespace

absl::Status PageHeap::CheckRestorable(absl::Span<const ArenaIndex> arenas,
                                       absl::Span<const SpanState> spans) const {
  {
    RankedMutexLock lock(&mu_);
    if (next_arena_ != 0 || next_created_) {
      return absl::FailedPreconditionError("the heap was used before it was restored");
    }
  }
  for (size_t i = 0; i < arenas.size(); ++i) {
    if (i > 0 && arenas[i] <= arenas[i - 1]) {
      return absl::InvalidArgumentError(absl::StrCat("arena ", arenas[i].value(), " comes after ",
                                                     arenas[i - 1].value(),
                                                     ": arenas are to ascend"));
    }
    if (arenas[i].value() >= kMaxArenas) {
      return absl::InvalidArgumentError(
          absl::StrCat("arena ", arenas[i].value(), ": a pool has no such arena"));
    }
  }
  const PageRanges there = PagesOf(arenas);
  size_t at = 0;
  PageId free_from;
  PageCount total;
  for (const SpanState& span : spans) {
    std::string error = ShapeError(span);
    if (error.empty() && span.first_page < free_from) {
      error = "it begins before the one before it ends: spans are to ascend and not to overlap";
    }
    if (!error.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(NameOf(span), ": ", error));
    }
    const PageRange range{span.first_page, span.pages};
    while (at < there.size() && there[at].end() <= range.first) ++at;
    if (at == there.size() || range.first < there[at].first || there[at].end() < range.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(NameOf(span), ": not all of its pages are in arenas that exist"));
    }
    free_from = range.end();
    total += range.count;
  }
  if (!arenas.empty() && arenas.back().value() >= options_.max_arenas) {
    return absl::FailedPreconditionError(
        absl::StrCat("arena ", arenas.back().value(), " exists and at most ", options_.max_arenas,
                     " arenas are allowed: raise the limit to what it was"));
  }
  if (Bytes(total) > options_.limit_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("spans of ", Bytes(total),
                                                      " bytes exist and the limit is ",
                                                      options_.limit_bytes, ": raise it"));
  }
  return absl::OkStatus();
}

absl::StatusOr<PageRanges> PageHeap::BackRestored(const PageRanges& there,
                                                  const PageRanges& needed) {
  PageRanges backed;
  for (const PageRange& range : there) {
    absl::StatusOr<PageRanges> found = source_->FindBacked(range);
    if (!found.ok()) return found.status();
    for (const PageRange& run : *found) {
      SPANPOOL_CHECK(run == WholeUnits(run) && range.first <= run.first && run.end() <= range.end())
          << "the source found pages " << run.first << " to " << run.end();
      Append(&backed, run);
    }
  }
  // Pages of spans had memory. The system may not tell, or somebody who can write to the arena has
  // taken it away, which is as if he had written zeroes.
  for (const PageRange& range : Minus(needed, backed)) {
    const absl::Status status = source_->Populate(range);
    if (!status.ok()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory behind pages ", range.first.value(), " to ", range.end().value(),
                       ", of spans that exist: ", status.message()));
    }
  }
  backed = Union(backed, needed);
  for (const PageRange& range : backed) map_.MarkUsed(range);
  // Free pages that may have some: none, to be sure.
  for (const PageRange& range : Minus(there, backed)) {
    if (source_->Discard(range).ok()) continue;
    scavenged_is_zero_.store(false, std::memory_order_relaxed);
    map_.MarkUsed(range);
  }
  return backed;
}

absl::Status PageHeap::AddArenas(absl::Span<const ArenaIndex> arenas, const PageRanges& there) {
  RankedMutexLock lock(&mu_);
  for (const ArenaIndex arena : arenas) {
    if (!map_.Add(arena)) {
      return absl::ResourceExhaustedError("no memory for the record of an arena");
    }
  }
  for (const PageRange& range : there) {
    absl::Status status = pages_.Grow(range);
    if (!status.ok()) return status;
  }
  arenas_ = static_cast<uint32_t>(arenas.size());
  next_arena_ = arenas.empty() ? 0 : arenas.back().value() + 1;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Span*>> PageHeap::MakeRecords(absl::Span<const SpanState> spans) {
  Shard& shard = MyShard();
  RankedMutexLock lock(&shard.mu);
  std::vector<Span*> records;
  records.reserve(spans.size());
  for (const SpanState& state : spans) {
    Span* const span = records_.New(BlocksOf(state), &shard.records);
    if (span == nullptr) return absl::ResourceExhaustedError("no memory for the record of a span");
    Describe(span, state.span_class, {state.first_page, state.pages}, /*needs_zero=*/true);
    records.push_back(span);
  }
  shard.spans.fetch_add(static_cast<int64_t>(records.size()), std::memory_order_relaxed);
  return records;
}

absl::StatusOr<std::vector<Span*>> PageHeap::Restore(absl::Span<const ArenaIndex> arenas,
                                                     absl::Span<const SpanState> spans) {
  if (absl::Status status = CheckRestorable(arenas, spans); !status.ok()) return status;
  const PageRanges there = PagesOf(arenas);
  PageRanges used;
  PageRanges needed;  // by units
  for (const SpanState& span : spans) {
    const PageRange range{span.first_page, span.pages};
    Append(&used, range);
    Append(&needed, WholeUnits(range));
  }
  if (absl::Status status = AddArenas(arenas, there); !status.ok()) return status;
  const absl::StatusOr<PageRanges> backed = BackRestored(there, needed);
  if (!backed.ok()) return backed.status();
  absl::StatusOr<std::vector<Span*>> records = MakeRecords(spans);
  if (!records.ok()) return records;
  RankedMutexLock lock(&mu_);
  for (const PageRange& range : used) pages_.AllocRange(range);
  for (const PageRange& range : *backed) pages_.ClearScavenged(range);
  ChargeLocked(CountPages(used));
  return records;
}

}  // namespace spanpool

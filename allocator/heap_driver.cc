#include "allocator/heap_driver.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace spanpool {
namespace {

constexpr uint64_t kLimitBytes = 2 * kArenaBytes;

HeapOptions Options(FreedBlockListener* listener, SpanJournal* journal) {
  HeapOptions options;
  options.limit_bytes = kLimitBytes;
  options.reserve_bytes = 2 << 20;
  options.listener = listener;
  options.journal = journal;
  return options;
}

// Mostly of a few classes, so that spans meet again: with many blocks, some, few and one.
SpanClass ClassFor(uint8_t a) {
  constexpr size_t kBytes[] = {64, 64, 112, 2048, 8192, 28672};
  if (a % 4 != 0) return SpanClass(SizeClassFor(kBytes[a / 4 % 6]), /*noscan=*/true);
  return SpanClass::FromValue(static_cast<uint8_t>(2 + a / 2 % (kNumSpanClasses - 2)));
}

uint64_t OffsetOfBlock(const Span& span, uint32_t block) {
  return OffsetOf(span.first_page).value() + block * span.block_bytes;
}

bool InUse(const Span& span, uint32_t block) {
  return (span.in_use()[block / 64] >> (block % 64) & 1) != 0;
}

}  // namespace

void HeapDriver::Listener::OnFreed(absl::Span<const FreedBlock> blocks) {
  for (const FreedBlock& freed : blocks) {
    if (watched.erase({freed.first_page, freed.block}) == 0) {
      error = absl::StrCat("told of block ", freed.block, " of page ", freed.first_page.value(),
                           ", which nobody watched");
    }
  }
}

absl::Status HeapDriver::Memory::Create(ArenaIndex arena) {
  pages.resize(std::max(pages.size(), (arena.value() + 1) * kPagesPerArena), kNone);
  return absl::OkStatus();
}

absl::Status HeapDriver::Memory::Populate(PageRange range) {
  const uint64_t unit = unit_.value();
  for (uint64_t first = range.first.value() / unit * unit; first < range.end().value();
       first += unit) {
    if (pages[first] != kNone) continue;
    if (backed + unit_ > most_) return absl::ResourceExhaustedError("all memory is taken");
    std::fill_n(pages.begin() + static_cast<std::ptrdiff_t>(first), unit, kZero);
    backed += unit_;
  }
  return absl::OkStatus();
}

absl::Status HeapDriver::Memory::Discard(PageRange range) {
  if (range.first.value() % unit_.value() != 0 || range.count.value() % unit_.value() != 0) {
    error = "a part of a unit was discarded";
  }
  for (PageId page = range.first; page < range.end(); ++page) {
    State& state = pages[page.value()];
    if (std::exchange(state, kNone) != kNone) backed -= PageCount(1);
  }
  return absl::OkStatus();
}

absl::StatusOr<PageRanges> HeapDriver::Memory::FindBacked(PageRange range) {
  PageRanges found;
  const uint64_t unit = unit_.value();
  for (PageId page = range.first; page < range.end(); page = page + unit_) {
    if (pages[page.value()] == kNone || (!tells && page.value() / unit % 2 == 0)) continue;
    Append(&found, {page, unit_});
  }
  return found;
}

void HeapDriver::Journal::Listed(const Span& span) {
  const auto it = spans.find(span.first_page);
  if (it == spans.end() || it->second.place != SpanState::Place::kOnLoan) {
    error = absl::StrCat("the span at page ", span.first_page.value(), " was listed unasked");
    return;
  }
  it->second.place = SpanState::Place::kListed;
}

void HeapDriver::Journal::Freed(const Span& span) {
  const auto it = spans.find(span.first_page);
  if (it == spans.end() || it->second.pages != span.pages ||
      it->second.span_class != span.span_class) {
    error = absl::StrCat("the span at page ", span.first_page.value(), " was freed unasked");
    return;
  }
  spans.erase(it);
}

// Pages were granted, all zero if `zero`; whoever has them writes to them.
std::string HeapDriver::Write(PageRange range, bool zero) {
  for (PageId page = range.first; page < range.end(); ++page) {
    Memory::State& state = memory_.pages[page.value()];
    if (state == Memory::kNone) return absl::StrCat("page ", page.value(), " has no memory");
    if (zero && state == Memory::kWritten) {
      return absl::StrCat("page ", page.value(), " is not zero");
    }
    state = Memory::kWritten;
  }
  return "";
}

HeapDriver::HeapDriver(PageCount unit)
    : memory_(unit,
              PageCount(unit == PageCount(1) ? UINT64_MAX / kPageBytes : kLimitBytes / kPageBytes)),
      source_(&memory_),
      heap_(std::make_unique<Heap>(Options(&listener_, &journal_), &source_, &states_)) {}

HeapDriver::~HeapDriver() {
  for (const PageRange& run : runs_) heap_->runs()->Free(run);
}

std::string HeapDriver::Run(absl::Span<const uint8_t> bytes, int check_every) {
  int steps = 0;
  for (; bytes.size() >= kOperationBytes; bytes.remove_prefix(kOperationBytes)) {
    std::string error = Step(bytes[0], bytes[1], bytes[2], bytes[3]);
    if (error.empty()) error = CheckStats();
    if (!error.empty()) return absl::StrCat("operation ", steps, ": ", error);
    if (++steps % check_every == 0) heap_->CheckInvariants();
  }
  heap_->CheckInvariants();
  return "";
}

std::string HeapDriver::Step(uint8_t code, uint8_t a, uint8_t b, uint8_t c) {
  const size_t loan = loans_.empty() ? 0 : (a | size_t{b} << 8) % loans_.size();
  switch (code % 20) {
    case 0:
    case 1:
    case 2: {
      const absl::StatusOr<Span*> span = heap_->Grant(ClassFor(a));
      std::string error = Granted(span);
      return error.empty() && !span.ok() ? Refused(ClassFor(a)) : error;
    }
    case 3: {
      // Mostly small; up to a whole arena.
      const PageCount pages(1 + (c % 16 == 0 ? (a | uint64_t{b} << 8) % kPagesPerArena : a));
      return Granted(heap_->GrantLarge(pages, (c & 1) != 0, PageCount(uint64_t{1} << (c / 16))));
    }
    case 4:
    case 5:
    case 6:
    case 7: {
      // Carves some blocks.
      if (loans_.empty()) return "";
      for (int i = 0; i <= c % 32; ++i) {
        std::string error = Carve(loans_[loan]);
        if (!error.empty()) return error;
      }
      return "";
    }
    case 8:
    case 9: {
      // Shares some private blocks, the highest first.
      if (loans_.empty()) return "";
      std::set<uint32_t>& owned = loans_[loan].owned;
      for (int i = 0; i <= c % 8 && !owned.empty(); ++i) {
        const auto last = std::prev(owned.end());
        states_.Refer(*loans_[loan].span, *last);
        shared_.insert({loans_[loan].span->first_page, *last});
        owned.erase(last);
      }
      return "";
    }
    case 10:
    case 11: {
      // Drops the last reference to a shared one.
      if (shared_.empty()) return "";
      auto it = shared_.lower_bound({PageId((a | uint64_t{b} << 8) % (4 * kPagesPerArena)), 0});
      if (it == shared_.end()) it = shared_.begin();
      const Span* const span = heap_->SpanOf(it->first);
      if (span == nullptr) return "the span of a shared block is gone";
      live_.erase(OffsetOfBlock(*span, it->second));
      states_.Drop(it->first, it->second);
      stale_.insert(*it);
      shared_.erase(it);
      return "";
    }
    case 12:
    case 13:
    case 14:
      return loans_.empty() ? "" : Return(loan);
    case 15:
      switch (c % 4) {
        case 0:
          heap_->Sweep();
          stale_.clear();
          for (const Loan& l : loans_) {
            // Not swept: what was dropped there is found when it comes back.
            for (uint32_t i = 0; i < l.span->blocks; ++i) {
              if (!shared_.contains({l.span->first_page, i}))
                stale_.insert({l.span->first_page, i});
            }
          }
          break;
        case 1:
          heap_->SweepInBackground(a);
          break;
        case 2:
          heap_->Trim();
          break;
        case 3:
          heap_->Scavenge();
          break;
      }
      return Reconcile();
    case 16: {
      if (a % 8 == 7) return Restart(/*tells=*/c % 2 == 0);
      const absl::Status status = heap_->Replenish();
      return status.ok() || absl::IsResourceExhausted(status) ? "" : std::string(status.message());
    }
    case 17:
      source_.FailCall(static_cast<FaultyArenaSource::Call>(a % 4), b % 4, 1 + c % 2);
      return "";
    case 18: {
      // Watches a shared block, or stops doing so.
      if (shared_.empty()) return "";
      auto it = shared_.lower_bound({PageId((a | uint64_t{b} << 8) % (4 * kPagesPerArena)), 0});
      if (it == shared_.end()) it = shared_.begin();
      Span* const span = heap_->SpanOf(it->first);
      if (span == nullptr) return "the span of a shared block is gone";
      const bool watched = listener_.watched.contains(*it);
      if (watched && c % 2 == 0) {
        if (!heap_->RemoveSpecial(span, it->second, SpecialKind::kNotification)) {
          return "a special is gone";
        }
        listener_.watched.erase(*it);
        return "";
      }
      const absl::Status status =
          heap_->AddSpecial(span, it->second, SpecialKind::kNotification, 0);
      if (watched != absl::IsAlreadyExists(status)) return std::string(status.message());
      listener_.watched.insert(*it);
      return "";
    }
    default:
      if (c % 2 == 0 || runs_.empty()) {
        const absl::StatusOr<PageRange> run =
            heap_->runs()->Alloc(RunOrder(static_cast<uint8_t>(a % kRunOrders)));
        std::string error = Reconcile();
        if (!error.empty() || !run.ok()) return error;
        if (!live_.insert({OffsetOf(run->first).value(), OffsetOf(run->end()).value()}).second) {
          return "a run begins where something lives";
        }
        runs_.push_back(*run);
        return Write(*run, /*zero=*/false);
      } else {
        std::swap(runs_[a % runs_.size()], runs_.back());
        live_.erase(OffsetOf(runs_.back().first).value());
        heap_->runs()->Free(runs_.back());
        runs_.pop_back();
      }
      return "";
  }
}

std::string HeapDriver::Granted(const absl::StatusOr<Span*>& granted) {
  std::string error = Reconcile();
  if (!error.empty()) return error;
  if (!granted.ok()) {
    return absl::IsResourceExhausted(granted.status()) ? "" : granted.status().ToString();
  }
  Span* const span = *granted;
  for (const Loan& loan : loans_) {
    if (span->first_page < loan.span->range().end() &&
        loan.span->first_page < span->range().end()) {
      return absl::StrCat("granted page ", span->first_page.value(), ", which is on loan");
    }
  }
  if (const auto it = listed_.find(span->first_page); it != listed_.end()) {
    if (it->second.pages != span->pages || it->second.span_class != span->span_class) {
      return "a listed span was granted in another shape";
    }
    listed_.erase(it);
  } else if (Referred(span->first_page)) {
    return "a span with live blocks was granted as new";
  }
  for (uint32_t i = 0; i < span->blocks; ++i) {
    const Block block{span->first_page, i};
    if (shared_.contains(block) && !InUse(*span, i)) return "a live block is offered";
    if (InUse(*span, i) && !shared_.contains(block) && !stale_.contains(block)) {
      return absl::StrCat("free block ", i, " was not found");
    }
  }
  journal_.spans[span->first_page] = {span->first_page, span->pages, span->span_class,
                                      SpanState::Place::kOnLoan};
  Loan& loan = loans_.emplace_back();
  loan.span = span;
  loan.in_use.assign(span->in_use().begin(), span->in_use().end());
  loan.slots = FreeSlots(loan.in_use, span->blocks);
  return Write(span->range(), !span->needs_zero);
}

// A span of this class could not be had.
std::string HeapDriver::Refused(SpanClass span_class) {
  for (const auto& [page, listed] : listed_) {
    if (listed.span_class != span_class) continue;
    const auto live = std::distance(shared_.lower_bound({page, 0}),
                                    shared_.lower_bound({page + PageCount(1), 0}));
    if (static_cast<uint64_t>(live) < BlocksPerSpan(span_class.size_class())) {
      return "a grant was refused while a listed span had a free block";
    }
  }
  return "";
}

std::string HeapDriver::Carve(Loan& loan) {
  const std::optional<uint32_t> slot = loan.slots.Next();
  if (!slot.has_value()) {
    uint32_t in_use = 0;
    for (const uint64_t word : loan.in_use) in_use += static_cast<uint32_t>(std::popcount(word));
    if (loan.slots.taken() + in_use != loan.span->blocks) {
      return "a span did not offer all its free blocks";
    }
    return "";
  }
  const uint64_t begin = OffsetOfBlock(*loan.span, *slot);
  const uint64_t end = begin + loan.span->block_bytes;
  if (end > OffsetOf(loan.span->range().end()).value()) return "a block leaves its span";
  const auto next = live_.lower_bound(begin);
  if (next != live_.end() && next->first < end) return "two live blocks overlap";
  if (next != live_.begin() && std::prev(next)->second > begin) return "two live blocks overlap";
  live_[begin] = end;
  loan.owned.insert(*slot);
  return "";
}

std::string HeapDriver::Return(size_t at) {
  std::swap(loans_[at], loans_.back());
  Loan& loan = loans_.back();
  Span* const span = loan.span;
  for (const uint32_t block : loan.owned) live_.erase(OffsetOfBlock(*span, block));
  loans_.pop_back();
  const PageId first_page = span->first_page;
  listed_[first_page] = {span->pages, span->span_class};
  heap_->Return(span);
  stale_.erase(stale_.lower_bound({first_page, 0}),
               stale_.lower_bound({first_page + PageCount(1), 0}));
  return Reconcile();
}

bool HeapDriver::Referred(PageId first_page) const {
  const auto it = shared_.lower_bound({first_page, 0});
  return it != shared_.end() && it->first == first_page;
}

// Finds out which listed spans the heap has freed, and that it might.
std::string HeapDriver::Reconcile() {
  for (auto it = listed_.begin(); it != listed_.end();) {
    const Span* const span = heap_->SpanOf(it->first);
    const bool gone = span == nullptr || span->first_page != it->first ||
                      span->pages != it->second.pages || span->span_class != it->second.span_class;
    if (!gone) {
      ++it;
      continue;
    }
    if (Referred(it->first)) return "a span was freed with a live block";
    it = listed_.erase(it);
  }
  return listener_.error;
}

std::string HeapDriver::CheckStats() {
  const HeapStats stats = heap_->stats();
  if (stats.on_loan_bytes + stats.in_lists_bytes + stats.free_bytes + stats.scavenged_bytes !=
      stats.reserved_bytes) {
    return "the statistics do not add up";
  }
  PageCount on_loan = heap_->runs()->held();
  for (const Loan& loan : loans_) on_loan += loan.span->pages;
  PageCount in_lists;
  for (const auto& [page, listed] : listed_) in_lists += listed.pages;
  if (stats.on_loan_bytes != Bytes(on_loan) || stats.in_lists_bytes != Bytes(in_lists)) {
    return absl::StrCat("on loan ", stats.on_loan_bytes, " and listed ", stats.in_lists_bytes,
                        " should be ", Bytes(on_loan), " and ", Bytes(in_lists));
  }
  if (stats.on_loan_bytes + stats.in_lists_bytes > kLimitBytes) return "the limit is exceeded";
  if (!SourceHasFailed() && stats.reserved_bytes - stats.scavenged_bytes != Bytes(memory_.backed)) {
    return absl::StrCat(Bytes(memory_.backed), " bytes have memory, and the statistics say ",
                        stats.reserved_bytes - stats.scavenged_bytes);
  }
  if (std::string error = CheckJournal(); !error.empty()) return error;
  return memory_.error;
}

std::string HeapDriver::CheckJournal() const {
  if (!journal_.error.empty()) return journal_.error;
  if (journal_.spans.size() != loans_.size() + listed_.size()) {
    return absl::StrCat("the journal has ", journal_.spans.size(), " spans instead of ",
                        loans_.size(), " on loan and ", listed_.size(), " listed");
  }
  const auto is = [this](PageId page, PageCount pages, SpanClass span_class,
                         SpanState::Place place) {
    const auto it = journal_.spans.find(page);
    return it != journal_.spans.end() && it->second.pages == pages &&
           it->second.span_class == span_class && it->second.place == place;
  };
  for (const Loan& loan : loans_) {
    if (!is(loan.span->first_page, loan.span->pages, loan.span->span_class,
            SpanState::Place::kOnLoan)) {
      return "a span on loan is in the journal otherwise";
    }
  }
  for (const auto& [page, listed] : listed_) {
    if (!is(page, listed.pages, listed.span_class, SpanState::Place::kListed)) {
      return "a listed span is in the journal otherwise";
    }
  }
  return "";
}

std::string HeapDriver::Restart(bool tells) {
  // What the heap's owner has for himself ends with the heap.
  for (const PageRange& run : runs_) {
    live_.erase(OffsetOf(run.first).value());
    heap_->runs()->Free(run);
  }
  runs_.clear();
  listener_.watched.clear();

  const HeapStats before = heap_->stats();
  const bool exact = tells && !SourceHasFailed();
  std::vector<SpanState> spans;
  for (const auto& [page, span] : journal_.spans) spans.push_back(span);
  std::vector<ArenaIndex> arenas;
  for (uint32_t i = 0; i < memory_.pages.size() / kPagesPerArena; ++i) arenas.emplace_back(i);
  std::map<PageId, size_t> loan_at;
  for (size_t i = 0; i < loans_.size(); ++i) loan_at[loans_[i].span->first_page] = i;

  memory_.tells = tells;
  heap_ = std::make_unique<Heap>(Options(&listener_, &journal_), &source_, &states_);
  absl::StatusOr<std::vector<Span*>> restored = heap_->Restore(arenas, spans);
  if (absl::IsResourceExhausted(restored.status())) {
    // As ordered. What exists is as it was.
    StopFailing();
    heap_ = std::make_unique<Heap>(Options(&listener_, &journal_), &source_, &states_);
    restored = heap_->Restore(arenas, spans);
  }
  memory_.tells = true;
  if (!restored.ok()) return absl::StrCat("not restored: ", restored.status().message());

  heap_->CheckInvariants();
  for (size_t i = 0; i < spans.size(); ++i) {
    const SpanState& state = spans[i];
    Span* const span = heap_->SpanOf(state.first_page);
    if (span == nullptr || span->first_page != state.first_page || span->pages != state.pages ||
        span->span_class != state.span_class) {
      return absl::StrCat("the span at page ", state.first_page.value(), " is lost");
    }
    const bool on_loan = state.place == SpanState::Place::kOnLoan;
    if ((*restored)[i] != (on_loan ? span : nullptr)) return "another record was returned";
    if (on_loan) loans_[loan_at.at(state.first_page)].span = span;
  }
  const HeapStats after = heap_->stats();
  const auto same = [&](uint64_t HeapStats::*field) { return before.*field == after.*field; };
  if (!same(&HeapStats::reserved_bytes) || !same(&HeapStats::on_loan_bytes) ||
      !same(&HeapStats::in_lists_bytes) || !same(&HeapStats::spans_on_loan) ||
      !same(&HeapStats::spans_in_lists) ||
      (exact && (!same(&HeapStats::free_bytes) || !same(&HeapStats::scavenged_bytes)))) {
    return "the statistics are not what they were";
  }
  return "";
}

void HeapDriver::StopFailing() {
  using Call = FaultyArenaSource::Call;
  for (const Call call : {Call::kCreate, Call::kPopulate, Call::kDiscard, Call::kFindBacked}) {
    source_.FailCall(call, 0);
  }
}

bool HeapDriver::SourceHasFailed() const {
  using Call = FaultyArenaSource::Call;
  return source_.failures(Call::kPopulate) + source_.failures(Call::kDiscard) > 0;
}

std::string HeapDriver::Finish() {
  std::vector<Span*> spans;
  for (const Loan& loan : loans_) {
    const Span* const span = loan.span;
    for (const uint32_t block : loan.owned) live_.erase(OffsetOfBlock(*span, block));
    listed_[span->first_page] = {span->pages, span->span_class};
    stale_.erase(stale_.lower_bound({span->first_page, 0}),
                 stale_.lower_bound({span->first_page + PageCount(1), 0}));
    spans.push_back(loan.span);
  }
  loans_.clear();
  heap_->ReturnAll(spans);
  if (std::string error = Reconcile(); !error.empty()) return error;
  for (const auto& [page, block] : shared_) states_.Drop(page, block);
  shared_.clear();
  for (const PageRange& run : runs_) heap_->runs()->Free(run);
  runs_.clear();
  heap_->Sweep();
  if (std::string error = Reconcile(); !error.empty()) return error;
  if (!listed_.empty()) return "an empty span was not freed";
  if (!listener_.watched.empty()) return "a freed block was not reported";
  heap_->CheckInvariants();
  StopFailing();
  // What could not be discarded is missing in a stock that is just enough.
  if (SourceHasFailed() && memory_.unit() > PageCount(1)) return memory_.error;
  const absl::StatusOr<Span*> all = heap_->GrantLarge(PageCount(kLimitBytes / kPageBytes), false);
  if (!all.ok()) return absl::StrCat("the empty heap is not whole: ", all.status().message());
  heap_->Return(*all);
  heap_->CheckInvariants();
  return "";
}

}  // namespace spanpool

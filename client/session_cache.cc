#include "client/session_cache.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "allocator/check.h"
#include "proto/layout/block_table.h"
#include "proto/layout/step.h"

namespace spanpool::internal {
namespace {

// What one exchange may bring of one class.
constexpr uint64_t kSmallFetchBytes = 1 << 20;
constexpr uint64_t kLargeFetchBytes = 8 << 20;
constexpr uint32_t kMaxFetchSpans = 1024;  // the protocol's

// Idle spans a session keeps.
constexpr uint64_t kIdleCapBytes = 64 << 20;

// Spans looked at for freed blocks before the daemon is asked. A longer search costs more than the
// round trip it may save.
constexpr uint32_t kSweepBudget = 256;

// Partly used spans whose free blocks are counted, to see whether a class runs low. More spans than
// this hold something for sure.
constexpr int kSpansLookedAt = 8;

// Batches that a class which grows has to spare.
constexpr uint32_t kBatchesToGrow = 2;

constexpr int kMaxFetchRounds = 1000;

// Of larger spans, one that is not needed is too much.
constexpr uint64_t kLargestPrefetchBytes = 1 << 20;

// A longer block is mapped as it is touched: mapping it ahead would take the caller milliseconds.
constexpr uint64_t kMaxPrefaultBytes = 16 << 20;

// Neighbours are mapped together, for one call of the kernel is dearer than mapping a small span.
// Meanwhile no return leaves; so not too many of them.
constexpr uint64_t kPrefaultStepBytes = 1 << 20;

constexpr size_t kMaxWishes = 256;  // the protocol's, per message

constexpr size_t kRecordsPerChunk = 64;
constexpr size_t kReturnsPerMessage = 4096;  // the protocol's

}  // namespace

template <ClientSpan* ClientSpan::*Next, ClientSpan* ClientSpan::*Previous>
void SessionCache::List<Next, Previous>::PushFront(ClientSpan* span) {
  span->*Next = front_;
  span->*Previous = nullptr;
  (front_ != nullptr ? front_->*Previous : back_) = span;
  front_ = span;
}

template <ClientSpan* ClientSpan::*Next, ClientSpan* ClientSpan::*Previous>
void SessionCache::List<Next, Previous>::PushBack(ClientSpan* span) {
  span->*Next = nullptr;
  span->*Previous = back_;
  (back_ != nullptr ? back_->*Next : front_) = span;
  back_ = span;
}

template <ClientSpan* ClientSpan::*Next, ClientSpan* ClientSpan::*Previous>
void SessionCache::List<Next, Previous>::Remove(ClientSpan* span) {
  (span->*Previous != nullptr ? span->*Previous->*Next : front_) = span->*Next;
  (span->*Next != nullptr ? span->*Next->*Previous : back_) = span->*Previous;
  span->*Next = nullptr;
  span->*Previous = nullptr;
}

SessionCache::SessionCache(uint64_t limit_bytes, SpanSource* source, AddressRange* range,
                           PageMap* pages, MisuseReporter* misuse, std::function<bool()> wake)
    : limit_bytes_(limit_bytes),
      idle_cap_bytes_(std::min(kIdleCapBytes, limit_bytes / 16)),
      source_(source),
      range_(range),
      pages_(pages),
      misuse_(misuse),
      wake_(std::move(wake)),
      classes_(new ClassCache[kCacheClasses]) {}

SessionCache::~SessionCache() = default;

ClientSpan* SessionCache::NewRecord() {
  RankedMutexLock lock(&mu_);
  if (free_records_ == nullptr) {
    record_chunks_.push_back(std::make_unique<ClientSpan[]>(kRecordsPerChunk));
    for (size_t i = 0; i < kRecordsPerChunk; ++i) {
      ClientSpan& record = record_chunks_.back()[i];
      record.next = free_records_;
      free_records_ = &record;
    }
  }
  ClientSpan* const record = free_records_;
  free_records_ = record->next;
  record->next = nullptr;
  return record;
}

void SessionCache::FreeRecord(ClientSpan* span) {
  RankedMutexLock lock(&mu_);
  span->next = free_records_;
  free_records_ = span;
}

SessionCache::SpanList& SessionCache::ListOf(ClassCache& cache, ClientSpan::List list) {
  switch (list) {
    case ClientSpan::List::kPartial:
      return cache.partial;
    case ClientSpan::List::kFull:
      return cache.full;
    case ClientSpan::List::kDisowned:
      return cache.disowned;
    default:
      return cache.idle;
  }
}

void SessionCache::UnlinkLocked(ClassCache& cache, ClientSpan* span) {
  if (span->list == ClientSpan::List::kNone) return;
  ListOf(cache, span->list).Remove(span);
  if (span->list == ClientSpan::List::kIdle) {
    idle_bytes_.fetch_sub(Bytes(span->pages.count), std::memory_order_relaxed);
  }
  span->list = ClientSpan::List::kNone;
}

void SessionCache::PlaceLocked(ClassCache& cache, ClientSpan* span, bool fresh) {
  if (span->list == ClientSpan::List::kDisowned) return;
  const ClientSpan::List list = span->available == 0              ? ClientSpan::List::kFull
                                : span->available == span->blocks ? ClientSpan::List::kIdle
                                                                  : ClientSpan::List::kPartial;
  if (list == span->list) return;
  UnlinkLocked(cache, span);
  span->list = list;
  if (fresh) {
    ListOf(cache, list).PushBack(span);
  } else {
    ListOf(cache, list).PushFront(span);
  }
  if (list == ClientSpan::List::kIdle) {
    idle_bytes_.fetch_add(Bytes(span->pages.count), std::memory_order_relaxed);
  }
}

size_t SessionCache::TakeLocked(CacheClass c, ClassCache& cache, absl::Span<void*> blocks,
                                PageCount alignment) {
  size_t taken = 0;
  if (IsLarge(c) && alignment > PageCount(1)) {
    for (ClientSpan* span = cache.idle.front(); span != nullptr; span = span->next) {
      if (span->pages.first.value() % alignment.value() != 0) continue;
      span->free[0] = 0;
      span->available = 0;
      PlaceLocked(cache, span);
      blocks[0] = range_->PointerTo(span->offset());
      return 1;
    }
    return 0;
  }
  while (taken < blocks.size()) {
    ClientSpan* span = cache.partial.front();
    if (span == nullptr) span = cache.idle.front();
    if (span == nullptr) break;
    for (size_t word = 0; span->available > 0 && taken < blocks.size(); ++word) {
      uint64_t bits = span->free[word];
      while (bits != 0 && taken < blocks.size()) {
        const auto index = static_cast<uint32_t>(word * 64 + std::countr_zero(bits));
        bits &= bits - 1;
        blocks[taken++] = range_->PointerTo(span->OffsetOfBlock(index));
        --span->available;
      }
      span->free[word] = bits;
    }
    PlaceLocked(cache, span);
  }
  return taken;
}

absl::StatusOr<SessionCache::Taken> SessionCache::Take(CacheClass c, absl::Span<void*> blocks,
                                                       PageCount alignment) {
  ClassCache& cache = CacheOf(c);
  Taken taken;
  // Another thread may take what this one fetched; then it fetches again. The bound is for a daemon
  // that grants what was not asked for.
  for (int round = 0; round < kMaxFetchRounds; ++round) {
    {
      RankedMutexLock lock(&cache.mu);
      taken.blocks = TakeLocked(c, cache, blocks, alignment);
      if (taken.blocks == 0 && cache.spans_to_sweep > 0 &&
          SweepLocked(cache, static_cast<uint32_t>(blocks.size())) > 0) {
        taken.blocks = TakeLocked(c, cache, blocks, alignment);
      }
      if (taken.blocks > 0) {
        NoteUse();
        CheckLowLocked(c, cache);
        return taken;
      }
    }
    if (absl::Status status = Fetch(c, alignment); !status.ok()) return status;
    taken.waited = true;
  }
  return absl::InternalError("the daemon grants spans, but none that holds a free block");
}

absl::StatusOr<void*> SessionCache::TakeExact(PageCount pages, bool noscan, PageCount alignment) {
  // Such a span is never in a list but `full`, where it cannot be taken by another thread; its
  // block is out from the start.
  const SpanWish wish{SpanClass(kLargeSizeClass, noscan), 1, pages, alignment};
  absl::StatusOr<ExchangeResult> result = ExchangeNow({&wish, 1});
  if (!result.ok()) return result.status();
  for (const SpanGrant& grant : result->grants) {
    const absl::Status status = Adopt(grant);
    if (absl::IsAborted(status)) return TakeExact(pages, noscan, alignment);
    if (!status.ok()) return status;
    if (grant.pages.count != pages || grant.pages.first.value() % alignment.value() != 0) continue;
    return range_->PointerTo(OffsetOf(grant.pages.first));
  }
  if (!result->shortfall.ok()) return result->shortfall;
  return absl::InternalError("the daemon granted no span and did not say why");
}

void SessionCache::Give(CacheClass c, absl::Span<void* const> blocks, const void* call_site) {
  ClassCache& cache = CacheOf(c);
  // Reported once the lock is released: a handler is the user's code.
  absl::InlinedVector<std::pair<void*, Misuse::Kind>, 4> misuses;
  bool surplus = false;
  {
    RankedMutexLock lock(&cache.mu);
    for (void* block : blocks) {
      const PoolOffset offset = range_->OffsetOf(block);
      ClientSpan* const span = pages_->SpanOf(PageOf(offset));
      // Gone, or of another class by now: the block was freed before, and its span returned.
      if (span == nullptr || span->cache_class.load(std::memory_order_relaxed) != c.value()) {
        misuses.emplace_back(block, Misuse::Kind::kDoubleFree);
        continue;
      }
      const uint32_t index = span->BlockAt(offset);
      if (index == span->blocks) {
        misuses.emplace_back(block, Misuse::Kind::kInteriorPointer);
        continue;
      }
      if (span->IsFree(index) || span->IsElsewhere(index)) {
        misuses.emplace_back(block, Misuse::Kind::kDoubleFree);
        continue;
      }
      span->free[index / 64] |= uint64_t{1} << (index % 64);
      ++span->available;
      if (!span->exact_step && span->list != ClientSpan::List::kDisowned) {
        RetireLocked(cache, span);
        surplus = true;
        continue;
      }
      PlaceLocked(cache, span);
    }
    // Half of what is idle goes at a time, oldest first, so that a class which hovers about the cap
    // does not send a span with every batch.
    if (idle_bytes_.load(std::memory_order_relaxed) > idle_cap_bytes_ &&
        cache.idle.front() != nullptr && !offline_.load(std::memory_order_relaxed)) {
      RetireHalfLocked(cache);
      surplus = true;
    }
  }
  for (const auto& [block, kind] : misuses) misuse_->Report(kind, block, call_site);
  if (surplus && !wake_()) ReturnSurplus();
}

void SessionCache::SetAwayLocked(ClassCache& cache, ClientSpan* span, uint32_t index) {
  span->elsewhere[index / 64] |= uint64_t{1} << (index % 64);
#ifdef SPANPOOL_DEBUG
  span->in_hand[index / 64].fetch_and(~(uint64_t{1} << (index % 64)), std::memory_order_relaxed);
#endif
  // Its words may be another's to collect.
  if (span->list == ClientSpan::List::kDisowned) {
    ++span->away;
    return;
  }
  if (span->away++ == 0) {
    cache.to_sweep.PushBack(span);
    ++cache.spans_to_sweep;
  }
}

void SessionCache::LetGo(PoolOffset offset) {
  ClientSpan* const span = pages_->SpanOf(PageOf(offset));
  SPANPOOL_CHECK(span != nullptr);  // the caller holds a block of it
  ClassCache& cache = CacheOf(CacheClass(span->cache_class.load(std::memory_order_relaxed)));
  RankedMutexLock lock(&cache.mu);
  const uint32_t index = span->BlockAt(offset);
  SPANPOOL_CHECK(index < span->blocks && !span->IsFree(index) && !span->IsElsewhere(index));
  SetAwayLocked(cache, span, index);
  NoteUse();
  // The last reference may have gone before the block was marked; its hint may be spent already.
  const GranuleId granule = GranuleOf(offset);
  const layout::BlockWord word(range_->WordOf(granule).load(std::memory_order_acquire));
  if (word.freed()) layout::SetHint(range_->MarksOf(ArenaOf(granule)), PageOf(granule));
}

uint32_t SessionCache::SweepSpanLocked(ClassCache& cache, ClientSpan* span, bool all) {
  bool look = all;
  for (uint64_t i = 0; i < span->pages.count.value(); ++i) {
    const PageId page = span->pages.first + PageCount(i);
    look |= layout::TakeHint(range_->MarksOf(ArenaOf(page)), page);
    // Only the page that a block starts in is hinted: for a large block, the first.
    if (span->span_class.large()) break;
  }
  if (!look) return 0;
  uint32_t collected = 0;
  for (size_t word = 0; word * 64 < span->blocks; ++word) {
    for (uint64_t bits = span->elsewhere[word]; bits != 0; bits &= bits - 1) {
      const uint64_t bit = bits & -bits;
      const auto index = static_cast<uint32_t>(word * 64 + std::countr_zero(bits));
      const GranuleId granule = GranuleOf(span->OffsetOfBlock(index));
      layout::SharedWord& shared = range_->WordOf(granule);
      if (!layout::CollectBlock(shared)) continue;
      span->elsewhere[word] &= ~bit;
      span->free[word] |= bit;
      --span->away;
      ++span->available;
      ++collected;
    }
  }
  if (collected == 0) return 0;
  if (span->away == 0) {
    cache.to_sweep.Remove(span);
    --cache.spans_to_sweep;
  }
  PlaceLocked(cache, span);
  return collected;
}

uint32_t SessionCache::SweepLocked(ClassCache& cache, uint32_t wanted) {
  uint32_t collected = 0;
  const uint32_t budget = std::min(cache.spans_to_sweep, kSweepBudget);
  for (uint32_t i = 0; i < budget && collected < wanted; ++i) {
    ClientSpan* const span = cache.to_sweep.front();
    if (span == nullptr) break;
    collected += SweepSpanLocked(cache, span, /*all=*/false);
    if (span->away > 0) {  // to the end, so that the next sweep looks at others
      cache.to_sweep.Remove(span);
      cache.to_sweep.PushBack(span);
    }
  }
  return collected;
}

void SessionCache::SweepEachLocked(ClassCache& cache, bool all) {
  for (ClientSpan* span = cache.to_sweep.front(); span != nullptr;) {
    ClientSpan* const next = span->next_away;
    SweepSpanLocked(cache, span, all);
    span = next;
  }
}

void SessionCache::RetireLocked(ClassCache& cache, ClientSpan* span) {
  SPANPOOL_STEP("return.retire");
  UnlinkLocked(cache, span);
  if (span->away > 0) {
    cache.to_sweep.Remove(span);
    --cache.spans_to_sweep;
  }
  pages_->Remove(span);
  const uint64_t bytes = Bytes(span->pages.count);
  bytes_on_loan_.fetch_sub(bytes, std::memory_order_relaxed);
  {
    RankedMutexLock lock(&mu_);
    returns_.push_back(span->sequence);
    returns_bytes_ += bytes;
  }
  FreeRecord(span);
}

uint32_t SessionCache::DemandCapOf(CacheClass c) const {
  const uint64_t span_bytes = SpanBytesOf(c);
  const uint64_t fetch_bytes =
      std::min(IsLarge(c) ? kLargeFetchBytes : kSmallFetchBytes, limit_bytes_ / 64);
  return static_cast<uint32_t>(std::clamp<uint64_t>(fetch_bytes / span_bytes, 1, kMaxFetchSpans));
}

void SessionCache::EndReturning() {
  RankedMutexLock lock(&returning_mu_);
  --returning_;
}

absl::StatusOr<ExchangeResult> SessionCache::ExchangeNow(absl::Span<const SpanWish> wishes,
                                                         bool flush) {
  std::vector<GrantSequence> returns;
  {
    // Before they leave the list, so that at any time they are seen in it or on their way.
    RankedMutexLock lock(&returning_mu_);
    ++returning_;
  }
  {
    RankedMutexLock lock(&mu_);
    if (flush) {
      mu_.Await(absl::Condition(
          +[](int* prefaulting) { return *prefaulting == 0; }, &prefaulting_));
    }
    const size_t count = prefaulting_ > 0 ? 0 : std::min(returns_.size(), kReturnsPerMessage);
    returns.assign(returns_.end() - static_cast<ptrdiff_t>(count), returns_.end());
    returns_.resize(returns_.size() - count);
    if (returns_.empty()) returns_bytes_ = 0;
  }
  if (returns.empty()) EndReturning();
  exchanges_.fetch_add(1, std::memory_order_relaxed);
  SPANPOOL_STEP("exchange.send");
  absl::StatusOr<ExchangeResult> result = source_->Exchange(returns, wishes);
  SPANPOOL_STEP("exchange.answered");
  if (!returns.empty()) EndReturning();
  if (result.ok()) {
    DisownUnknown();
    // What was put off meanwhile.
    if (offline_.load(std::memory_order_relaxed) && offline_.exchange(false)) StopResting();
  } else if (absl::IsUnavailable(result.status())) {
    offline_.store(true, std::memory_order_relaxed);
  }
  return result;
}

SpanWish SessionCache::NextWishLocked(CacheClass c, ClassCache& cache) {
  cache.asked = cache.growing = true;
  const SpanWish wish{SpanClassOf(c), cache.demand, IsLarge(c) ? PagesOf(StepOf(c)) : PageCount(0),
                      PageCount(1)};
  cache.demand = std::min(cache.demand * 2, DemandCapOf(c));
  return wish;
}

uint32_t SessionCache::AdoptAll(const ExchangeResult& result, SpanClass wanted,
                                absl::Status* failed) {
  uint32_t got = 0;
  std::vector<PageRange> later;
  for (const SpanGrant& grant : result.grants) {
    absl::Status status = Adopt(grant);
    if (!status.ok()) {
      failed->Update(status);
      continue;
    }
    // What somebody waits for is used at once. The rest can be mapped in the background.
    if (grant.span_class == wanted && got++ == 0) {
      Prefault({&grant.pages, 1});
    } else {
      later.push_back(grant.pages);
    }
  }
  if (!later.empty() && wake_()) {
    RankedMutexLock lock(&mu_);
    to_prefault_.insert(to_prefault_.end(), later.begin(), later.end());
  }
  return got;
}

void SessionCache::Prefault(absl::Span<const PageRange> spans) {
  while (!spans.empty()) {
    std::optional<PageRange> run;
    {
      RankedMutexLock lock(&mu_);
      for (; !spans.empty(); spans.remove_prefix(1)) {
        const PageRange& pages = spans.front();
        if (Bytes(pages.count) > kMaxPrefaultBytes) continue;
        if (run.has_value() &&
            (run->end() != pages.first || Bytes(run->count) >= kPrefaultStepBytes)) {
          break;
        }
        // Another thread may have retired the span already. A retired span leaves the page map
        // first.
        const ClientSpan* const span = pages_->SpanOf(pages.first);
        if (span == nullptr || span->pages != pages || !pages_->NoteMapped(pages)) continue;
        run = run.has_value() ? PageRange{run->first, run->count + pages.count} : pages;
      }
      if (!run.has_value()) return;
      ++prefaulting_;
    }
    range_->Prefault(OffsetOf(run->first), Bytes(run->count));
    RankedMutexLock lock(&mu_);
    --prefaulting_;
  }
}

absl::Status SessionCache::Fetch(CacheClass c, PageCount alignment) {
  absl::InlinedVector<SpanWish, kNumSizeClasses + 1> wishes;
  {
    ClassCache& cache = CacheOf(c);
    RankedMutexLock lock(&cache.mu);
    wishes.push_back(NextWishLocked(c, cache));
    if (alignment > PageCount(1)) {
      wishes[0].spans = 1;
      wishes[0].alignment = alignment;
    }
  }
  if (!warm_.exchange(true, std::memory_order_relaxed)) {
    // The first message of the session. A small pool is not spread over classes nobody may use.
    uint64_t bytes = 0;
    for (uint8_t i = 1; i < kNumSizeClasses; ++i) {
      const CacheClass other = CacheClassOf(SpanClass(SizeClass(i), /*noscan=*/true));
      bytes += SpanBytesOf(other);
      if (bytes > limit_bytes_ / 64) break;
      if (other != c) wishes.push_back({SpanClassOf(other), 1, PageCount(0), PageCount(1)});
    }
  }
  absl::StatusOr<ExchangeResult> result = ExchangeNow(wishes);
  if (!result.ok()) return result.status();
  absl::Status failed;
  if (AdoptAll(*result, SpanClassOf(c), &failed) > 0) {
    prefetch_paused_.store(false, std::memory_order_relaxed);
    return absl::OkStatus();
  }
  if (absl::IsAborted(failed)) return Fetch(c, alignment);
  if (!failed.ok()) return failed;
  if (!result->shortfall.ok()) return result->shortfall;
  return absl::InternalError("the daemon granted no span and did not say why");
}

uint32_t SessionCache::LowMarkLocked(CacheClass c, const ClassCache& cache) const {
  return static_cast<uint32_t>(BatchOf(c)) * (cache.growing ? kBatchesToGrow : 1);
}

void SessionCache::CheckLowLocked(CacheClass c, ClassCache& cache) {
  if (cache.running_low || cache.idle.front() != nullptr) return;
  const uint32_t mark = LowMarkLocked(c, cache);
  uint32_t available = 0;
  int looked_at = 0;
  for (const ClientSpan* span = cache.partial.front(); span != nullptr; span = span->next) {
    available += span->available;
    if (available >= mark || ++looked_at == kSpansLookedAt) return;
  }
  // A large class is prefetched once it has shown that it is used again and again.
  if (IsLarge(c) && (cache.demand < 4 || SpanBytesOf(c) > kLargestPrefetchBytes)) return;
  if (prefetch_paused_.load(std::memory_order_relaxed)) return;
  if (!wake_()) return;
  cache.running_low = true;
  RankedMutexLock lock(&mu_);
  low_classes_.push_back(c);
}

std::vector<CacheClass> SessionCache::TakeLowClasses() {
  RankedMutexLock lock(&mu_);
  return std::exchange(low_classes_, {});
}

void SessionCache::ExchangeDue() { ExchangeNow({}).status().IgnoreError(); }

void SessionCache::KeepHouse() {
  if (offline_.load(std::memory_order_relaxed)) return;
  std::vector<SpanWish> wishes;
  for (const CacheClass c : TakeLowClasses()) {
    ClassCache& cache = CacheOf(c);
    RankedMutexLock lock(&cache.mu);
    cache.running_low = false;
    if (SweepLocked(cache, static_cast<uint32_t>(BatchOf(c))) > 0) continue;
    if (wishes.size() < kMaxWishes) wishes.push_back(NextWishLocked(c, cache));
  }
  if (wishes.empty()) {
    ReturnSurplus();
  } else if (absl::StatusOr<ExchangeResult> result = ExchangeNow(wishes); result.ok()) {
    absl::Status failed;
    AdoptAll(*result, SpanClass(), &failed);
    if (!result->shortfall.ok() || !failed.ok()) {
      prefetch_paused_.store(true, std::memory_order_relaxed);
    }
  }  // else the thread that comes to need a span will say so
  std::vector<PageRange> to_prefault;
  {
    RankedMutexLock lock(&mu_);
    to_prefault.swap(to_prefault_);
  }
  Prefault(to_prefault);
}

void SessionCache::NoteSecond() {
  for (size_t i = 0; i < kCacheClasses; ++i) {
    const CacheClass c(static_cast<uint16_t>(i));
    ClassCache& cache = classes_[i];
    RankedMutexLock lock(&cache.mu);
    cache.growing = std::exchange(cache.asked, false);
    if (cache.growing || cache.demand == 1) continue;
    // Spans that hold as much as it would have to spare, so that one more message is enough.
    const auto enough =
        static_cast<uint32_t>(kBatchesToGrow * BatchOf(c) * BlockBytesOf(c) / SpanBytesOf(c) + 1);
    if (cache.demand > enough) cache.demand = std::max(enough, cache.demand / 2);
  }
}

void SessionCache::StopResting() {
  SetResting(false);
  wake_();
}

bool SessionCache::GiveBackHalf() {
  if (offline_.load(std::memory_order_relaxed)) return false;
  bool left = false;
  for (size_t i = 0; i < kCacheClasses; ++i) {
    ClassCache& cache = classes_[i];
    RankedMutexLock lock(&cache.mu);
    SweepEachLocked(cache, /*all=*/false);
    RetireHalfLocked(cache);
    left |= RetireHalfElsewhereLocked(cache) || cache.idle.front() != nullptr;
  }
  FlushReturns().IgnoreError();
  return left;
}

void SessionCache::RetireHalfLocked(ClassCache& cache) {
  size_t idle = 0;
  for (ClientSpan* span = cache.idle.front(); span != nullptr; span = span->next) ++idle;
  if (idle == 0) return;
  for (size_t i = 0; i < (idle + 1) / 2; ++i) RetireLocked(cache, cache.idle.back());
  cache.demand = std::max<uint32_t>(1, cache.demand / 2);
}

bool SessionCache::RetireHalfElsewhereLocked(ClassCache& cache) {
  size_t spans = 0;
  for (ClientSpan* span = cache.to_sweep.front(); span != nullptr; span = span->next_away) {
    if (span->returnable()) ++spans;
  }
  if (spans == 0) return false;
  size_t retired = 0;
  for (ClientSpan* span = cache.to_sweep.front(); retired < (spans + 1) / 2;) {
    ClientSpan* const next = span->next_away;
    if (span->returnable()) {
      RetireLocked(cache, span);
      ++retired;
    }
    span = next;
  }
  cache.demand = std::max<uint32_t>(1, cache.demand / 2);
  return retired < spans;
}

absl::Status SessionCache::FlushReturns() {
  size_t messages;
  {
    RankedMutexLock lock(&mu_);
    messages = (returns_.size() + kReturnsPerMessage - 1) / kReturnsPerMessage;
  }
  // Counted first: answers may bring more to return.
  for (; messages > 0; --messages) {
    absl::StatusOr<ExchangeResult> result = ExchangeNow({}, /*flush=*/true);
    if (!result.ok()) return result.status();
  }
  RankedMutexLock lock(&returning_mu_);
  returning_mu_.Await(absl::Condition(
      +[](int* returning) { return *returning == 0; }, &returning_));
  return absl::OkStatus();
}

bool SessionCache::ValidGrant(const SpanGrant& grant) const {
  const uint64_t map_pages = range_->bytes() / kPageBytes;
  const PageRange& pages = grant.pages;
  if (pages.count.value() == 0 || pages.count.value() > map_pages ||
      pages.first.value() > map_pages - pages.count.value()) {
    return false;
  }
  if (!grant.span_class.large() && pages.count != SpanPages(grant.span_class.size_class())) {
    return false;
  }
  // A lie here would give one page to two users.
  for (uint64_t i = 0; i < pages.count.value(); ++i) {
    if (pages_->SpanOf(pages.first + PageCount(i)) != nullptr) return false;
  }
  return true;
}

absl::Status SessionCache::Adopt(const SpanGrant& grant) {
  const auto refuse = [&](absl::Status status) {
    RankedMutexLock lock(&mu_);
    returns_.push_back(grant.sequence);
    return status;
  };
  if (!ValidGrant(grant)) {
    return refuse(absl::InternalError(
        absl::StrCat("the daemon granted pages ", grant.pages.first.value(), " + ",
                     grant.pages.count.value(), " of span class ", +grant.span_class.value(),
                     ", which cannot be: are daemon and library of one version?")));
  }
  absl::Status mapped = range_->EnsureMapped(OffsetOf(grant.pages.first), Bytes(grant.pages.count));
  if (!mapped.ok()) return refuse(mapped);

  SPANPOOL_STEP("exchange.adopt");
  ClientSpan* const span = NewRecord();
  span->span_class = grant.span_class;
  span->pages = grant.pages;
  span->sequence = grant.sequence;
  CacheClass c = CacheClassOf(grant.span_class);
  span->exact_step = true;
  if (grant.span_class.large()) {
    const Step step = StepFor(grant.pages.count);
    c = CacheClassOf(step, grant.span_class.noscan());
    span->exact_step = PagesOf(step) == grant.pages.count;
    span->blocks = 1;
    span->block_bytes = Bytes(grant.pages.count);
    span->reciprocal = 0;
  } else {
    const SizeClassInfo& info = InfoOf(grant.span_class.size_class());
    span->blocks = info.blocks;
    span->block_bytes = info.block_bytes;
    span->reciprocal = info.reciprocal;
  }
  span->cache_class.store(c.value(), std::memory_order_relaxed);
  span->available = 0;
  span->away = 0;
  for (size_t i = 0; i < kSpanWords; ++i) {
    span->free[i] = 0;
    span->elsewhere[i] = 0;
#ifdef SPANPOOL_DEBUG
    span->in_hand[i].store(0, std::memory_order_relaxed);
#endif
  }

  ClassCache& cache = CacheOf(c);
  RankedMutexLock lock(&cache.mu);
  if (TakeDisowned(grant.sequence)) {
    FreeRecord(span);
    spans_disowned_.fetch_add(1, std::memory_order_relaxed);
    return absl::AbortedError("the daemon lost the grant before it was entered");
  }
  bytes_on_loan_.fetch_add(Bytes(grant.pages.count), std::memory_order_relaxed);
  pages_->Add(span);
  for (uint32_t index = 0; index < span->blocks; ++index) {
    const bool in_use =
        index / 64 < grant.in_use.size() && ((grant.in_use[index / 64] >> (index % 64)) & 1) != 0;
    if (in_use) {
      SetAwayLocked(cache, span, index);
      // Whoever swept the span before may have spent the hint.
      const PageId page = PageOf(span->OffsetOfBlock(index));
      layout::SetHint(range_->MarksOf(ArenaOf(page)), page);
    } else if (span->exact_step) {
      span->free[index / 64] |= uint64_t{1} << (index % 64);
      ++span->available;
    }
  }
  PlaceLocked(cache, span, /*fresh=*/true);
  return absl::OkStatus();
}

void SessionCache::ReturnSurplus() {
  if (offline_.load(std::memory_order_relaxed)) return;
  {
    RankedMutexLock lock(&mu_);
    if (returns_.size() < 64 && returns_bytes_ < idle_cap_bytes_ / 4) return;
  }
  // A failure keeps the source's memory of the returns; they go with the next message.
  (void)ExchangeNow({});
}

absl::StatusOr<uint64_t> SessionCache::Reclaim(uint64_t enough) {
  // Nothing is asked for ahead of need while memory is short.
  for (const CacheClass c : TakeLowClasses()) {
    ClassCache& cache = CacheOf(c);
    RankedMutexLock lock(&cache.mu);
    cache.running_low = false;
  }
  uint64_t bytes = 0;
  for (size_t i = 0; i < kCacheClasses && bytes < enough; ++i) {
    ClassCache& cache = classes_[i];
    RankedMutexLock lock(&cache.mu);
    SweepEachLocked(cache, /*all=*/true);
    for (SpanList* list : {&cache.idle, &cache.partial, &cache.full}) {
      for (ClientSpan* span = list->front(); span != nullptr && bytes < enough;) {
        ClientSpan* const next = span->next;
        if (span->returnable()) {
          bytes += Bytes(span->pages.count);
          RetireLocked(cache, span);
        }
        span = next;
      }
    }
    cache.demand = 1;
  }
  if (absl::Status status = FlushReturns(); !status.ok()) return status;
  return bytes;
}

uint64_t SessionCache::DisownUnknown() {
  if (const std::vector<GrantSequence> unknown = source_->TakeUnknown(); !unknown.empty()) {
    Disown(unknown);
  }
  return spans_disowned();
}

bool SessionCache::TakeDisowned(GrantSequence grant) {
  RankedMutexLock lock(&mu_);
  return disowned_grants_.erase(grant.value()) != 0;
}

void SessionCache::Disown(absl::Span<const GrantSequence> grants) {
  absl::flat_hash_set<uint64_t> lost;
  {
    // Before any class is looked at: what is entered later is refused.
    RankedMutexLock lock(&mu_);
    for (const GrantSequence grant : grants) {
      lost.insert(grant.value());
      disowned_grants_.insert(grant.value());
    }
  }
  for (size_t i = 0; i < kCacheClasses; ++i) {
    ClassCache& cache = classes_[i];
    RankedMutexLock lock(&cache.mu);
    for (SpanList* list : {&cache.idle, &cache.partial, &cache.full}) {
      for (ClientSpan* span = list->front(); span != nullptr;) {
        ClientSpan* const next = span->next;
        if (lost.contains(span->sequence.value())) {
          TakeDisowned(span->sequence);
          UnlinkLocked(cache, span);
          if (span->away > 0) {
            cache.to_sweep.Remove(span);
            --cache.spans_to_sweep;
          }
          span->list = ClientSpan::List::kDisowned;
          cache.disowned.PushFront(span);
          spans_disowned_.fetch_add(1, std::memory_order_relaxed);
        }
        span = next;
      }
    }
  }
}

absl::Status SessionCache::ReturnAll() {
  for (size_t i = 0; i < kCacheClasses; ++i) {
    ClassCache& cache = classes_[i];
    RankedMutexLock lock(&cache.mu);
    for (SpanList* list : {&cache.idle, &cache.partial, &cache.full}) {
      while (list->front() != nullptr) RetireLocked(cache, list->front());
    }
    // There is nobody to return them to.
    while (ClientSpan* const span = cache.disowned.front()) {
      UnlinkLocked(cache, span);
      pages_->Remove(span);
      bytes_on_loan_.fetch_sub(Bytes(span->pages.count), std::memory_order_relaxed);
      FreeRecord(span);
    }
  }
  return FlushReturns();
}

void SessionCache::CheckInvariants() {
  uint64_t idle_bytes = 0;
  uint64_t loan_bytes = 0;
  for (size_t i = 0; i < kCacheClasses; ++i) {
    ClassCache& cache = classes_[i];
    RankedMutexLock lock(&cache.mu);
    uint32_t to_sweep = 0;
    for (ClientSpan* span = cache.to_sweep.front(); span != nullptr; span = span->next_away) {
      SPANPOOL_CHECK_GT(span->away, 0u);
      ++to_sweep;
    }
    SPANPOOL_CHECK_EQ(to_sweep, cache.spans_to_sweep);
    for (const ClientSpan::List kind : {ClientSpan::List::kIdle, ClientSpan::List::kPartial,
                                        ClientSpan::List::kFull, ClientSpan::List::kDisowned}) {
      for (ClientSpan* span = ListOf(cache, kind).front(); span != nullptr; span = span->next) {
        uint32_t available = 0;
        uint32_t away = 0;
        for (size_t word = 0; word < kSpanWords; ++word) {
          SPANPOOL_CHECK_EQ(span->free[word] & span->elsewhere[word], 0u);
          available += static_cast<uint32_t>(std::popcount(span->free[word]));
          away += static_cast<uint32_t>(std::popcount(span->elsewhere[word]));
        }
        SPANPOOL_CHECK_EQ(available, span->available);
        SPANPOOL_CHECK_EQ(away, span->away);
        SPANPOOL_CHECK_EQ(span->cache_class.load(), i);
        SPANPOOL_CHECK(span->list == kind);
        if (kind != ClientSpan::List::kDisowned) {
          SPANPOOL_CHECK_EQ(kind == ClientSpan::List::kFull, available == 0);
          SPANPOOL_CHECK_EQ(kind == ClientSpan::List::kIdle, available == span->blocks);
          if (away > 0) --to_sweep;
        }
        loan_bytes += Bytes(span->pages.count);
        if (kind == ClientSpan::List::kIdle) idle_bytes += Bytes(span->pages.count);
        for (uint64_t p = 0; p < span->pages.count.value(); ++p) {
          SPANPOOL_CHECK(pages_->SpanOf(span->pages.first + PageCount(p)) == span);
        }
      }
    }
    SPANPOOL_CHECK_EQ(to_sweep, 0u);
  }
  SPANPOOL_CHECK_EQ(idle_bytes, this->idle_bytes());
  SPANPOOL_CHECK_EQ(loan_bytes, bytes_on_loan());
}

}  // namespace spanpool::internal

#include "client/session_core.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "allocator/check.h"
#include "allocator/size_classes.h"
#include "allocator/units.h"
#include "client/cache_class.h"
#include "proto/layout/handle_bits.h"
#include "spanpool/thread_cache.h"

namespace spanpool::internal {
namespace {

constexpr size_t kMaxAlignment = 2 << 20;

// A session in which nobody allocated for so long is quiet.
constexpr absl::Duration kQuietInterval = absl::Seconds(1);

// How long what was sent is left alone before it is looked at again.
constexpr absl::Duration kFirstSettlePause = absl::Milliseconds(1);
constexpr absl::Duration kLongestSettlePause = absl::Seconds(1);

// The byte offsets of stacks, by IndexOfSize, for allocations with the default alignment.
constexpr size_t kAlignedTo = AllocateOptions().alignment;
struct AlignedStacks {
  uint16_t offset[kInlineSizes] = {};
};
constexpr AlignedStacks MakeAlignedStacks() {
  AlignedStacks stacks;
  for (size_t i = 1; i < kInlineSizes; ++i) {
    const size_t bytes = SizeOfIndex(i);
    const SizeClass size_class = SizeClassFor(bytes, kAlignedTo);
    const CacheClass c = size_class != kLargeSizeClass
                             ? CacheClassOf(SpanClass(size_class, /*noscan=*/true))
                             : CacheClassOf(StepFor(PagesFor(bytes)), /*noscan=*/true);
    stacks.offset[i] = static_cast<uint16_t>(StackIndexOf(c) * sizeof(Stack));
  }
  return stacks;
}
constexpr AlignedStacks kAlignedStacks = MakeAlignedStacks();

constexpr absl::Duration kFirstPause = absl::Milliseconds(1);
constexpr absl::Duration kLongestPause = absl::Milliseconds(50);

absl::Status InChild() {
  return absl::FailedPreconditionError(
      "this process was forked from one that is attached; attach again after the fork");
}

}  // namespace

SessionCore::SessionCore(PoolFacts facts, std::unique_ptr<SpanSource> source)
    : limit_bytes_(facts.limit_bytes),
      address_bytes_(facts.address_bytes),
      incarnation_(facts.incarnation),
      slot_capacity_(facts.slot_capacity),
      writable_(facts.writable),
      background_(facts.background),
      source_(std::move(source)) {}

absl::StatusOr<SessionCore*> SessionCore::Create(PoolFacts facts,
                                                 std::unique_ptr<SpanSource> source) {
  const layout::UniqueFd segment = std::move(facts.session_segment);
  auto* const core = new SessionCore(std::move(facts), std::move(source));
  if (absl::Status status = core->Init(segment); !status.ok()) {
    delete core;
    return status;
  }
  return core;
}

absl::Status SessionCore::Init(const layout::UniqueFd& session_segment) {
  absl::StatusOr<std::unique_ptr<AddressRange>> range =
      AddressRange::Reserve(address_bytes_, writable_, source_.get());
  if (!range.ok()) return range.status();
  range_ = *std::move(range);
  base_ = range_->base();
  absl::StatusOr<std::unique_ptr<PageMap>> pages =
      PageMap::Create(PageCount(range_->bytes() / kPageBytes));
  if (!pages.ok()) return pages.status();
  pages_ = *std::move(pages);

  struct stat file;
  if (slot_capacity_ > layout::kSlotCapacity || fstat(session_segment.get(), &file) != 0 ||
      static_cast<uint64_t>(file.st_size) < layout::kSessionSegmentBytes) {
    return absl::InternalError("the daemon sent a session segment that is too short");
  }
  void* segment = mmap(nullptr, layout::kSessionSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                       session_segment.get(), 0);
  if (segment == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map the session segment: ", strerror(errno)));
  }
  madvise(segment, layout::kSessionSegmentBytes, MADV_DONTFORK);
  madvise(segment, layout::kSessionSegmentBytes, MADV_DONTDUMP);
  segment_ = static_cast<layout::SessionSegment*>(segment);

  cache_ = std::make_unique<SessionCache>(limit_bytes_, source_.get(), range_.get(), pages_.get(),
                                          &misuse_, [this] { return WakeHousekeeper(); });
  // Before the thread caches: their fork handlers rely on it.
  references_ = std::make_unique<References>(incarnation_, segment_, slot_capacity_, range_.get(),
                                             cache_.get(), [this] { NoteWaiting(); });
  threads_ =
      std::make_unique<ThreadCaches>(limit_bytes_, range_.get(), pages_.get(), cache_.get(), this);
  if (background_) {
    source_->SetNoticeCallback([this] { WakeHousekeeper(); });
    housekeeper_ = std::make_unique<Housekeeper>([this] { return KeepHouse(absl::Now()); },
                                                 source_->notice_fd());
    housekeeper_->Start();
  }
  return absl::OkStatus();
}

SessionCore::~SessionCore() {
  if (housekeeper_ != nullptr) housekeeper_->Stop();
  threads_.reset();
  if (references_ != nullptr) {
    // Slots before spans, spans before the end. If the daemon is gone, or a word is frozen, the end
    // of the process settles what is left.
    absl::Status status = references_->Close();
    status.Update(cache_->ReturnAll());
    if (status.ok()) (void)source_->Detach();
  }
  if (segment_ != nullptr) munmap(segment_, layout::kSessionSegmentBytes);
}

void SessionCore::Close() {
  // Once stocks count no more, an owner that one of them had counted may end before the sum is in
  // owners_: kInStocks keeps that from 0 until it is. The sum wraps as owners_ does.
  const auto in_stocks = static_cast<uint64_t>(references_->slots().GatherOwners());
  owners_.fetch_add(in_stocks - kInStocks, std::memory_order_relaxed);
  Unref();
}

bool SessionCore::TryRef() {
  uint64_t owners = owners_.load(std::memory_order_relaxed);
  while (owners != 0) {
    if (owners_.compare_exchange_weak(owners, owners + 1, std::memory_order_relaxed)) return true;
  }
  return false;
}

void SessionCore::Unref() {
  // acq_rel: whoever ends the session sees all that other owners did.
  if (owners_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

absl::Status SessionCore::CheckAttached() const {
  return abandoned() ? InChild() : absl::OkStatus();
}

void SessionCore::AbandonInChild() {
  abandoned_.store(true, std::memory_order_relaxed);
  source_->AbandonInChild();
  if (housekeeper_ != nullptr) housekeeper_->AbandonInChild();
}

SessionCore::Place SessionCore::PlaceFor(size_t bytes, size_t alignment, bool noscan) const {
  const SizeClass size_class = SizeClassFor(bytes, alignment);
  if (size_class != kLargeSizeClass) {
    return Place{CacheClassOf(SpanClass(size_class, noscan)), PageCount(1), PageCount(0)};
  }
  Place place;
  const PageCount pages = PagesFor(bytes);
  const Step step = StepFor(pages);
  place.c = CacheClassOf(step, noscan);
  place.alignment = std::max(PageCount(1), PageCount(alignment / kPageBytes));
  if (Bytes(PagesOf(step)) > limit_bytes_) place.exact = pages;
  return place;
}

absl::StatusOr<void*> SessionCore::AllocateOnce(const Place& place, bool noscan) {
  if (place.exact > PageCount(0)) {
    absl::StatusOr<void*> block = cache_->TakeExact(place.exact, noscan, place.alignment);
    if (block.ok()) threads_->CountOther(/*waited=*/true);
    return block;
  }
  if (place.alignment > PageCount(1)) {
    void* block;
    absl::StatusOr<SessionCache::Taken> taken = cache_->Take(place.c, {&block, 1}, place.alignment);
    if (!taken.ok()) return taken.status();
    threads_->CountOther(taken->waited);
    return block;
  }
  return threads_->Allocate(place.c);
}

absl::StatusOr<void*> SessionCore::AllocateBlock(size_t bytes, size_t alignment, bool noscan,
                                                 absl::Duration timeout) {
  if (bytes > limit_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat(
        bytes, " bytes can never be allocated: the pool's limit is ", limit_bytes_, " bytes"));
  }
  const Place place = PlaceFor(bytes, alignment, noscan);
  if (place.alignment == PageCount(1) && place.exact == PageCount(0)) {
    void* const block = Pop(hot_cache, &ThreadCache::core, static_cast<const SessionLife*>(this),
                            StackIndexOf(place.c) * sizeof(Stack));
    if (block != nullptr) {
      NoteTaken(block);
      return block;
    }
  }
  const absl::Time started = timeout > absl::ZeroDuration() ? absl::Now() : absl::Time();
  absl::StatusOr<void*> block = AllocateOnce(place, noscan);
  if (ABSL_PREDICT_FALSE(absl::IsUnavailable(block.status())) && timeout > absl::ZeroDuration()) {
    // That took as long as one message may.
    const absl::Time deadline = started + timeout;
    while (absl::IsUnavailable(block.status()) && source_->state() != DaemonState::kLost &&
           absl::Now() < deadline) {
      absl::SleepFor(kFirstPause);
      block = AllocateOnce(place, noscan);
    }
  }
  if (absl::IsResourceExhausted(block.status())) {
    const absl::Time deadline = absl::Now() + timeout;
    absl::Duration pause = kFirstPause;
    for (;;) {
      // What this session does not use may be all that is missing.
      FreeSettled(/*all=*/true);
      threads_->DrainMine();
      threads_->DrainOthers();
      if (absl::Status status = cache_->Reclaim().status(); !status.ok()) return status;
      block = AllocateOnce(place, noscan);
      if (!absl::IsResourceExhausted(block.status())) break;
      const absl::Time now = absl::Now();
      if (now >= deadline) break;
      absl::SleepFor(std::min(pause, deadline - now));
      pause = std::min(2 * pause, kLongestPause);
    }
  }
  if (block.ok()) NoteTaken(*block);
  return block;
}

void* SessionCore::TakeBlock(size_t bytes) {
  SlotStocks::Stock* const mine = references_->slots().MineAtHand();
  if (ABSL_PREDICT_FALSE(bytes - 1 >= kInlineBytes || mine == nullptr)) return nullptr;
  // In a session that may not write there is nothing in the stacks.
  void* const block = Pop(hot_cache, &ThreadCache::core, static_cast<const SessionLife*>(this),
                          kAlignedStacks.offset[IndexOfSize(bytes)]);
  if (ABSL_PREDICT_FALSE(block == nullptr)) return nullptr;
  NoteTaken(block);
  AddOwner(*mine);
  return block;
}

absl::StatusOr<Buffer> SessionCore::Allocate(size_t bytes, const AllocateOptions& options) {
  if (abandoned()) return InChild();
  if (!writable_) {
    return absl::PermissionDeniedError(
        "the session is read-only: it opens blocks and allocates none; attach with kReadWrite");
  }
  if (bytes == 0) return absl::InvalidArgumentError("0 bytes cannot be allocated");
  if (!std::has_single_bit(options.alignment) || options.alignment > kMaxAlignment) {
    return absl::InvalidArgumentError(absl::StrCat("an alignment of ", options.alignment,
                                                   " is not a power of two of at most 2 MiB"));
  }
  absl::StatusOr<void*> block =
      AllocateBlock(bytes, options.alignment, options.kind == BlockKind::kNoscan, options.timeout);
  if (!block.ok()) return block.status();
  if (options.zeroed) std::memset(*block, 0, bytes);
  AddOwner();
  return Buffer(BufferKey(), this, /*holding=*/0, *block, bytes);
}

void* SessionCore::Malloc(size_t bytes, size_t alignment) {
  if (abandoned() || !writable_) return nullptr;
  absl::StatusOr<void*> block =
      AllocateBlock(bytes, alignment, /*noscan=*/true, absl::ZeroDuration());
  return block.ok() ? *block : nullptr;
}

#ifdef SPANPOOL_DEBUG
void SessionCore::NoteTaken(void* block) {
  const PoolOffset offset = OffsetOf(block);
  ClientSpan* const span = pages_->SpanOf(PageOf(offset));
  const uint32_t index = span->BlockAt(offset);
  const uint64_t bit = uint64_t{1} << (index % 64);
  const uint64_t before = span->in_hand[index / 64].fetch_or(bit, std::memory_order_relaxed);
  SPANPOOL_CHECK_EQ(before & bit, 0u) << "block " << index << " was handed out twice";
}

bool SessionCore::NoteFreed(void* block, const void* call_site) {
  if (abandoned() || !range_->Contains(block)) return true;
  const PoolOffset offset = OffsetOf(block);
  ClientSpan* const span = pages_->SpanOf(PageOf(offset));
  if (span == nullptr) return true;
  const uint32_t index = span->BlockAt(offset);
  if (index == span->blocks) return true;
  const uint64_t bit = uint64_t{1} << (index % 64);
  const uint64_t before = span->in_hand[index / 64].fetch_and(~bit, std::memory_order_relaxed);
  if ((before & bit) == 0) {
    misuse_.Report(Misuse::Kind::kDoubleFree, block, call_site);
    return false;
  }
  return true;
}
#endif

void SessionCore::Free(void* block, const void* call_site) {
  if (NoteFreed(block, call_site)) FreeNoted(block, call_site);
}

void SessionCore::FreeNoted(void* block, const void* call_site) {
  if (block == nullptr || abandoned()) return;
  ClientSpan* span = nullptr;
  if (range_->Contains(block)) span = pages_->SpanOf(PageOf(OffsetOf(block)));
  if (span == nullptr) {
    misuse_.Report(Misuse::Kind::kForeignPointer, block, call_site);
    return;
  }
  // The caller holds a block of the span, so it is on loan and constant; if he does not, the worst
  // is a wrong kind in the report: what the session cache takes back it checks under its lock.
  const PoolOffset offset = OffsetOf(block);
  const uint32_t index = span->BlockAt(offset);
  if (index == span->blocks) {
    misuse_.Report(Misuse::Kind::kInteriorPointer, block, call_site);
    return;
  }
  const CacheClass c(span->cache_class.load(std::memory_order_relaxed));
  if (span->exact_step) {
    threads_->Free(c, block, call_site);
  } else {
    cache_->Give(c, {&block, 1}, call_site);
  }
}

void SessionCore::FreeBlock(void* data) {
  const void* const call_site = __builtin_return_address(0);
  if (!NoteFreed(data, call_site)) return;
  // As a pointer to the base, which is the key that threads know the session by.
  if (Push(hot_cache, &ThreadCache::core, static_cast<const SessionLife*>(this), data)) return;
  FreeNoted(data, call_site);
}

void SessionCore::FreeSettledSome(bool all) {
  for (const PoolOffset offset : all ? references_->Settle() : references_->SettleFew()) {
    FreeBlock(range_->PointerTo(offset));
  }
}

void SessionCore::GiveSettled() {
  for (const PoolOffset offset : references_->Settle()) {
    void* const block = range_->PointerTo(offset);
    const ClientSpan* const span = pages_->SpanOf(PageOf(offset));
    SPANPOOL_CHECK(span != nullptr && NoteFreed(block, nullptr));  // the block is ours
    cache_->Give(CacheClass(span->cache_class.load(std::memory_order_relaxed)), {&block, 1},
                 nullptr);
  }
}

absl::Time SessionCore::Settle(absl::Time now) {
  if (settle_at_ > now && settle_at_ != absl::InfiniteFuture()) return settle_at_;
  GiveSettled();
  if (!references_->any_waiting()) {
    // seq_cst: pairs with NoteWaiting. Whoever leaves something to be finished from here on wakes
    // the housekeeper.
    settling_.store(false, std::memory_order_seq_cst);
    settle_pause_ = kFirstSettlePause;
    if (!references_->any_waiting() || settling_.exchange(true, std::memory_order_seq_cst)) {
      settle_at_ = absl::InfiniteFuture();
      return settle_at_;
    }
  }
  settle_at_ = now + settle_pause_;
  settle_pause_ = std::min(2 * settle_pause_, kLongestSettlePause);
  return settle_at_;
}

void SessionCore::GiveBack(uint64_t bytes) {
  // If the daemon does not answer, the returns are sent once it does.
  const uint64_t idle = bytes == UINT64_MAX ? 0 : cache_->Reclaim(bytes).value_or(0);
  if (idle >= bytes) return;
  threads_->DrainOthers();
  cache_->Reclaim(bytes - idle).status().IgnoreError();
}

absl::Time SessionCore::KeepHouse(absl::Time now) {
  const absl::Time settle_at = Settle(now);
  const std::optional<RecallRequest> recall = source_->TakeRecall();
  if (source_->TakeExchangeDue()) cache_->ExchangeDue();
  if (const uint64_t disowned = cache_->DisownUnknown(); disowned != disowned_seen_) {
    disowned_seen_ = disowned;
    threads_->DrainOthers();
  }
  if (recall.has_value()) {
    GiveSettled();
    GiveBack(recall->bytes);
    source_->AnswerRecall(*recall);
  }
  cache_->KeepHouse();
  if (now - second_noted_ >= kQuietInterval) {
    second_noted_ = now;
    cache_->NoteSecond();
  }
  const ThreadCaches::Counts counts = threads_->counts();
  const SlotStocks::Counts references = references_->counts();
  layout::SessionCounters& shown = segment_->counters;
  shown.allocations_by_refill.store(counts.refills, std::memory_order_relaxed);
  shown.opens.store(references.opens, std::memory_order_relaxed);
  shown.shares.store(references.shares, std::memory_order_relaxed);
  shown.releases.store(references.releases, std::memory_order_relaxed);
  if (counts.allocations != allocations_seen_) {
    allocations_seen_ = counts.allocations;
    quiet_since_ = now;
  } else if (now - quiet_since_ >= kQuietInterval) {
    // Before the stacks are emptied: a thread that uses an emptied one notices, and wakes us.
    cache_->SetResting(true);
    threads_->DrainOthers();
    const bool left = cache_->GiveBackHalf();
    quiet_since_ = now;
    if (!left) return settle_at;
    cache_->SetResting(false);
  }
  return std::min(quiet_since_ + kQuietInterval, settle_at);
}

size_t SessionCore::UsableSize(const void* block) const {
  if (block == nullptr || abandoned() || !range_->Contains(block)) return 0;
  const PoolOffset offset = OffsetOf(block);
  const ClientSpan* const span = pages_->SpanOf(PageOf(offset));
  if (span == nullptr || span->BlockAt(offset) == span->blocks) return 0;
  return span->block_bytes;
}

absl::StatusOr<Buffer> SessionCore::Open(const Handle& handle) {
  const layout::HandleBits bits = layout::HandleBits::Unpack(handle.bits[0], handle.bits[1]);
  SlotStocks::Stock* const mine = references_->slots().MineAtHand();
  References::Opened opened;
  if (ABSL_PREDICT_FALSE(mine == nullptr || !references_->TryOpen(*mine, bits, &opened))) {
    return OpenSlowly(bits, /*takes=*/true);
  }
  if (ABSL_PREDICT_FALSE(opened.counted.sent())) {
    (void)references_->Take(opened);
    return BufferOf(opened);
  }
  AddOwner(*mine);
  return absl::StatusOr<Buffer>(absl::in_place, BufferKey(), this, opened.held.bits(),
                                range_->PointerTo(opened.offset), opened.length);
}

absl::StatusOr<Buffer> SessionCore::TakeBack(const Handle& handle) {
  if (abandoned()) return InChild();
  const absl::StatusOr<References::Opened> opened =
      references_->TakeBack(layout::HandleBits::Unpack(handle.bits[0], handle.bits[1]));
  if (!opened.ok()) return opened.status();
  return BufferOf(*opened);
}

absl::StatusOr<Buffer> SessionCore::OpenSlowly(const layout::HandleBits& handle, bool takes) {
  if (abandoned()) return InChild();
  References::Opened opened;
  absl::Status status = references_->Open(handle, &opened, takes);
  if (!status.ok()) return status;
  return BufferOf(opened);
}

absl::StatusOr<Buffer> SessionCore::OpenNamed(const Handle& handle) {
  return OpenSlowly(layout::HandleBits::Unpack(handle.bits[0], handle.bits[1]), /*takes=*/false);
}

absl::StatusOr<Handle> SessionCore::HandleToPublish(const Buffer& buffer) {
  if (buffer.core_ == nullptr) return absl::FailedPreconditionError("the buffer is empty");
  if ((buffer.HoldingRef().load(std::memory_order_acquire) & 1) != 0) {
    return buffer.core_->HandleOf(buffer.data_, buffer.size_);
  }
  // Owners of one block agree on who shares it.
  return buffer.Ref().Share();
}

Buffer SessionCore::BufferOf(const References::Opened& opened) {
  AddOwner();
  return Buffer(BufferKey(), this, opened.held.bits(), range_->PointerTo(opened.offset),
                opened.length);
}

absl::Status SessionCore::CheckShareable(const void* data, uint64_t length) const {
  if (length >= kMinSharedBytes) return absl::OkStatus();
  const ClientSpan* const span = pages_->SpanOf(PageOf(OffsetOf(data)));
  if (span->block_bytes >= kMinSharedBytes) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("a block of ", span->block_bytes, " bytes is private to its process: blocks of ",
                   kMinSharedBytes, " bytes and more can be shared; allocate with alignment 64"));
}

absl::Status SessionCore::Share(void* data, uint64_t length, uintptr_t* holding, Handle* handle) {
  if (abandoned()) return InChild();
  if (absl::Status status = CheckShareable(data, length); !status.ok()) return status;
  FreeSettled(/*all=*/false);
  Held held(0);
  layout::HandleBits bits;
  absl::Status shared = references_->Share(OffsetOf(data), length, &held, &bits);
  *holding = held.bits();
  *handle = Handle{{bits.low(), bits.high()}};
  return shared;
}

absl::StatusOr<Handle> SessionCore::HandleOf(void* data, uint64_t length) const {
  if (abandoned()) return InChild();
  const layout::HandleBits bits = references_->HandleOf(OffsetOf(data), length);
  return Handle{{bits.low(), bits.high()}};
}

absl::StatusOr<Held> SessionCore::OpenAgain(void* data) {
  if (abandoned()) return InChild();
  return references_->OpenAgain(OffsetOf(data));
}

uint32_t SessionCore::OthersOf(void* data) {
  if (abandoned()) return 0;
  FreeSettled(/*all=*/true);
  return references_->OthersOf(OffsetOf(data));
}

void SessionCore::DropExtra(Held held, void* data) {
  // Another reference of the process remains: nothing comes free.
  (void)references_->Release(held, OffsetOf(data));
}

absl::Status SessionCore::Send(Held held, void* data) {
  if (abandoned()) return InChild();
  FreeSettled(/*all=*/false);
  absl::Status sent = references_->Send(held, OffsetOf(data));
  if (sent.ok()) NoteWaiting();
  return sent;
}

absl::Status SessionCore::SendPrivate(void* data, uint64_t length) {
  if (abandoned()) return InChild();
  if (absl::Status status = CheckShareable(data, length); !status.ok()) return status;
  FreeSettled(/*all=*/false);
  absl::Status sent = references_->SendPrivate(OffsetOf(data), length);
  if (sent.ok()) NoteWaiting();
  return sent;
}

void SessionCore::NoteWaiting() {
  // seq_cst: after the list was added to; the housekeeper clears the mark, then looks at the list.
  if (settling_.load(std::memory_order_seq_cst)) return;
  if (!settling_.exchange(true, std::memory_order_seq_cst)) WakeHousekeeper();
}

void SessionCore::FinishRelease(References::Begun begun, uintptr_t holding, void* data) {
  if (abandoned()) return;
  if (holding == 0 || references_->FinishRelease(begun, Held(holding), OffsetOf(data)) ==
                          References::Dropped::kFreeBlock) {
    FreeBlock(data);
  }
  DropOwner();
}

void SessionCore::FinishFree(ThreadCache* cache, Pushed pushed, void* data) {
  if (!FinishPush(cache, static_cast<const SessionLife*>(this), pushed)) {
    FreeNoted(data, __builtin_return_address(0));
  }
  DropOwner();
}

absl::StatusOr<SessionCore::Outgoing> SessionCore::BeginTransit(Buffer* buffer) {
  absl::StatusOr<Handle> handle = buffer->Share();
  if (!handle.ok()) return handle.status();
  void* const data = buffer->data_;
  Outgoing outgoing{.transit = {}, .handle = *handle, .size = buffer->size_};
  const uintptr_t holding = buffer->holding_;
  if ((holding & 1) != 0) {
    outgoing.transit = references_->TransitOf(Held(holding), OffsetOf(data));
    // The session's life passes on to `outgoing`.
    buffer->core_ = nullptr;
    buffer->data_ = nullptr;
    buffer->size_ = 0;
    buffer->holding_ = 0;
    return outgoing;
  }
  absl::StatusOr<Held> own = OpenAgain(data);
  if (!own.ok()) return own.status();
  outgoing.transit = references_->TransitOf(*own, OffsetOf(data));
  AddOwner();
  *buffer = Buffer();
  return outgoing;
}

void SessionCore::Retarget(const Outgoing& outgoing, const TransitNote& note) {
  references_->Retarget(outgoing.transit, note);
}

void SessionCore::EndTransit(const Outgoing& outgoing) {
  references_->EndTransit(outgoing.transit);
  FreeSettled(/*all=*/false);
  NoteWaiting();
  DropOwner();
}

Buffer SessionCore::CancelTransit(const Outgoing& outgoing) {
  return Buffer(BufferKey(), this, references_->CancelTransit(outgoing.transit).bits(),
                range_->PointerTo(outgoing.transit.offset), outgoing.size);
}

SessionStats SessionCore::stats() {
  SessionStats stats;
  if (abandoned()) return stats;
  const ThreadCaches::Counts counts = threads_->counts();
  stats.allocations = counts.allocations;
  stats.refills = counts.refills;
  stats.exchanges = cache_->exchanges();
  const SlotStocks::Counts references = references_->counts();
  stats.opens = references.opens;
  stats.shares = references.shares;
  stats.releases = references.releases;
  stats.misuses = misuse_.count();
  stats.bytes_on_loan = cache_->bytes_on_loan();
  stats.idle_bytes = cache_->idle_bytes();
  stats.spans_lost = cache_->spans_disowned();
  stats.daemon = source_->state();
  return stats;
}

}  // namespace spanpool::internal

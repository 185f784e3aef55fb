#include "client/fake_pool.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "allocator/check.h"
#include "proto/layout/reference_protocol.h"
#include "proto/layout/session_segment.h"
#include "proto/layout/slot.h"

namespace spanpool::internal {

// What the daemon does, over the same tables.
class FakePool::States : public BlockStates {
 public:
  explicit States(FakePool* pool) : pool_(pool) {}

  uint32_t Sweep(const Span& span, absl::Span<uint64_t> in_use) override {
    if (span.block_bytes < kGranuleBytes) return 0;
    for (uint64_t i = 0; i < span.pages.value(); ++i) {
      const PageId page = span.first_page + PageCount(i);
      layout::TakeHint(pool_->TableOf(ArenaOf(page)).marks, page);
    }
    uint32_t count = 0;
    for (uint32_t i = 0; i < span.blocks; ++i) {
      const PoolOffset offset(OffsetOf(span.first_page).value() + i * span.block_bytes);
      if (layout::CollectBlock(pool_->WordOf(GranuleOf(offset)))) continue;
      in_use[i / 64] |= uint64_t{1} << (i % 64);
      ++count;
    }
    return count;
  }

 private:
  FakePool* const pool_;
};

class FakePool::Source : public SpanSource {
 public:
  explicit Source(FakePool* pool) : pool_(pool), notice_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    absl::MutexLock lock(&pool_->mu_);
    pool_->sources_.insert(this);
  }
  ~Source() override {
    absl::MutexLock lock(&pool_->mu_);
    pool_->sources_.erase(this);
    if (asked_) --pool_->unanswered_;
    if (segment_ != nullptr) munmap(segment_, layout::kSessionSegmentBytes);
  }

  void MapSegment(const layout::UniqueFd& fd) {
    void* memory = mmap(nullptr, layout::kSessionSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                        fd.get(), 0);
    SPANPOOL_CHECK(memory != MAP_FAILED);
    segment_ = static_cast<layout::SessionSegment*>(memory);
  }

  absl::StatusOr<ExchangeResult> Exchange(absl::Span<const GrantSequence> returns,
                                          absl::Span<const SpanWish> wishes) override {
    if (pool_->down_.load()) {
      absl::MutexLock lock(&mu_);
      unsent_.insert(unsent_.end(), returns.begin(), returns.end());
      return absl::UnavailableError("the pool is down");
    }
    pool_->exchanges_.fetch_add(1);
    std::vector<GrantSequence> all(returns.begin(), returns.end());
    {
      absl::MutexLock lock(&mu_);
      all.insert(all.end(), unsent_.begin(), unsent_.end());
      unsent_.clear();
    }
    for (const GrantSequence sequence : all) {
      Span* span = nullptr;
      {
        absl::MutexLock lock(&pool_->mu_);
        const auto it = pool_->loans_.find(sequence.value());
        SPANPOOL_CHECK(it != pool_->loans_.end()) << "returned twice: " << sequence;
        span = it->second;
        pool_->loans_.erase(it);
      }
      pool_->heap_.Return(span);
    }
    ExchangeResult result;
    for (const SpanWish& wish : wishes) {
      for (uint32_t i = 0; i < wish.spans; ++i) {
        absl::StatusOr<Span*> span =
            wish.span_class.large()
                ? pool_->heap_.GrantLarge(wish.pages, !wish.span_class.noscan(), wish.alignment)
                : pool_->heap_.Grant(wish.span_class);
        if (!span.ok()) {
          if (result.shortfall.ok()) result.shortfall = span.status();
          break;
        }
        absl::MutexLock lock(&pool_->mu_);
        const uint64_t sequence = pool_->next_sequence_++;
        pool_->loans_[sequence] = *span;
        result.grants.push_back(SpanGrant{GrantSequence(sequence),
                                          (*span)->range(),
                                          (*span)->span_class,
                                          {(*span)->in_use().begin(), (*span)->in_use().end()}});
      }
    }
    return result;
  }

  absl::StatusOr<ArenaFds> OpenArena(ArenaIndex arena) override {
    if (pool_->down_.load()) return absl::UnavailableError("the pool is down");
    const int data = pool_->arenas_.data_fd(arena);
    if (data < 0) return absl::NotFoundError("no such arena");
    return ArenaFds{layout::UniqueFd(fcntl(data, F_DUPFD_CLOEXEC, 0)),
                    layout::UniqueFd(fcntl(pool_->arenas_.table_fd(arena), F_DUPFD_CLOEXEC, 0))};
  }

  absl::Status Detach() override {
    pool_->detached_.fetch_add(1);
    if (segment_ != nullptr) ReleaseTransits();
    return absl::OkStatus();
  }

  int notice_fd() const override { return notice_.get(); }
  std::optional<RecallRequest> TakeRecall() override {
    eventfd_t ignored;
    eventfd_read(notice_.get(), &ignored);
    absl::MutexLock lock(&pool_->mu_);
    return std::exchange(recall_, std::nullopt);
  }
  DaemonState state() override {
    return pool_->down_.load() ? DaemonState::kOffline : DaemonState::kConnected;
  }
  bool TakeExchangeDue() override {
    absl::MutexLock lock(&pool_->mu_);
    return std::exchange(resumed_, false);
  }
  std::vector<GrantSequence> TakeUnknown() override {
    absl::MutexLock lock(&pool_->mu_);
    return std::exchange(pool_->forgotten_, {});
  }
  // As Ask.
  void Resume() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    resumed_ = true;
    eventfd_write(notice_.get(), 1);
  }
  void AnswerRecall(const RecallRequest& recall) override {
    absl::MutexLock lock(&pool_->mu_);
    if (!asked_ || recall.number != pool_->last_recall_) return;
    asked_ = false;
    --pool_->unanswered_;
  }
  // With the lock of the pool, which the analysis knows by another name here.
  void Ask(const RecallRequest& recall) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    recall_ = recall;
    if (!asked_) ++pool_->unanswered_;
    asked_ = true;
    eventfd_write(notice_.get(), 1);
  }

 private:
  // What the daemon does when its grace period has passed.
  void ReleaseTransits() {
    const uint64_t end = segment_->slots_used.load();
    for (uint64_t i = 0; i < end; ++i) {
      layout::SharedSlot& shared = layout::SlotsOf(segment_)[i];
      const layout::Slot slot(shared.load());
      if (slot.state() != layout::SlotState::kTransit) continue;
      layout::SharedWord& word = pool_->WordOf(slot.granule());
      if (!slot.noted()) layout::TakeSent(word, slot.send_number());
      layout::BeginRelease(shared, slot.granule());
      layout::ReleaseBlock(shared, word, slot.granule());
      layout::FreeSlot(shared);
    }
  }

  FakePool* const pool_;
  const layout::UniqueFd notice_;
  layout::SessionSegment* segment_ = nullptr;
  // Guarded by the pool's lock.
  std::optional<RecallRequest> recall_;
  bool asked_ = false;
  bool resumed_ = false;
  absl::Mutex mu_;
  std::vector<GrantSequence> unsent_ ABSL_GUARDED_BY(mu_);
};

FakePool::FakePool(uint64_t limit_bytes, uint32_t incarnation)
    : limit_bytes_(limit_bytes),
      incarnation_(incarnation),
      arenas_("fake", layout::kBlockTableBytes),
      states_(std::make_unique<States>(this)),
      heap_(HeapOptions{.limit_bytes = limit_bytes, .reserve_bytes = 0, .max_arenas = 0}, &arenas_,
            states_.get()) {}

FakePool::~FakePool() {
  absl::MutexLock lock(&mu_);
  for (const auto& [arena, table] : tables_) munmap(table, layout::kBlockTableBytes);
}

layout::BlockTable& FakePool::TableOf(ArenaIndex arena) {
  absl::MutexLock lock(&mu_);
  layout::BlockTable*& table = tables_[arena.value()];
  if (table == nullptr) {
    void* memory = mmap(nullptr, layout::kBlockTableBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                        arenas_.table_fd(arena), 0);
    SPANPOOL_CHECK(memory != MAP_FAILED);
    table = static_cast<layout::BlockTable*>(memory);
  }
  return *table;
}

layout::SharedWord& FakePool::WordOf(GranuleId granule) {
  return layout::WordOf(TableOf(ArenaOf(granule)), granule);
}

void FakePool::Recall(uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  ++last_recall_;
  for (Source* source : sources_) source->Ask({last_recall_, bytes});
}

void FakePool::SayResumed() {
  absl::MutexLock lock(&mu_);
  for (Source* source : sources_) source->Resume();
}

void FakePool::Forget(GrantSequence sequence) {
  absl::MutexLock lock(&mu_);
  SPANPOOL_CHECK_EQ(loans_.erase(sequence.value()), 1u);
  forgotten_.push_back(sequence);
}

std::vector<uint64_t> FakePool::Reconcile(const std::vector<uint64_t>& held) {
  std::vector<uint64_t> unknown;
  std::vector<Span*> lost;
  {
    absl::MutexLock lock(&mu_);
    for (const uint64_t sequence : held) {
      if (!loans_.contains(sequence)) unknown.push_back(sequence);
    }
    for (auto it = loans_.begin(); it != loans_.end();) {
      if (std::binary_search(held.begin(), held.end(), it->first)) {
        ++it;
        continue;
      }
      lost.push_back(it->second);
      it = loans_.erase(it);
    }
  }
  for (Span* span : lost) heap_.Return(span);
  return unknown;
}

void FakePool::AwaitAnswers() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(
      +[](int* unanswered) { return *unanswered == 0; }, &unanswered_));
}

bool FakePool::Empty() {
  heap_.Sweep();
  const HeapStats stats = heap_.stats();
  return stats.on_loan_bytes == 0 && stats.in_lists_bytes == 0;
}

std::unique_ptr<SpanSource> FakePool::NewSource() { return std::make_unique<Source>(this); }

PoolFacts FakePool::NewFacts() {
  PoolFacts facts;
  facts.limit_bytes = limit_bytes_;
  facts.address_bytes = uint64_t{Heap::MaxArenas(limit_bytes_)} * kArenaBytes;
  facts.incarnation = incarnation_;
  facts.slot_capacity = layout::kSlotCapacity;
  facts.session_segment = layout::UniqueFd(memfd_create("session", MFD_CLOEXEC));
  SPANPOOL_CHECK_EQ(ftruncate(facts.session_segment.get(), layout::kSessionSegmentBytes), 0);
  return facts;
}

bool FakePool::IsOnLoan(GrantSequence sequence) {
  absl::MutexLock lock(&mu_);
  return loans_.contains(sequence.value());
}

SessionCore* FakePool::AttachAs(bool writable, bool background) {
  PoolFacts facts = NewFacts();
  facts.writable = writable;
  facts.background = background;
  auto source = std::make_unique<Source>(this);
  source->MapSegment(facts.session_segment);
  absl::StatusOr<SessionCore*> core = SessionCore::Create(std::move(facts), std::move(source));
  SPANPOOL_CHECK(core.ok()) << core.status();
  return *core;
}

SessionCore* FakePool::Attach() { return AttachAs(true, false); }
SessionCore* FakePool::AttachWithHousekeeper() { return AttachAs(true, true); }
SessionCore* FakePool::AttachReadOnly() { return AttachAs(false, false); }

}  // namespace spanpool::internal

// The session cache: the spans a session has on loan, by class of blocks.
//
// It stands between the threads' stacks and the daemon. Threads take free blocks from it and give
// them back by the batch; it takes spans from the daemon by the batch, many classes to a message,
// and returns those that are no longer used. Before it asks for more it sweeps its own spans:
// blocks whose last reference was dropped elsewhere are collected and are free again.
//
// How much is asked for follows demand: a class that runs dry gets twice as many spans as the last
// time, up to a cap in bytes, and half as many once some were given back unused. The first message
// of a session also brings a span of every small class, so that a program which uses many sizes
// does not wait for each. A class that is about to run dry is prefetched in the background, and
// what has been idle for long is given back, if the session has a housekeeper; that too which only
// others refer to.
//
// A span of a class is in one list:
//   partial  some blocks are free
//   full     none is
//   idle     all are; the span is returned when the idle spans of the session exceed a cap
//   disowned the daemon does not know of it; nothing is taken from it
// and, while blocks of it live elsewhere, in the list of spans to sweep.
//
// While the daemon is away everything goes on but exchanges: what is idle is kept, since it is all
// there is, and nothing is sent in the background.
//
// A span that the daemon does not know of any more, since it lost its memory of it, is *disowned*:
// it is in no list for blocks to be taken from, and no block that comes back to it is used again.
// Its addresses stay as they are, for blocks in use.
//
// Invariants (CheckInvariants)
//  1. Each span on loan is in exactly the list its counts call for, and in the sweep list exactly
//     if away > 0.
//  2. idle_bytes() is the sum over idle spans; bytes_on_loan() that over all spans.
//  3. The page map names exactly the spans in lists.
//
// Thread-safe; one lock per class (kSessionCache), and a leaf for what waits to be returned. No
// lock is held during an exchange.

#ifndef SPANPOOL_CLIENT_SESSION_CACHE_H_
#define SPANPOOL_CLIENT_SESSION_CACHE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocator/lock_rank.h"
#include "allocator/units.h"
#include "client/address_range.h"
#include "client/cache_class.h"
#include "client/client_span.h"
#include "client/misuse.h"
#include "client/page_map.h"
#include "client/span_source.h"

namespace spanpool::internal {

class SessionCache {
 public:
  // All outlive the cache. `limit_bytes` is the pool's.
  // `wake` asks for KeepHouse to be called soon, and says whether it will be. A class's lock may be
  // held when it is called.
  SessionCache(uint64_t limit_bytes, SpanSource* source, AddressRange* range, PageMap* pages,
               MisuseReporter* misuse, std::function<bool()> wake);
  ~SessionCache();
  SessionCache(const SessionCache&) = delete;
  SessionCache& operator=(const SessionCache&) = delete;

  struct Taken {
    size_t blocks = 0;
    bool waited = false;  // for the daemon
  };
  // Takes 1..blocks.size() free blocks of class `c`, aligned to `alignment` (a power of two; more
  // than a page for large blocks only).
  //   RESOURCE_EXHAUSTED  the pool is full; Reclaim() may help
  //   UNAVAILABLE         nothing is left here and the daemon does not answer
  absl::StatusOr<Taken> Take(CacheClass c, absl::Span<void*> blocks,
                             PageCount alignment = PageCount(1));

  // Takes a large block of exactly `pages` pages, for lengths whose step exceeds the pool. Its span
  // is returned as soon as the block is given back.
  absl::StatusOr<void*> TakeExact(PageCount pages, bool noscan, PageCount alignment);

  // Gives blocks of class `c` back. What is not such a block, or is free already, is reported as
  // misuse by `call_site` and left alone.
  void Give(CacheClass c, absl::Span<void* const> blocks, const void* call_site);

  // The block at `offset`, until now out, is governed by references from now on. Requires that the
  // caller holds the block.
  void LetGo(PoolOffset offset);

  // Sweeps every span, hints or not, and returns spans that no block keeps here: every one, or
  // until `enough` bytes are given back. Returns the number of bytes given back.
  absl::StatusOr<uint64_t> Reclaim(uint64_t enough = UINT64_MAX);

  // Asks for more of the classes that are about to run dry, and sends what waits to be returned.
  // Not at the same time from two threads.
  void KeepHouse();

  // To be called once a second while the cache is used: classes that do not grow any more ask for
  // less, and later.
  void NoteSecond();

  // Whether the housekeeper is to be woken when there comes to be something to give back.
  void SetResting(bool resting) { resting_.store(resting, std::memory_order_relaxed); }
  bool resting() const { return resting_.load(std::memory_order_relaxed); }
  // Something may be idle from now on that was not. Threads' stacks call this, too, since nobody
  // else knows of the blocks in them.
  void NoteUse() {
    if (resting()) StopResting();
  }

  // Gives back half of each class's spans that no block keeps here, the oldest: of those that are
  // idle, after a sweep of those with hints, and of those whose blocks live on only elsewhere.
  // False: no such span is left.
  bool GiveBackHalf();

  // The exchange that the source says is due. If the daemon is back from being away, goes on with
  // what waited for that.
  void ExchangeDue();

  // Disowns the spans that the daemon said it does not know of. Blocks of them in threads' stacks
  // are handed out until those are drained. Returns how many spans were disowned, ever.
  uint64_t DisownUnknown();

  // Returns every span, in use or not; called last.
  absl::Status ReturnAll();

  uint64_t bytes_on_loan() const { return bytes_on_loan_.load(std::memory_order_relaxed); }
  uint64_t idle_bytes() const { return idle_bytes_.load(std::memory_order_relaxed); }
  uint64_t spans_disowned() const { return spans_disowned_.load(std::memory_order_relaxed); }
  uint64_t exchanges() const { return exchanges_.load(std::memory_order_relaxed); }

  // Aborts unless the invariants hold. No other call may run meanwhile.
  void CheckInvariants();

 private:
  // A doubly linked list through one pair of a span's links.
  template <ClientSpan* ClientSpan::*Next, ClientSpan* ClientSpan::*Previous>
  class List {
   public:
    void PushFront(ClientSpan* span);
    void PushBack(ClientSpan* span);
    void Remove(ClientSpan* span);
    ClientSpan* front() const { return front_; }
    ClientSpan* back() const { return back_; }

   private:
    ClientSpan* front_ = nullptr;
    ClientSpan* back_ = nullptr;
  };
  using SpanList = List<&ClientSpan::next, &ClientSpan::previous>;
  using SweepList = List<&ClientSpan::next_away, &ClientSpan::previous_away>;

  struct alignas(64) ClassCache {
    RankedMutex mu{LockRank::kSessionCache};
    SpanList partial ABSL_GUARDED_BY(mu);
    SpanList full ABSL_GUARDED_BY(mu);
    SpanList idle ABSL_GUARDED_BY(mu);
    SpanList disowned ABSL_GUARDED_BY(mu);
    SweepList to_sweep ABSL_GUARDED_BY(mu);
    uint32_t spans_to_sweep ABSL_GUARDED_BY(mu) = 0;
    uint32_t demand ABSL_GUARDED_BY(mu) = 1;       // spans to ask for next time
    bool running_low ABSL_GUARDED_BY(mu) = false;  // in low_classes_
    bool asked ABSL_GUARDED_BY(mu) = false;        // for spans, since the last NoteSecond
    bool growing ABSL_GUARDED_BY(mu) = false;      // asked, or did before the last NoteSecond
  };

  ClassCache& CacheOf(CacheClass c) { return classes_[c.value()]; }
  SpanList& ListOf(ClassCache& cache, ClientSpan::List list)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);

  size_t TakeLocked(CacheClass c, ClassCache& cache, absl::Span<void*> blocks, PageCount alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // Puts `span` into the list that its counts call for: in front, or, if it is fresh, at the end.
  // So what was used last is used next, and fresh spans in the order in which they came and are
  // mapped.
  void PlaceLocked(ClassCache& cache, ClientSpan* span, bool fresh = false)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  void UnlinkLocked(ClassCache& cache, ClientSpan* span) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // Marks block `index` as living elsewhere or, when it was collected, as free.
  void SetAwayLocked(ClassCache& cache, ClientSpan* span, uint32_t index)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // Collects blocks of `span`, of hinted pages only unless `all`. Returns how many.
  uint32_t SweepSpanLocked(ClassCache& cache, ClientSpan* span, bool all)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  uint32_t SweepLocked(ClassCache& cache, uint32_t wanted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // Sweeps each span that has blocks elsewhere.
  void SweepEachLocked(ClassCache& cache, bool all) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  void StopResting();
  void Disown(absl::Span<const GrantSequence> grants);
  // Whether `grant` is one of disowned_grants_, which it then is no more.
  bool TakeDisowned(GrantSequence grant) ABSL_LOCKS_EXCLUDED(mu_);
  // Retires the older half of the idle spans.
  void RetireHalfLocked(ClassCache& cache) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // The same of spans that others' references alone keep. False: none is left.
  bool RetireHalfElsewhereLocked(ClassCache& cache) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // Takes `span` off the books, to be returned.
  void RetireLocked(ClassCache& cache, ClientSpan* span) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);

  // Fewer free blocks than this are few. The number in use fluctuates, and so does what threads
  // hold in their stacks: a class that has grown of late is given more to spare, lest it comes back
  // for a little more each time that a fluctuation is larger than all before.
  uint32_t LowMarkLocked(CacheClass c, const ClassCache& cache) const
      ABSL_SHARED_LOCKS_REQUIRED(cache.mu);
  // Notes that `c` should be prefetched, if it should.
  void CheckLowLocked(CacheClass c, ClassCache& cache) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // The classes noted since the last call. The caller clears their `running_low`.
  std::vector<CacheClass> TakeLowClasses();
  // The next batch to ask for.
  SpanWish NextWishLocked(CacheClass c, ClassCache& cache) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cache.mu);
  // Sends what waits to be returned, if enough has gathered to be worth a message.
  void ReturnSurplus();
  // Enters what an exchange brought. Returns the spans of `wanted`, and why others were refused.
  uint32_t AdoptAll(const ExchangeResult& result, SpanClass wanted, absl::Status* failed);

  // Asks the daemon for spans of `c`. OK if at least one came.
  absl::Status Fetch(CacheClass c, PageCount alignment);
  // Sends all that waits to be returned, and waits until all that was sent has arrived.
  absl::Status FlushReturns();
  void EndReturning() ABSL_LOCKS_EXCLUDED(returning_mu_);
  // Maps the pages of spans ahead of their first use, at a third of what it costs by touching them.
  void Prefault(absl::Span<const PageRange> spans);
  // `flush`: returns leave with it even if that has to wait for pages that are being touched.
  absl::StatusOr<ExchangeResult> ExchangeNow(absl::Span<const SpanWish> wishes, bool flush = false);
  // Enters a grant. What the daemon should not have sent goes back.
  //   ABORTED  the daemon has lost the grant meanwhile: ask again
  absl::Status Adopt(const SpanGrant& grant);
  bool ValidGrant(const SpanGrant& grant) const;
  uint32_t DemandCapOf(CacheClass c) const;

  ClientSpan* NewRecord();
  void FreeRecord(ClientSpan* span);

  // Constant after construction.
  const uint64_t limit_bytes_;
  const uint64_t idle_cap_bytes_;
  SpanSource* const source_;
  AddressRange* const range_;
  PageMap* const pages_;
  MisuseReporter* const misuse_;
  const std::function<bool()> wake_;
  const std::unique_ptr<ClassCache[]> classes_;

  std::atomic<bool> resting_{true};           // see SetResting
  std::atomic<bool> warm_{false};             // the first message was sent
  std::atomic<bool> offline_{false};          // the last exchange found no daemon
  std::atomic<bool> prefetch_paused_{false};  // the pool was full; until a thread gets something
  std::atomic<uint64_t> bytes_on_loan_{0};
  std::atomic<uint64_t> idle_bytes_{0};
  std::atomic<uint64_t> exchanges_{0};
  std::atomic<uint64_t> spans_disowned_{0};

  // Messages under way that return spans. Whoever needs the memory waits for them.
  RankedMutex returning_mu_{LockRank::kLeaf};
  int returning_ ABSL_GUARDED_BY(returning_mu_) = 0;

  RankedMutex mu_{LockRank::kLeaf};
  std::vector<GrantSequence> returns_ ABSL_GUARDED_BY(mu_);  // wait for a message to ride in
  uint64_t returns_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  // Of no span here: retired, or in an answer that a thread is about to enter.
  absl::flat_hash_set<uint64_t> disowned_grants_ ABSL_GUARDED_BY(mu_);
  std::vector<CacheClass> low_classes_ ABSL_GUARDED_BY(mu_);
  std::vector<PageRange> to_prefault_ ABSL_GUARDED_BY(mu_);
  // Threads that touch pages of spans which are on loan. Meanwhile no return leaves: the daemon may
  // give the memory of what it has back to the machine, and touching it would bring it into being
  // behind the daemon's back.
  int prefaulting_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::unique_ptr<ClientSpan[]>> record_chunks_ ABSL_GUARDED_BY(mu_);
  ClientSpan* free_records_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_SESSION_CACHE_H_

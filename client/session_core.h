// All of a session but its way to the daemon: what Session and Buffer are handles to.
//
// It joins the parts: the address range, the page map, the session cache, the threads' stacks and
// the references. The Session and each Buffer are its owners; the last one to go returns every
// span, frees every slot and detaches.
//
// In a forked child it is abandoned: nothing of it is touched or freed, since its locks and its
// connection belong to the parent.
//
// Thread-safe.

#ifndef SPANPOOL_CLIENT_SESSION_CORE_H_
#define SPANPOOL_CLIENT_SESSION_CORE_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/address_range.h"
#include "client/housekeeper.h"
#include "client/misuse.h"
#include "client/name_source.h"
#include "client/page_map.h"
#include "client/references.h"
#include "client/session_cache.h"
#include "client/slot_stocks.h"
#include "client/span_source.h"
#include "client/thread_caches.h"
#include "proto/layout/handle_bits.h"
#include "proto/layout/packet.h"
#include "spanpool/buffer.h"
#include "spanpool/options.h"
#include "spanpool/thread_cache.h"

namespace spanpool {

class Session;

namespace internal {

// What attaching told.
struct PoolFacts {
  uint64_t limit_bytes = 0;
  uint64_t address_bytes = 0;  // every arena lies below this offset
  uint32_t incarnation = 0;
  uint32_t slot_capacity = 0;
  bool writable = true;
  bool background = true;  // with a housekeeper
  layout::UniqueFd session_segment;
};

class SessionCore final : public SessionLife {
 public:
  // One owner, the caller: to end with Close(), or passed on to NewSession.
  //   RESOURCE_EXHAUSTED  no room in the address space
  //   INTERNAL            the daemon sent facts that cannot be
  static absl::StatusOr<SessionCore*> Create(PoolFacts facts, std::unique_ptr<SpanSource> source);

  // A Session that is the owner in the caller's place.
  static std::unique_ptr<Session> NewSession(SessionCore* core);
  static SessionCore* CoreOf(const Session& session);
  // Null for an empty buffer.
  static SessionCore* CoreOf(const Buffer& buffer) { return buffer.core_; }

  // Owners: the creator; each Buffer; whatever called TryRef. The calls of one kind belong
  // together, but for Buffers these also count in any thread: see slot_stocks.h.
  void AddOwner() {
    SlotStocks& slots = references_->slots();
    AddOwner(slots.Mine());
  }
  void DropOwner() {
    SlotStocks& slots = references_->slots();
    DropOwner(slots.Mine());
  }
  // The creator's end. Others may be owners yet; the last one ends the session.
  void Close();
  bool TryRef() override;
  void Unref() override;
  void AbandonInChild() override;
  bool abandoned() const { return abandoned_.load(std::memory_order_relaxed); }
  // FAILED_PRECONDITION in a forked child.
  absl::Status CheckAttached() const;
  bool writable() const { return writable_; }
  uint32_t incarnation() const { return incarnation_; }

  // The Session object that the hot path answers to; null when it goes.
  void SetSession(const Session* session) { threads_->SetSessionKey(session); }

  // As Session's methods of these names.
  absl::StatusOr<Buffer> Allocate(size_t bytes, const AllocateOptions& options);
  // The common case of Allocate with default options: a block that is at hand, and an owner for it.
  void* TakeBlock(size_t bytes);
  absl::StatusOr<Buffer> Open(const Handle& handle);
  void* Malloc(size_t bytes, size_t alignment);
  void Free(void* block, const void* call_site);
  // The two halves of Free(). In debug builds the first knows which blocks are in the user's hands:
  // it reports a double free and returns false, and then the second is not to be called.
#ifdef SPANPOOL_DEBUG
  void NoteTaken(void* block);
  bool NoteFreed(void* block, const void* call_site);
#else
  void NoteTaken(void* /*block*/) {}
  bool NoteFreed(void* /*block*/, const void* /*call_site*/) { return true; }
#endif
  void FreeNoted(void* block, const void* call_site);
  size_t UsableSize(const void* block) const;
  SessionStats stats();

  //   NOT_FOUND    the handle was opened, or never sent by this session
  //   UNAVAILABLE  the block is being recounted after a death; try again
  absl::StatusOr<Buffer> TakeBack(const Handle& handle);

  // For names. Null if nobody keeps any.
  NameSource* names() { return source_->names(); }
  // As Open, of a handle that was looked up: what was sent with the block stays under way.
  absl::StatusOr<Buffer> OpenNamed(const Handle& handle);
  // The handle of the buffer's block, which is shared if it was not. Several threads may call this
  // for one buffer. Errors as Buffer::Share's.
  static absl::StatusOr<Handle> HandleToPublish(const Buffer& buffer);

  // Buffer's business. `data` is where its block starts; errors are References'.
  absl::Status Share(void* data, uint64_t length, uintptr_t* holding, Handle* handle);
  // The common case of Share: what is held then. 0: it is another; nothing was done.
  uintptr_t TryShare(void* data, uint64_t length, Handle* handle);
  absl::StatusOr<Handle> HandleOf(void* data, uint64_t length) const;
  absl::StatusOr<Held> OpenAgain(void* data);
  void DropExtra(Held held, void* data);
  // How many references to the block there are besides the caller's; 0 in a forked child. What this
  // process sent and has arrived is let go of first.
  uint32_t OthersOf(void* data);
  absl::Status Send(Held held, void* data);
  absl::Status SendPrivate(void* data, uint64_t length);
  // The end of a Buffer: of one that was the last owner of what it held, a Held's bits or 0; and
  // of one that was not.
  void Release(uintptr_t holding, void* data);
  void LeaveTo() {
    if (!abandoned()) DropOwner();
  }

  PoolOffset OffsetOf(const void* data) const {
    return PoolOffset(reinterpret_cast<uintptr_t>(data) - base_);
  }

  // A Buffer on its way through an entry of a channel.
  struct Outgoing {
    Transit transit;
    Handle handle;
    size_t size = 0;
  };
  // For channels, as References' methods of these names. The buffer is shared if it was not, and
  // empty afterwards; on an error it is unchanged. The note may be written later, with Retarget.
  //   FAILED_PRECONDITION, RESOURCE_EXHAUSTED, UNAVAILABLE  as Buffer::Send
  absl::StatusOr<Outgoing> BeginTransit(Buffer* buffer);
  void Retarget(const Outgoing& outgoing, const TransitNote& note);
  void EndTransit(const Outgoing& outgoing);
  Buffer CancelTransit(const Outgoing& outgoing);

  MisuseReporter& misuse() { return misuse_; }
  SessionCache& cache() { return *cache_; }
  References& references() { return *references_; }
  void DrainMyStacks() { threads_->DrainMine(); }
  // Frees what came free while nobody looked, past the calling thread's stacks: for a thread that
  // allocates nothing.
  void GiveSettled();
  // For tests: no background thread works for this session any more.
  void StopHousekeeper() { housekeeper_->Stop(); }
  void DrainOtherStacks(absl::FunctionRef<void()> halfway = [] {}) {
    threads_->DrainOthers(halfway);
  }

  // What the housekeeper does, and when to do it again at the latest. Not from two threads at once.
  // A recall by the daemon is answered, and one that is back is told what is on loan. Each second
  // in which no thread allocates, half of what is idle goes back: blocks in threads' stacks to the
  // session cache, spans to the daemon. When nothing is left it need not be called before something
  // is freed or let go of again.
  absl::Time KeepHouse(absl::Time now);

 private:
  SessionCore(PoolFacts facts, std::unique_ptr<SpanSource> source);
  ~SessionCore() override;
  absl::Status Init(const layout::UniqueFd& session_segment);

  // The smallest block that can be named by its granule.
  static constexpr uint64_t kMinSharedBytes = kGranuleBytes;

  // `mine`: the calling thread's.
  void AddOwner(SlotStocks::Stock& mine) {
    // relaxed: the caller is an owner meanwhile.
    if (ABSL_PREDICT_FALSE(!references_->slots().CountOwnerMade(mine))) {
      owners_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  void DropOwner(SlotStocks::Stock& mine) { DropOwner(*references_, mine); }
  void DropOwner(References& references, SlotStocks::Stock& mine) {
    if (ABSL_PREDICT_FALSE(!references.slots().CountOwnerEnded(mine))) Unref();
  }
  // What Release leaves to be done if anything is out of the ordinary.
  void FinishRelease(References::Begun begun, uintptr_t holding, void* data);
  // And if only the block is still to be freed, and the owner to be dropped.
  void FinishFree(ThreadCache* cache, Pushed pushed, void* data);

  // Where a request is served from.
  struct Place {
    CacheClass c;
    PageCount alignment = PageCount(1);  // more than 1: asked of the session cache
    PageCount exact;                     // not 0: a large block of exactly so many pages
  };
  // Requires bytes <= limit_bytes_.
  Place PlaceFor(size_t bytes, size_t alignment, bool noscan) const;
  absl::StatusOr<void*> AllocateOnce(const Place& place, bool noscan);
  // When the pool is full, gives back what is idle and tries again, at least once and for
  // `timeout`. While the daemon is away it waits for it, for `timeout` and at least the source's 5
  // s.
  absl::StatusOr<void*> AllocateBlock(size_t bytes, size_t alignment, bool noscan,
                                      absl::Duration timeout);
  // The block at `data`, of this session and in the user's hands, goes back.
  void FreeBlock(void* data);
  Buffer BufferOf(const References::Opened& opened);
  // `takes`: as References::Open.
  absl::StatusOr<Buffer> OpenSlowly(const layout::HandleBits& handle, bool takes);
  // Frees what came free while nobody looked; a few references of those that were sent, or all.
  void FreeSettled(bool all) {
    if (references_->any_waiting()) FreeSettledSome(all);
  }
  void FreeSettledSome(bool all);
  // Whether blocks of the span can be shared.
  absl::Status CheckShareable(const void* data, uint64_t length) const;
  // Has the housekeeper finish what waits for others: see References::Settle.
  void NoteWaiting();
  // The housekeeper's part in that; when to do it again.
  absl::Time Settle(absl::Time now);
  // Returns what is idle: spans of the session cache first; if those are less than `bytes`, also
  // what the blocks in threads' stacks keep here.
  void GiveBack(uint64_t bytes);
  bool WakeHousekeeper() { return housekeeper_ != nullptr && housekeeper_->Wake(); }

  // Constant after construction.
  const uint64_t limit_bytes_;
  const uint64_t address_bytes_;
  const uint32_t incarnation_;
  const uint32_t slot_capacity_;
  const bool writable_;
  const bool background_;
  const std::unique_ptr<SpanSource> source_;
  layout::SessionSegment* segment_ = nullptr;
  MisuseReporter misuse_;
  std::unique_ptr<AddressRange> range_;
  uintptr_t base_ = 0;  // the range's
  std::unique_ptr<PageMap> pages_;
  std::unique_ptr<SessionCache> cache_;
  std::unique_ptr<References> references_;
  std::unique_ptr<ThreadCaches> threads_;
  std::unique_ptr<Housekeeper> housekeeper_;

  // The housekeeper comes by soon, and sees what waits.
  std::atomic<bool> settling_{false};
  // The housekeeper's own.
  absl::Duration settle_pause_;
  absl::Time settle_at_ = absl::InfiniteFuture();
  absl::Time quiet_since_ = absl::InfinitePast();
  absl::Time second_noted_ = absl::InfinitePast();
  uint64_t allocations_seen_ = 0;
  uint64_t disowned_seen_ = 0;
  // Those that are not counted in threads' stocks; the creator is. Until those in stocks are added,
  // too, kInStocks stands for them, however many or few they are: so it comes to 0 only when all
  // have gone.
  static constexpr uint64_t kInStocks = uint64_t{1} << 63;
  std::atomic<uint64_t> owners_{kInStocks + 1};
  std::atomic<bool> abandoned_{false};
};

// Inline: what a hand-over consists of. A thread without a stock at hand takes the long way: that
// of its first use of a session, and of all in a forked child.

ABSL_ATTRIBUTE_ALWAYS_INLINE inline uintptr_t SessionCore::TryShare(void* data, uint64_t length,
                                                                    Handle* handle) {
  References& references = *references_;
  SlotStocks::Stock* const mine = references.slots().MineAtHand();
  if (ABSL_PREDICT_FALSE(mine == nullptr || length < kMinSharedBytes)) return 0;
  Held held(0);
  if (ABSL_PREDICT_FALSE(!references.TryShare(*mine, OffsetOf(data), length, &held, handle))) {
    return 0;
  }
  return held.bits();
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline void SessionCore::Release(uintptr_t holding, void* data) {
  References& references = *references_;
  SlotStocks::Stock* const mine = references.slots().MineAtHand();
  if (ABSL_PREDICT_FALSE(mine == nullptr)) {
    return FinishRelease(References::Begun::kNothing, holding, data);
  }
  if (holding != 0) {
    const Held held(holding);
    const References::Begun begun = references.BeginRelease(*mine, held, OffsetOf(data));
    if (ABSL_PREDICT_FALSE(begun != References::Begun::kFinished)) {
      return FinishRelease(begun, holding, data);
    }
    if (!held.owned()) return DropOwner(references, *mine);
  }
  ThreadCache* const cache = hot_cache;
  if (NoteFreed(data, __builtin_return_address(0))) {
    // As a pointer to the base, which is the key that threads know the session by.
    const Pushed pushed =
        TryPush(cache, &ThreadCache::core, static_cast<const SessionLife*>(this), data);
    if (ABSL_PREDICT_FALSE(pushed.result != Pushed::kDone)) {
      return FinishFree(cache, pushed, data);
    }
  }
  DropOwner(references, *mine);
}

}  // namespace internal
}  // namespace spanpool

#endif  // SPANPOOL_CLIENT_SESSION_CORE_H_

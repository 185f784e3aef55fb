// Interprets bytes as operations on a heap and holds it against a model after each: for properties,
// fuzzing and random tests.
//
// The model knows which blocks are live and where, and nothing else: a block is *private* (carved
// from a span on loan, until it is freed or shared) or *shared* (referred to, until dropped).
//
// It checks that
//   * no two live blocks overlap, and none lies outside its span;
//   * a granted span offers every block that is not in use, and none that is;
//   * every page that is granted has memory, all zero if the span says so;
//   * no grant is refused while a listed span of its class has a free block;
//   * spans are where the model thinks they are, and the statistics add up, after every step; until
//     the source is made to fail they tell exactly how much memory there is;
//   * nothing is freed while a block of it is live;
//   * the journal knows of every span where it is, and a heap made of that and of the memory there
//     is goes on as if it were the one before.
//
// Not thread-safe.

#ifndef SPANPOOL_ALLOCATOR_HEAP_DRIVER_H_
#define SPANPOOL_ALLOCATOR_HEAP_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocator/arena_source.h"
#include "allocator/fake_block_states.h"
#include "allocator/faulty_arena_source.h"
#include "allocator/free_slots.h"
#include "allocator/heap.h"
#include "allocator/page_ranges.h"
#include "allocator/run_pool.h"
#include "allocator/size_classes.h"
#include "allocator/span.h"
#include "allocator/specials.h"
#include "allocator/units.h"

namespace spanpool {

class HeapDriver {
 public:
  // An operation: what to do, and three numbers that say to what.
  static constexpr size_t kOperationBytes = 4;

  // The heap's memory comes by units of `unit` pages, as ArenaSource::unit says. If that is more
  // than one there are no more than make up the heap's limit.
  explicit HeapDriver(PageCount unit = PageCount(1));
  ~HeapDriver();

  // Does all whole operations in `bytes`, CheckInvariants every `check_every` of them and at the
  // end. Returns what was wrong first; empty if nothing was.
  std::string Run(absl::Span<const uint8_t> bytes, int check_every);

  // Ends everything that lives; then the heap must be empty. Same result.
  std::string Finish();

 private:
  using Block = std::pair<PageId, uint32_t>;  // first page of its span, index

  struct Loan {
    Span* span;
    std::vector<uint64_t> in_use;  // when it was granted
    FreeSlots slots;               // by in_use, which is not moved
    std::set<uint32_t> owned;      // private blocks
  };
  struct Listed {
    PageCount pages;
    SpanClass span_class;
  };
  // Knows which pages have memory, and in which of those something was written.
  struct Memory : ArenaSource {
    Memory(PageCount unit_pages, PageCount most_pages) : unit_(unit_pages), most_(most_pages) {}
    PageCount unit() const override { return unit_; }
    absl::Status Create(ArenaIndex arena) override;
    absl::Status Populate(PageRange range) override;
    absl::Status Discard(PageRange range) override;
    absl::StatusOr<PageRanges> FindBacked(PageRange range) override;
    enum State : uint8_t { kNone, kZero, kWritten };
    std::vector<State> pages;
    PageCount backed;
    bool tells = true;  // FindBacked finds all, and else every second unit at most
    std::string error;

   private:
    const PageCount unit_;
    const PageCount most_;  // that may be backed
  };
  struct Listener : FreedBlockListener {
    void OnFreed(absl::Span<const FreedBlock> blocks) override;
    std::set<Block> watched;  // blocks with a special
    std::string error;
  };

  // Grants are written down by the driver.
  struct Journal : SpanJournal {
    void Listed(const Span& span) override;
    void Freed(const Span& span) override;
    std::map<PageId, SpanState> spans;
    std::string error;
  };

  std::string Step(uint8_t code, uint8_t a, uint8_t b, uint8_t c);
  std::string Granted(const absl::StatusOr<Span*>& span);
  std::string Write(PageRange range, bool zero);
  std::string Refused(SpanClass span_class);
  std::string Carve(Loan& loan);
  std::string Return(size_t loan);
  std::string Reconcile();
  std::string CheckStats();
  std::string CheckJournal() const;
  // Another heap, made of the journal and the memory; `tells` as in Memory.
  std::string Restart(bool tells);
  void StopFailing();
  bool SourceHasFailed() const;
  bool Referred(PageId first_page) const;

  Memory memory_;
  FaultyArenaSource source_;
  FakeBlockStates states_;
  Listener listener_;
  Journal journal_;
  std::unique_ptr<Heap> heap_;

  std::vector<Loan> loans_;
  std::map<PageId, Listed> listed_;
  std::map<uint64_t, uint64_t> live_;  // byte offset -> end, of every live block
  std::set<Block> shared_;             // blocks that somebody refers to
  std::set<Block> stale_;              // dropped since their span was swept
  std::vector<PageRange> runs_;
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_HEAP_DRIVER_H_

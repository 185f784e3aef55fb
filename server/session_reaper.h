// Takes back what a dead session held, in pieces: rules 5, 7 and 11 of tests/model/README.md.
//
//  1. Each slot that may have been written is read once, some before the first is judged, so that
//     their words come from memory together; the copy is judged. A slot that names no granule that
//     was ever lent, or is in no known state, is a lie: counted and cleared.
//       VOID        → FREE.
//       HELD        → RELEASING, then one reference less in the word (FREED at zero), then FREE.
//                     A word without references: the sharer died before its CAS. FREE.
//       TRANSIT     still under way: session 0 takes a reference of its own first. Then as HELD.
//       ACQUIRING,  → a word without references proves the slot uncounted: FREE. Otherwise nobody
//       RELEASING     can tell from this slot alone whether the reference is in the count: put
//                     aside.
//  2. All blocks put aside are recounted, in one pass over the slots of the pool (recounter.h). It
//     leaves these slots FREE. If a recount has to be put off, so is the rest. Slots that go on
//     changing are written by somebody whom the dead process gave its segment to: after some rounds
//     they are a lie, and cleared.
//  3. Only when every slot is FREE are the session's spans returned to the heap, which sweeps them:
//     private blocks are free, shared ones live on until their last holder drops them. Many go
//     back at once, for neighbours cost little more than one.
//
// What it costs: a few tens of nanoseconds for each slot the session used and for each span, and,
// if its process died in the middle of a step, one recount.
//
// Every step may be repeated, by another worker: what is left to do stands in the slots.
//
// For one thread at a time.

#ifndef SPANPOOL_SERVER_SESSION_REAPER_H_
#define SPANPOOL_SERVER_SESSION_REAPER_H_

#include <cstdint>
#include <functional>

#include "absl/time/time.h"
#include "allocator/heap.h"
#include "allocator/units.h"
#include "proto/layout/block_table.h"
#include "proto/layout/slot.h"
#include "server/pool_arenas.h"
#include "server/quarantine.h"
#include "server/recounter.h"
#include "server/session.h"
#include "server/worker_references.h"

namespace spanpool {

enum class ReapProgress : uint8_t {
  kDone,    // nothing is left: the session may end
  kMore,    // the budget is used up
  kPutOff,  // not now: try again in a moment
};

class SessionReaper {
 public:
  struct Options {
    PoolArenas* arenas = nullptr;
    Heap* heap = nullptr;
    WorkerReferences* worker = nullptr;
    Recounter* recounter = nullptr;
    // How long session 0 keeps what was under way when its sender died.
    absl::Duration transit_grace;
    // A slot of the session makes no sense.
    std::function<void(Session&, const char* what)> lie;
    // A word makes no sense; nobody can be blamed.
    std::function<void(GranuleId, const char* why)> quarantine;
    // Handles that were under way are lost with the session.
    std::function<void(const Session&, const absl::Status& why)> lost_transit;
    std::function<void(uint64_t spans)> returned;
  };
  explicit SessionReaper(Options options) : options_(std::move(options)) {}
  SessionReaper(const SessionReaper&) = delete;
  SessionReaper& operator=(const SessionReaper&) = delete;

  // Takes back a part of what the dead session held: as much as takes the time of about `budget`
  // slots.
  ReapProgress Reap(Session& session, uint32_t budget);

 private:
  // What one slot said, and the word that it names; null if there is none.
  struct Found {
    layout::Slot slot;
    layout::SharedWord* word = nullptr;
  };
  // `count` slots, at most kSlotsAtATime, from `first` on.
  void ReapSlots(Session& session, uint32_t first, uint32_t count);
  // Reads a slot, once. Its word begins to come from memory.
  Found ReadSlot(Session& session, uint32_t index);
  // Does what the slot asks for. False: it needs a recount.
  bool ReapSlot(Session& session, uint32_t index, Found found);
  void ReapTransit(Session& session, uint32_t index, layout::Slot slot);
  // Rule 5, b to d.
  void DropReference(layout::SharedSlot& slot, layout::SharedWord& word, GranuleId granule);
  // One round for the slots put aside. False: some were put off.
  bool RecountAmbiguous(Session& session);

  const Options options_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_SESSION_REAPER_H_

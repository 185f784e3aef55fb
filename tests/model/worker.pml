// The worker: rules 5 to 9 of README.md, and what it does for dead senders (11).
//
// One sequential process. When it is killed it loses its registers; what the next one knows is in the
// slots, the words, and the records that the worker keeps in memory of its own (global here).

// What a configuration may hook in.
#ifndef TAKE_OVER
#define TAKE_OVER(p) skip  // all slots of the dead client p are FREE: its spans may be taken
#endif
#ifndef IDLE_DUTIES
#define IDLE_DUTIES :: false
#endif
#ifndef UNDER_WAY
#define UNDER_WAY(k, b) false  // the reference in transit that slot k carries has not been taken
#endif
#ifndef LETS_GO
#define LETS_GO(k) false  // session 0 needs slot k no more
#define TAKE_BACK(k, b) skip
#endif
#ifndef KEPT
#define KEPT(k) (STATE(slot[k]) == TRANSIT)  // a restarted worker finds a reason for this slot of session 0
#endif
#ifndef BOOTED
#define BOOTED skip
#endif
#ifndef ALL_QUIET
#define ALL_QUIET true
#endif
#ifndef FINAL
#define FINAL skip  // must hold when all is quiet
#endif
#ifndef IS_DEAD
#define IS_DEAD(k) ((k) >= SESSION0 || dead[(k) / NS])  // the process of slot k. This one is at rest in session 0
#endif

#define UNREAPED(p) (dead[p] && !reaped[p])
#define SETTLED(p) (dead[p] -> reaped[p] : done[p])
#if CLIENTS == 2
#define ALL_SETTLED (SETTLED(0) && SETTLED(1))
#else
#define ALL_SETTLED (SETTLED(0) && SETTLED(1) && SETTLED(2))
#endif
#define FIRST_SLOT (victim == WORKER -> SESSION0 : victim * NS)
#define END_OF_SLOTS (victim == WORKER -> SLOTS : victim * NS + NS)
#define NEXT_SLOT k++; if :: k == END_OF_SLOTS -> goto looked :: else -> b = 0; goto look fi

#define BIT(b) (1 << (b))
#if BLOCKS == 1
#define FROZEN_BLOCKS ((word[0] & FROZEN) != 0)
#else
#define FROZEN_BLOCKS (((word[0] & FROZEN) != 0) | ((word[1] & FROZEN) != 0) << 1)
#endif
#define FIRST_OF_BATCH (batch & 1 -> 0 : 1)

// Rule 9: the next era that no standing VOID of the block has, or the word's own if none is left. Read
// at one instant. The C++ reads slot by slot, before it freezes; as only the worker makes VOIDs, it then
// sees at least those that stand here, so that what it chooses might be chosen here too.
#define IS_VOID_OF_ERA(k, b) (slot[k] == VOID_SLOT(b, era))
#ifdef NO_ERA
#define CHOOSE_ERA(b) era = ERA(word[b])
#define AN_ERA_IS_LEFT(b) true
#elif defined(ERA_WRAPS)
#define CHOOSE_ERA(b) era = (ERA(word[b]) + 1) % ERAS
#define AN_ERA_IS_LEFT(b) true
#else
#define CHOOSE_ERA(b) era = (ERA(word[b]) + 1) % ERAS; do :: era != ERA(word[b]) && COUNT_SLOTS(IS_VOID_OF_ERA, b) > 0 -> era = (era + 1) % ERAS :: else -> break od
#define AN_ERA_IS_LEFT(b) (era != ERA(word[b]))
#endif

#ifdef RECOUNT_PRIVATE
#define NOTHING_TO_RECOUNT(w) ((w) & FREED)
#else
#define NOTHING_TO_RECOUNT(w) (REFS(w) == 0)
#endif
#ifdef RECOUNT_DROPS_SENT
#define SEND_BITS(w) ((w) & ONE_SEND)
#else
#define SEND_BITS(w) ((w) & (SENT | ONE_SEND))
#endif
#ifdef ZERO_WITHOUT_FREED
#define FREED_IF_ZERO(count) 0
#else
#define FREED_IF_ZERO(count) (count == 0 -> FREED : 0)
#endif
#define RECOUNTED(w, count) (GENERATION(w) | (count) * ONE_REF | era * ONE_ERA | SEND_BITS(w) | FREED_IF_ZERO(count))

#ifdef JOURNAL
byte journal;  // bit b: word b may be FROZEN
#define FOUND_FROZEN (journal & FROZEN_BLOCKS)
#else
#define FOUND_FROZEN FROZEN_BLOCKS
#endif

#ifdef CHUNKS
bool recorded[SLOTS];  // slot k is in a chunk that the worker has recorded
#define TAKE_LIST list = recorded[0] | recorded[1] << 1 | recorded[2] << 2
#define IS_LISTED(k) (list & BIT(k))
#else
#define TAKE_LIST skip
#define IS_LISTED(k) true
#endif

#ifdef RESTART_KEEPS_COUNT
byte count[2];
#define FORGET_COUNT skip
#else
#define FORGET_COUNT count[0] = 0; count[BLOCKS - 1] = 0
#endif

#ifdef RELEASE_BEFORE_ADOPTION
#define ADOPT_WORD if :: REFS(word[b]) > 0 -> word[b] = word[b] + ONE_REF :: else -> slot[heir] = FREE; heir = 0; NEXT_SLOT fi
#else
#define ADOPT_WORD assert(REFS(word[b]) > 0 && REFS(word[b]) < MAX_REFS && !(word[b] & FROZEN)); word[b] = word[b] + ONE_REF; CHECK(b)
#endif

proctype worker() {
  byte victim;         // the dead client whose slots are looked at; WORKER stands for session 0
  byte k;              // the slot
  byte b;              // the block it names
  byte batch;          // bit b: block b is to be recounted
#ifndef RESTART_KEEPS_COUNT
  byte count[BLOCKS];  // how many hold it
#endif
  byte era;
  byte list;           // the slots that the recount looks at
  bool deferred;       // no era was left for a recount
  byte heir;           // session 0's slot for a reference in transit
#ifdef TURN_AND_COUNT_IN_TWO_PASSES
  bool second_pass;
#endif
#ifdef RELEASE_BEFORE_ADOPTION
  byte dead_slot;
#endif
  goto restart;

killed:
  atomic { victim = 0; k = 0; b = 0; batch = 0; FORGET_COUNT; era = 0; list = 0; deferred = false; heir = 0 };
#ifdef AWAIT_RESTART
  atomic { AWAIT_RESTART };
#endif

restart:
  // ---- 8. The words that are FROZEN are recounted, from zero; then session 0 is looked at like a dead
  // client's. Only a worker changes that flag, so that finding all words that have it is one step.
#ifdef RESTART_IGNORES_FROZEN
  WORKER_STEP(8, victim = WORKER; k = SESSION0);
#else
  WORKER_STEP(8, victim = WORKER; k = SESSION0; batch = FOUND_FROZEN; if :: batch != 0 -> k = 0; TAKE_LIST; goto scan :: else fi);
#endif
#ifndef RESTART_FORGETS_SESSION0
  if
  :: S0 > 0 -> goto look
  :: else
  fi;
#endif

idle:
  atomic { victim = 0; k = 0; b = 0; deferred = false; BOOTED };
end_idle:
  if
  :: atomic { RUNS(WORKER) && UNREAPED(0) -> victim = 0 }
  :: atomic { RUNS(WORKER) && UNREAPED(1) -> victim = 1; k = NS }
#if CLIENTS > 2
  :: atomic { RUNS(WORKER) && UNREAPED(2) -> victim = 2; k = 2 * NS }
#endif
#if S0 > 0
  :: atomic { RUNS(WORKER) && LETS_GO(SESSION0) -> victim = WORKER; k = SESSION0; goto let_go }
#endif
#if S0 > 1
  :: atomic { RUNS(WORKER) && LETS_GO(SESSION0 + 1) -> victim = WORKER; k = SESSION0 + 1; goto let_go }
#endif
#if S0 > 2
  :: atomic { RUNS(WORKER) && LETS_GO(SESSION0 + 2) -> victim = WORKER; k = SESSION0 + 2; goto let_go }
#endif
  IDLE_DUTIES
  :: atomic { RUNS(WORKER) && ALL_SETTLED && ALL_QUIET -> FINAL; goto over }
  fi;
#ifdef SPANS_BEFORE_SLOTS
  WORKER_STEP(early_7, TAKE_OVER(victim));
#endif

look:
  // ---- 5. Reap one slot. Nobody else writes a dead process's slot. So it is one step to load it, to load
  // the word it names, and to clear it if that proves it uncounted.
  //     switch (slot.load().state()): kVoid: slot.store(Slot()). kHeld: on to b. kAcquiring, kReleasing:
  //     word.load().refs() == 0: slot.store(Slot()); else the word must be recounted
  WORKER_STEP(5a,
    b = BLOCK(slot[k]);
    if
    :: slot[k] == FREE -> NEXT_SLOT
    :: STATE(slot[k]) == VOID -> slot[k] = FREE; NEXT_SLOT
#ifdef AMBIGUOUS_IS_UNCOUNTED
    :: STATE(slot[k]) == ACQUIRING || STATE(slot[k]) == RELEASING -> slot[k] = FREE; NEXT_SLOT
#elif defined(AMBIGUOUS_IS_COUNTED)
    :: STATE(slot[k]) == ACQUIRING || STATE(slot[k]) == RELEASING -> goto release
#else
    :: STATE(slot[k]) == ACQUIRING || STATE(slot[k]) == RELEASING -> if :: NOTHING_TO_RECOUNT(word[b]) -> slot[k] = FREE :: else -> batch = batch | BIT(b) fi; NEXT_SLOT
#endif
    :: STATE(slot[k]) == HELD || STATE(slot[k]) == TRANSIT ->
       if
       :: victim == WORKER && KEPT(k) -> NEXT_SLOT
       :: victim != WORKER && STATE(slot[k]) == TRANSIT && UNDER_WAY(k, b) -> goto adopt
       :: else -> goto release
       fi
    fi);

release:
#ifndef REAP_WITHOUT_INTENT
  //     slot.store(Slot(kReleasing, granule))
  WORKER_STEP(5b, slot[k] = SLOT(RELEASING, b));
#endif
  //     w = word.load(); if (w.refs() != 0) word.compare_exchange(w, w.Released()), until it succeeds. With
  //     refs 0 it is a sharer's that died before 1b
  WORKER_STEP(5c, if :: REFS(word[b]) > 0 -> word[b] = RELEASED(word[b]); CHECK(b) :: else fi);
  //     slot.store(Slot())
  WORKER_STEP(5d, slot[k] = FREE; NEXT_SLOT);

let_go:
  // ---- 11d. Session 0 gives up what it carried for a dead sender.
  WORKER_STEP(11d, b = BLOCK(slot[k]); TAKE_BACK(k, b));
  goto release;

adopt:
  // ---- 11. A dead client's reference is under way: session 0 opens the block; then the slot is released.
#ifdef RELEASE_BEFORE_ADOPTION
  WORKER_STEP(early_5, dead_slot = slot[k]; word[b] = RELEASED(word[b]); slot[k] = FREE; CHECK(b));
#define SLOT_OF_DEAD dead_slot
#else
#define SLOT_OF_DEAD slot[k]
#endif
  WORKER_STEP(11a, heir = SESSION0; do :: slot[heir] != FREE -> heir++ :: else -> break od; slot[heir] = SLOT(ACQUIRING, b));
  //     word.compare_exchange(w, w.Acquired()), until it succeeds
  WORKER_STEP(11b, ADOPT_WORD);
  //     the note, then the slot, with the dead slot's number
  WORKER_STEP(11c, slot[heir] = SLOT_OF_DEAD; heir = 0; CHECK(b));
#ifdef RELEASE_BEFORE_ADOPTION
  WORKER_STEP(early_5, NEXT_SLOT);
#endif
  goto release;

looked:
  // ---- 7. Every slot has been looked at. If no word is to be recounted they are all FREE: now, and not
  // before, the dead client's spans and its session may be used again.
  WORKER_STEP(7,
    b = 0;
    if
    :: batch != 0 -> b = FIRST_OF_BATCH; goto freeze
    :: else
    fi;
    if
    :: victim != WORKER -> reaped[victim] = true; TAKE_OVER(victim)
    :: else
    fi);
  goto idle;

freeze:
  // ---- 6. Recount. The journal first, if there is one, so that a restarted worker finds the words.
#ifdef JOURNAL
#ifndef JOURNAL_AFTER_FREEZE
  WORKER_STEP(8a, journal = journal | batch);
#endif
#endif
#ifdef CHUNK_LIST_BEFORE_FREEZE
  WORKER_STEP(early_15, TAKE_LIST);
#endif
freeze_next:
  //     w = word.load(); w.refs() == 0: nothing to recount, look at the slot again. No era left: not now.
  //     Else word.compare_exchange(w, w | FROZEN), until it succeeds
  WORKER_STEP(6a,
    CHOOSE_ERA(b);
    if
    :: NOTHING_TO_RECOUNT(word[b]) -> batch = batch & ~BIT(b)
    :: !NOTHING_TO_RECOUNT(word[b]) && !AN_ERA_IS_LEFT(b) -> batch = batch & ~BIT(b); deferred = true
#ifdef LATE_BATCH_FREEZE
    :: b != FIRST_OF_BATCH
#endif
    :: else -> word[b] = word[b] | FROZEN
    fi;
    era = 0;
    if
    :: b == 0 && batch & 2 -> b = 1; goto freeze_next
    :: else
    fi;
    b = 0; k = 0;
    if
    :: batch != 0
    :: batch == 0 && deferred -> goto idle
    :: batch == 0 && !deferred -> k = FIRST_SLOT; goto look
    fi);
#ifdef JOURNAL_AFTER_FREEZE
  WORKER_STEP(late_8a, journal = journal | batch);
#endif
#ifdef CHUNKS
#ifndef CHUNK_LIST_BEFORE_FREEZE
  //     the list of the slots that exist, read once the last word of the batch is frozen
  WORKER_STEP(15, TAKE_LIST);
#endif
#endif

scan:
  //     s = slot.load(); kHeld, kTransit: count. kAcquiring, kReleasing: slot.compare_exchange(s, kVoid
  //     with the word's era or, if its process is dead, Slot()); if that fails load it again
  WORKER_STEP(6b,
    b = BLOCK(slot[k]);
    if
    :: !IS_LISTED(k) || !(batch & BIT(b))
#ifdef TURN_AND_COUNT_IN_TWO_PASSES
    :: else ->
       if
       :: HOLDS(k, b) && second_pass -> count[b]++
       :: IN_FLIGHT(k, b) && !second_pass -> slot[k] = (IS_DEAD(k) -> FREE : VOID_SLOT(b, ERA(word[b])))
       :: else
       fi
#else
    :: else ->
       if
       :: HOLDS(k, b) -> count[b]++
#ifdef COUNT_IN_FLIGHT
       :: IN_FLIGHT(k, b) && !IS_DEAD(k) -> count[b]++
#elif defined(RECOUNT_WAITS)
       :: IN_FLIGHT(k, b) && !IS_DEAD(k) -> AGAIN(WORKER); b = 0; goto scan
#else
       :: IN_FLIGHT(k, b) && !IS_DEAD(k) -> slot[k] = VOID_SLOT(b, ERA(word[b]))
#endif
       :: IN_FLIGHT(k, b) && IS_DEAD(k) -> slot[k] = FREE
       :: else
       fi
#endif
    fi;
    b = 0; k++;
    if
    :: k < SLOTS -> goto scan
    :: else -> k = 0
    fi;
#ifdef TURN_AND_COUNT_IN_TWO_PASSES
    if
    :: !second_pass -> second_pass = true; goto scan
    :: else -> second_pass = false
    fi;
#endif
    b = FIRST_OF_BATCH);

unfreeze:
#ifdef LATE_BATCH_FREEZE
  WORKER_STEP(late_6a, if :: REFS(word[b]) > 0 -> word[b] = word[b] | FROZEN :: else -> batch = batch & ~BIT(b); count[b] = 0; b = 0; k = FIRST_SLOT; goto look fi);
#endif
  //     word.compare_exchange(w, Recounted(w, count, next era)); nobody else changes a FROZEN word
  WORKER_STEP(6c,
    CHOOSE_ERA(b);
    assert(AN_ERA_IS_LEFT(b) && word[b] & FROZEN);
    word[b] = RECOUNTED(word[b], count[b]);
    CHECK(b);
    count[b] = 0; era = 0; batch = batch & ~BIT(b);
    if
    :: batch != 0 -> b = 1; goto unfreeze
    :: else
    fi;
    b = 0; list = 0);
#ifdef JOURNAL
  WORKER_STEP(8b, journal = 0);
#endif
  // Back to 5: what the dead process had in flight is FREE by now.
  if
  :: victim == WORKER && S0 == 0 -> goto idle
  :: else -> k = FIRST_SLOT; goto look
  fi;

over:
  skip
}

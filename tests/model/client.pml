// What a client does by itself: rules 1 to 4 of README.md.
//
// The process that uses an inline declares `me`, `short w` (the word it loaded) and `byte h` (the
// generation in its handle), and the labels at which the inline ends: opened, refused, released,
// release_pending; and open_b, right before Open. So each is used at most once in a process.

byte handle[BLOCKS];  // the newest handle that has left its sharer: generation + 1, 0 = none yet
bool out[BLOCKS];     // shared, and not collected since: the holder of its span does not think it free

#ifdef GHOST_EPOCH
byte epoch[BLOCKS];         // counts the collects, and never wraps
byte handle_epoch[BLOCKS];  // when the newest handle was made
#define ON_SHARED(b) handle_epoch[b] = epoch[b]
#define COUNT_COLLECT(b) epoch[b]++
#else
#define COUNT_COLLECT(b) skip
#endif

// What a configuration may hook in.
#ifndef WORD_OF_SHARE
#define WORD_OF_SHARE(w) ((w) + ONE_REF)  // BlockWord::Shared()
#endif
#ifndef ON_SHARED
#define ON_SHARED(b) skip
#endif
#ifndef ON_COUNTED
#define ON_COUNTED skip
#endif
#ifndef ON_OPENED
#define ON_OPENED(b) skip
#endif
#ifndef STALE_HANDLE
#define STALE_HANDLE(b) skip  // the handle turned out to name nothing any more
#endif

// ---- 1. Share. The caller takes the first step, in which it decides to share:
//     slot.store(Slot(kHeld, granule), seq_cst)                                                   1a
#ifdef SHARE_VIA_ACQUIRING
#define SHARING ACQUIRING
#elif defined(SHARE_WORD_FIRST)
#define SHARING FREE
#else
#define SHARING HELD
#endif
inline Share(s, b) {
  //     CHECK(w.is_private()); word.store(w.Shared(), release); now the handle may leave. All other
  //     changes are of words that have references or a flag, so that the load and the store are one step.
  STEP(1b, assert(IS_PRIVATE(word[b])); word[b] = WORD_OF_SHARE(word[b]); out[b] = true; CHECK(b); handle[b] = GENERATION(word[b]) + 1; ON_SHARED(b));
#if defined(SHARE_VIA_ACQUIRING) || defined(SHARE_WORD_FIRST)
  STEP(late_slot, slot[s] = SLOT(HELD, b); CHECK(b));
#endif
}

// ---- 2. Open. The caller takes the first step, in which it chooses a handle:
//     slot.store(Slot(kAcquiring, granule), seq_cst)                                              2a
#ifdef OPEN_REVIVES
#define OPENABLE(w) !((w) & FROZEN)
#elif defined(OPEN_IGNORES_FROZEN)
#define OPENABLE(w) (REFS(w) > 0)
#else
#define OPENABLE(w) (REFS(w) > 0 && !((w) & (FREED | FROZEN)))
#endif
#ifdef NO_GENERATION_CHECK
#define MATCHES(w) true
#else
#define MATCHES(w) (GENERATION(w) == h)
#endif
#ifdef NO_REFS_LIMIT
#define HAS_ROOM(w) true
#else
#define HAS_ROOM(w) (REFS(w) < MAX_REFS)
#endif
#ifdef OPEN_WORD_FIRST
#define OPENING FREE
#define NOT_LEFT_OUT(s, b) true
#else
#define OPENING ACQUIRING
#define NOT_LEFT_OUT(s, b) (slot[s] == SLOT(ACQUIRING, b))
#endif
#if defined(OPEN_WITHOUT_OWN_SLOT_CHECK) || defined(OPEN_WORD_FIRST)
#define STILL_ACQUIRING(s, b) true
#else
#define STILL_ACQUIRING(s, b) (slot[s] == SLOT(ACQUIRING, b))
#endif
#ifdef OPEN_WAITS
#define WAITS(w) (w) & FROZEN -> w = 0; AGAIN(me); goto open_b
#else
#define WAITS(w) false
#endif
#ifdef TAKEN_BEFORE_HELD
#define ACQUIRED(w) (((w) + ONE_REF) & ~SENT)
#else
#define ACQUIRED(w) ((w) + ONE_REF)
#endif
inline Open(s, b) {
  //     w = word.load(seq_cst). FROZEN: try again until the deadline, then f. (A process that has not
  //     come to this step yet does what one does that tries again.) Not to be opened: f
  STEP(2b, w = word[b]; if :: WAITS(w) :: else -> if :: OPENABLE(w) && MATCHES(w) && HAS_ROOM(w) :: else -> if :: w & FROZEN :: else -> STALE_HANDLE(b) fi; w = 0; goto open_f fi fi);
  //     if (slot.load() != Slot(kAcquiring, granule)) goto f
  STEP(2c, if :: STILL_ACQUIRING(s, b) :: else -> w = 0; goto open_f fi);
  //     if (!word.compare_exchange(w, w.Acquired())) goto b
  STEP(2d, if :: word[b] == w -> word[b] = ACQUIRED(w); ON_COUNTED; w = 0; CHECK(b) :: else -> w = 0; AGAIN(me); goto open_b fi);
  //     if (slot.compare_exchange(Slot(kAcquiring, granule), Slot(kHeld, granule))) return opened
  STEP(2e, if :: NOT_LEFT_OUT(s, b) -> slot[s] = SLOT(HELD, b); CHECK(b); assert(GENERATION(word[b]) == h); ON_OPENED(b); h = 0; goto opened :: else fi);
#ifdef DECREMENT_WHEN_LEFT_OUT
  STEP(undo, assert(REFS(word[b]) > 0); word[b] = RELEASED(word[b]); CHECK(b));
#endif
open_f:
  //     slot.store(Slot(), release); trying again is a new Open
  STEP(2f, slot[s] = FREE; h = 0; goto refused);
}

// ---- 4. Collect (before 3, which may do it at once): CollectBlock(), by the holder of the span only. Nobody else changes a FREED word, so
// that its load and its compare-and-swap are one step.
#ifdef COLLECT_WRAPS_GENERATION
#define COLLECTABLE(w) ((w) & FREED)
#define COLLECTED(w) (((w) & ~(3 | FREED)) | (GENERATION(w) == MAX_GENERATION -> 0 : GENERATION(w) + 1))
#else
#define COLLECTABLE(w) (((w) & FREED) && GENERATION(w) < MAX_GENERATION)
#ifdef COLLECT_KEEPS_GENERATION
#define COLLECTED(w) ((w) & ~FREED)
#else
#define COLLECTED(w) (((w) & ~(FREED | ONE_SEND)) + 1)
#endif
#endif
#define COLLECT(b) assert(REFS(word[b]) == 0 && COUNT_SLOTS(HOLDS, b) == 0); word[b] = COLLECTED(word[b]); out[b] = false; COUNT_COLLECT(b)

// ---- 3. Release.
#ifdef NO_OWN_SLOT_CHECK
#define STILL_RELEASING(s, b) true
#else
#define STILL_RELEASING(s, b) (slot[s] == SLOT(RELEASING, b))
#endif
#ifdef FETCH_SUB
#define UNCHANGED(b) true
#else
#define UNCHANGED(b) (word[b] == w)
#endif
inline Release(s, b) {
#ifdef RELEASE_SLOT_FIRST
  STEP(early_free, slot[s] = FREE);
#else
  //     slot.store(Slot(kReleasing, granule), seq_cst)
  STEP(3a, slot[s] = SLOT(RELEASING, b));
#endif
release_b:
  //     w = word.load(seq_cst). FROZEN: onto the private pending list; the caller goes on
  STEP(3b, w = word[b]; if :: w & FROZEN -> w = 0; goto release_pending :: else fi);
#ifndef RELEASE_SLOT_FIRST
  //     if (slot.load() != Slot(kReleasing, granule)) goto e
  STEP(3c, if :: STILL_RELEASING(s, b) :: else -> w = 0; goto release_e fi);
#endif
  //     if (!word.compare_exchange(w, w.Released())) goto b
#ifdef FREED_IN_SECOND_STEP
  STEP(3d, if :: word[b] == w -> w = 0; assert(REFS(word[b]) > 0); word[b] = word[b] - ONE_REF; CHECK(b) :: else -> w = 0; AGAIN(me); goto release_b fi);
  STEP(late_freed, if :: REFS(word[b]) == 0 -> word[b] = word[b] | FREED :: else fi);
#else
#ifdef MAY_COLLECT
  //     the last one, by a process that MAY_COLLECT: compare_exchange(w, w.Released().Collected()) instead
  STEP(3d, if :: UNCHANGED(b) -> w = 0; assert(REFS(word[b]) > 0); if :: MAY_COLLECT && REFS(word[b]) == 1 && COLLECTABLE(RELEASED(word[b])) -> word[b] = RELEASED(word[b]); COLLECT(b) :: else -> word[b] = RELEASED(word[b]) fi; CHECK(b) :: else -> w = 0; AGAIN(me); goto release_b fi);
#else
  STEP(3d, if :: UNCHANGED(b) -> w = 0; assert(REFS(word[b]) > 0); word[b] = RELEASED(word[b]); CHECK(b) :: else -> w = 0; AGAIN(me); goto release_b fi);
#endif
#endif
release_e:
  //     slot.store(Slot(), release), whatever it is by now
  STEP(3e, slot[s] = FREE; goto released);
}

// What follows release_pending: the slot stays on the pending list, and b is tried again later. A
// process that runs alone need not: its caller went on.
#ifdef RELEASE_WAITS
#define LATER(over) AGAIN(me); goto release_b
#elif defined(NO_RETRY_ON_FROZEN)
#define LATER(over) done[me] = true; goto over
#elif defined(PROGRESS)
#define LATER(over) if :: IS_SOLO(me) -> goto over :: else -> goto release_b fi
#else
#define LATER(over) goto release_b
#endif

// Share, open, release and collect one block, over and over, while clients and the worker are killed.
// Client 0 owns the span and shares the block, clients 1 and 2 open it, by handles new and old.
#define CLIENTS 3
#define NS 1
#define S0 0
#define BLOCKS 1
#ifndef ERAS
#define ERAS 2
#endif
#ifndef DEATHS
#define DEATHS 3
#endif
#ifndef WORKER_DEATHS
#define WORKER_DEATHS 2
#endif
#ifndef SHARES
#define SHARES 2
#endif
#ifndef OPENS
#define OPENS 1
#endif
#ifdef OVERFLOW
#define REF_BITS 1  // the owner's own reference is as many as there is room for
#endif
#include "layout.pml"

#ifdef GHOST_EPOCH
#define ON_OPENED(b) assert(epoch[b] == h_epoch)
#endif
#ifdef COLLECT_AT_RELEASE
#define MAY_COLLECT (me == 0)
#endif
#include "client.pml"

#define TAKE_OVER(p)                                                      \
  if                                                                      \
  :: p == 0 && IS_PRIVATE(word[0]) -> INVARIANT(COUNT_SLOTS(HOLDS, 0) == 0); out[0] = false \
  :: else                                                                 \
  fi
#ifndef EOF_IS_DEATH  // it would not be quiet then: some of the dead are alive
// No reference is left; nor is a block that its owner thinks in use, but will never see FREED.
#define FINAL                                              \
  assert(COUNT_SLOTS(IN_USE, 0) == 0);                     \
  assert(REFS(word[0]) == 0 && !(word[0] & FROZEN));       \
  assert((word[0] & FREED) || !out[0])
#endif
#include "worker.pml"

// A client that was killed may attach anew, once, when its old session is reaped.
#ifdef REATTACH
byte lives = 1;
#ifdef SESSION_REUSED_BEFORE_REAPED
#define MAY_ATTACH dead[me]
#else
#define MAY_ATTACH reaped[me]
#endif
#endif

proctype sharer() {
  byte me = 0;
  byte shares = SHARES;
  short w;
share:
  STEP(1a, if :: shares > 0 -> shares--; slot[me] = SLOT(SHARING, 0) :: shares = 0; done[me] = true; goto over fi);
  Share(me, 0);
  Release(me, 0);
release_pending:
  LATER(over);
released:
#ifdef COLLECT_AT_RELEASE
  STEP(4, if :: !out[0] -> goto share :: COLLECTABLE(word[0]) -> COLLECT(0); goto share :: shares = 0; done[me] = true; goto over fi);
#else
  STEP(4, if :: COLLECTABLE(word[0]) -> COLLECT(0); goto share :: shares = 0; done[me] = true; goto over fi);
#endif
killed:
  atomic { dead[me] = true; shares = 0; w = 0 };
over:
  skip
}

proctype opener(byte me) {
  byte opens = OPENS;
  byte h;
  short w;
#ifdef GHOST_EPOCH
  byte h_epoch;
#endif
#ifdef CHUNKS
  // Client 1 attaches, or gets its first slots, while the others are at work and perhaps being recounted.
#ifndef CHUNK_USED_BEFORE_RECORDED
  if
  :: me == 1 -> STEP(15, recorded[1] = true)
  :: else
  fi;
#endif
#endif
refused:
released:
  // Handles that are older than the newest are tried too.
#ifdef GHOST_EPOCH
  STEP(2a, if :: opens > 0 && handle[0] > 0 -> opens--; h = handle[0] - 1; h_epoch = handle_epoch[0]; slot[me] = SLOT(OPENING, 0) :: opens = 0; done[me] = true; goto over fi);
#else
  STEP(2a, if :: opens > 0 && handle[0] > 0 -> opens--; if :: h = handle[0] - 1 :: handle[0] > 1 -> h = handle[0] - 2 fi; slot[me] = SLOT(OPENING, 0) :: opens = 0; done[me] = true; goto over fi);
#endif
open_b:
  Open(me, 0);
opened:
#ifdef CHUNK_USED_BEFORE_RECORDED
  STEP(late_15, recorded[me] = true);
#endif
  Release(me, 0);
release_pending:
  LATER(over);
killed:
  atomic { dead[me] = true; opens = 0; h = 0; w = 0 };
#ifdef REATTACH
end_dead:
  atomic { MAY_ATTACH && lives > 0 -> lives--; dead[me] = false; reaped[me] = false; opens = 1; goto refused };
#endif
over:
  skip
}

init {
  atomic {
#ifdef CHUNKS
    recorded[0] = true;
    recorded[2] = true;
#endif
    run worker();
    run sharer();
    run opener(1);
    run opener(2)
  }
}

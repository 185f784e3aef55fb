// One span and its block go from owner to owner: client 0 has it first, gives it back alive (while the
// block may be shared) or dies with it; the worker grants it to client 2. Client 1 opens the block.
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
#define WORKER_DEATHS 1
#endif
#ifndef SHARES
#define SHARES 1
#endif
#ifndef OPENS
#define OPENS 1
#endif
#include "layout.pml"
#include "client.pml"

byte owner = 0;  // as the worker's span directory says: a client, or WORKER
bool returned;   // client 0's message "I give the span back" is under way

// Whoever takes a span over knows a block for free if its word is private.
#define TAKE_SPAN(from, to)                                                                       \
  if                                                                                              \
  :: owner == from ->                                                                             \
     owner = to;                                                                                  \
     if                                                                                           \
     :: IS_PRIVATE(word[0]) -> INVARIANT(COUNT_SLOTS(HOLDS, 0) == 0); out[0] = false              \
     :: else                                                                                      \
     fi                                                                                           \
  :: else                                                                                         \
  fi
#define TAKE_OVER(p) TAKE_SPAN(p, WORKER)
// A return names the grant, so that a late one takes nothing from the next owner.
#define IDLE_DUTIES                                                                               \
  :: atomic { RUNS(WORKER) && returned -> returned = false; TAKE_SPAN(0, WORKER); goto end_idle }     \
  :: atomic { RUNS(WORKER) && owner == WORKER && COLLECTABLE(word[0]) -> COLLECT(0); goto end_idle }  \
  :: atomic { RUNS(WORKER) && owner == WORKER && !dead[2] && !done[2] -> owner = 2; goto end_idle }
#define ALL_QUIET !returned
#define FINAL                                              \
  assert(COUNT_SLOTS(IN_USE, 0) == 0);                     \
  assert(REFS(word[0]) == 0 && !(word[0] & FROZEN));       \
  assert((word[0] & FREED) || !out[0])
#include "worker.pml"

proctype first_owner() {
  byte me = 0;
  byte shares = SHARES;
  bool gave;  // it has given the span back
  short w;
share:
  STEP(1a, if :: shares > 0 && !gave -> shares--; slot[me] = SLOT(SHARING, 0) :: goto finish fi);
#ifdef RETURN_DURING_SHARE
  STEP(early_14, if :: returned = true; gave = true :: skip fi);
#endif
  Share(me, 0);
#ifndef RETURN_DURING_SHARE
  STEP(14, if :: returned = true; gave = true :: skip fi);  // with its own reference standing
#endif
  Release(me, 0);
release_pending:
  LATER(over);
released:
  STEP(4,
    if
    :: !gave && COLLECTABLE(word[0]) -> COLLECT(0); goto share
    :: goto finish
    fi);
finish:
  STEP(14, if :: !gave -> returned = true :: skip fi; shares = 0; gave = false; done[me] = true; goto over);
killed:
  atomic { dead[me] = true; shares = 0; gave = false; w = 0 };
over:
  skip
}

proctype next_owner() {
  byte me = 2;
  byte shares = 1;
  short w;
granted:
  // The grant tells which blocks live on elsewhere; those it collects before it uses them.
  STEP(1a,
    if
    :: owner == me && IS_PRIVATE(word[0]) && !out[0] && shares > 0 -> INVARIANT(COUNT_SLOTS(HOLDS, 0) == 0); shares--; slot[me] = SLOT(SHARING, 0)
    :: owner == me && COLLECTABLE(word[0]) -> COLLECT(0); goto granted
    :: shares = 0; done[me] = true; goto over
    fi);
  Share(me, 0);
  Release(me, 0);
release_pending:
  LATER(over);
released:
  goto granted;
killed:
  atomic { dead[me] = true; shares = 0; w = 0 };
over:
  skip
}

proctype opener() {
  byte me = 1;
  byte opens = OPENS;
  byte h;
  short w;
refused:
released:
  STEP(2a,
    if
    :: opens > 0 && handle[0] > 0 -> opens--; if :: h = handle[0] - 1 :: handle[0] > 1 -> h = handle[0] - 2 fi; slot[me] = SLOT(ACQUIRING, 0)
#ifdef COLLECT_WITHOUT_SPAN
    :: word[0] & FREED -> word[0] = COLLECTED(word[0]); goto refused
#endif
    :: opens = 0; done[me] = true; goto over
    fi);
open_b:
  Open(me, 0);
opened:
  Release(me, 0);
release_pending:
  LATER(over);
killed:
  atomic { dead[me] = true; opens = 0; h = 0; w = 0 };
over:
  skip
}

init {
  atomic {
    run worker();
    run first_owner();
    run opener();
    run next_owner()
  }
}

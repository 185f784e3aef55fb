// Two words are recounted in one scan. Client 1 has two threads, each with a slot; it dies with both
// slots in flight. Client 0 holds both blocks at first, and keeps releasing and opening them.
#define CLIENTS 2
#define NS 2
#define S0 0
#define BLOCKS 2
#ifndef ERAS
#define ERAS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef WORKER_DEATHS
#define WORKER_DEATHS 2
#endif
#ifndef OPENS_0
#define OPENS_0 0
#endif
// When a client dies, all its threads do.
#define STEP(rule, ...)                                         \
  if                                                      \
  :: atomic { !dead[s / NS] && RUNS(me) -> __VA_ARGS__ }      \
  :: atomic { !dead[s / NS] && KILL deaths > 0 -> deaths--; goto killed } \
  :: atomic { dead[s / NS] -> goto killed }               \
  fi
#include "layout.pml"
#include "client.pml"
#define FINAL                                                              \
  assert(COUNT_SLOTS(IN_USE, 0) == 0);                                     \
  assert(REFS(word[0]) == 0 && word[0] & FREED && !(word[0] & FROZEN));    \
  assert(REFS(word[1]) == 0 && word[1] & FREED && !(word[1] & FROZEN))
#include "worker.pml"

byte running[CLIENTS] = 2;  // threads

proctype thread(byte me; byte s; byte block; bool holds; byte opens) {
  byte h;
  short w;
  if
  :: holds -> goto opened
  :: else
  fi;
refused:
released:
  STEP(2a,
    if
    :: opens > 0 -> opens--; slot[s] = SLOT(ACQUIRING, block)
    :: opens = 0; running[me]--; done[me] = (running[me] == 0); goto over
    fi);
open_b:
  Open(s, block);
opened:
  Release(s, block);
release_pending:
  LATER(over);
killed:
  atomic { dead[me] = true; opens = 0; w = 0 };
over:
  skip
}

init {
  atomic {
    word[0] = ONE_REF;
    word[1] = ONE_REF;
    slot[0] = SLOT(HELD, 0);
    slot[1] = SLOT(HELD, 1);
    run worker();
    run thread(0, 0, 0, true, OPENS_0);
    run thread(0, 1, 1, true, OPENS_0);
    run thread(1, 2, 0, false, 1);
    run thread(1, 3, 1, false, 1)
  }
}

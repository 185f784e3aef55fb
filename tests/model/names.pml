// Names: session 0 holds what is published. The worker has two threads here, one that serves requests
// and works on session 0 as any client works on its session, and one that reaps; a kill takes both.
// Client 0 shares a block, asks for it to be published, and lets go; client 1 looks the name up and opens;
// either may ask for it to be unpublished.
#define CLIENTS 2
#define NS 1
#define S0 1
#define BLOCKS 1
#ifndef ERAS
#define ERAS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef WORKER_DEATHS
#define WORKER_DEATHS 2
#endif
#ifndef LOOKUPS
#define LOOKUPS 1
#endif

bool up = true;    // the worker's process exists
bool server_down;  // its serving thread has ended with it
bool booted;       // session 0 has been reaped after a restart: requests may be served

// A server's step is the worker's: it ends with the worker, whichever thread was hit.
#define STEP(rule, ...)                                                                                         \
  if                                                                                                      \
  :: atomic { (me < CLIENTS || up) && RUNS(me) -> __VA_ARGS__ }                                               \
  :: atomic { KILL me < CLIENTS && deaths > 0 -> deaths--; goto killed }                                  \
  :: atomic { KILL me == WORKER && up && worker_deaths > 0 -> worker_deaths--; up = false; goto killed }  \
  :: atomic { me == WORKER && !up -> goto killed }                                                        \
  fi
#define WORKER_STEP(rule, ...)                                                                                  \
  if                                                                                                      \
  :: atomic { up && RUNS(WORKER) -> __VA_ARGS__ }                                                         \
  :: atomic { !up -> goto killed }                                                                        \
  :: atomic { KILL up && worker_deaths > 0 -> worker_deaths--; up = false; goto killed }                  \
  fi
#include "layout.pml"

// ---- The name, in records of the worker's own: generation of the handle + 1, or 0. And the requests
// that clients send; one that nobody waits for any more may still arrive.
byte name;
byte request;  // generation + 1: publish. UNPUBLISH
#define UNPUBLISH 9
#define STALE_HANDLE(b) assert(me == WORKER || name != h + 1)
#include "client.pml"

// While the worker lives, its session 0 is that of a living process, also for its own recount. Only a
// restarted worker takes what is in flight there for a dead process's.
#define IS_DEAD(k) (k == SESSION0 -> !booted : dead[0] && k == 0 || dead[1] && k == 1)
#ifdef RESTART_KEEPS_ALL
#define KEPT(k) true
#else
#define KEPT(k) (name != 0)
#endif
#ifdef NAME_BEFORE_OPEN
#define FORGET_NAME name = 0
#else
#define FORGET_NAME skip
#endif
#define BOOTED booted = true
#define AWAIT_RESTART server_down -> server_down = false; booted = false; up = true
#define IDLE_DUTIES :: atomic { !up -> goto killed }
#define ALL_QUIET (request == 0 && STATE(slot[SESSION0]) != ACQUIRING && STATE(slot[SESSION0]) != RELEASING && STATE(slot[SESSION0]) != VOID)
// At the end the name alone holds the block, if it stands; else nobody does.
#define FINAL                                                                       \
  assert(slot[0] == FREE && slot[1] == FREE && !(word[0] & FROZEN));                \
  assert(REFS(word[0]) == (name != 0) && (slot[SESSION0] == (name != 0 -> HELD : FREE)));  \
  assert(name == 0 || GENERATION(word[0]) + 1 == name)
#include "worker.pml"

proctype server() {
  byte me = WORKER;
  byte h;
  short w;
end_serve:
  if
  :: atomic { up && booted && RUNS(me) && request != 0 && request != UNPUBLISH && name == 0 -> h = request - 1 }
  :: atomic { up && booted && RUNS(me) && request != 0 && (request == UNPUBLISH) == (name == 0) -> request = 0; goto end_serve }  // refused
  :: atomic { up && booted && RUNS(me) && request == UNPUBLISH && name != 0 -> goto unpublish }
  :: atomic { !up -> goto killed }
  fi;
  // ---- 13. Publish: session 0 opens; then the name is stored; then the client is told.
#ifdef NAME_BEFORE_OPEN
  STEP(early_13b, name = request);
#endif
  STEP(2a, slot[SESSION0] = SLOT(ACQUIRING, 0));
open_b:
  Open(SESSION0, 0);
refused:
  // Tried again if it was FROZEN or left out; else the client is told that the handle is stale.
  STEP(13c, if :: request = 0 :: !IS_SOLO(me) fi; FORGET_NAME; goto end_serve);
opened:
  STEP(13b, name = request);
  STEP(13c, request = 0; goto end_serve);
  // ---- 13. Unpublish: the name is removed; then session 0 releases.
unpublish:
#ifndef UNPUBLISH_SLOT_FIRST
  STEP(13d, name = 0);
#endif
  Release(SESSION0, 0);
release_pending:
  LATER(over);
released:
#ifdef UNPUBLISH_SLOT_FIRST
  STEP(late_13d, name = 0);
#endif
  STEP(13e, request = 0; goto end_serve);
killed:
  atomic { h = 0; w = 0; server_down = true };
end_down:
  if
  :: atomic { !server_down && up && booted -> goto end_serve }
  :: atomic { !server_down && !up -> server_down = true; goto end_down }
  fi;
over:
  skip
}

proctype publisher() {
  byte me = 0;
  short w;
  STEP(1a, slot[me] = SLOT(HELD, 0));
  Share(me, 0);
  // It may wait for the answer or not, so that a request also arrives late.
  STEP(13, if :: request == 0 -> request = handle[0] :: skip fi);
  Release(me, 0);
release_pending:
  LATER(over);
released:
  STEP(13, if :: request == 0 -> request = UNPUBLISH :: skip fi; done[me] = true; goto over);
killed:
  atomic { dead[me] = true; w = 0 };
over:
  skip
}

proctype reader() {
  byte me = 1;
  byte lookups = LOOKUPS;
  byte h;
  short w;
refused:
released:
  STEP(13, if :: lookups > 0 && name != 0 -> lookups--; h = name - 1 :: lookups = 0; done[me] = true; goto over fi);
  STEP(2a, slot[me] = SLOT(ACQUIRING, 0));
open_b:
  Open(me, 0);
opened:
  STEP(13, if :: request == 0 -> request = UNPUBLISH :: skip fi);
  Release(me, 0);
release_pending:
  LATER(over);
killed:
  atomic { dead[me] = true; lookups = 0; h = 0; w = 0 };
over:
  skip
}

init {
  atomic {
    run worker();
    run server();
    run publisher();
    run reader()
  }
}

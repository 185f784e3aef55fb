// Send: a reference travels with its handle. Client 0 sends a block of its own to client 1, which lets
// go of it or sends it on to client 2. Senders, receivers and the worker are killed at any step.
#define CLIENTS 3
#define NS 1
#define S0 3  // two dead senders, one of them adopted twice because the worker died in between
#define BLOCKS 1
#ifndef ERAS
#define ERAS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef WORKER_DEATHS
#define WORKER_DEATHS 1
#endif
#include "layout.pml"

bool mail[CLIENTS];  // the handle is in this client's socket, or in its hands and not yet opened
byte bound_for;      // the client that was last sent it
#define GONE(p) (dead[p] || done[p])

// A private block is shared and sent in one step.
#define WORD_OF_SHARE(w) SENT_AGAIN((w) + ONE_REF)
#define ON_SHARED(b) bound_for = 1; mail[1] = true
// The property: a handle that is under way opens, whatever happens to its sender.
#define STALE_HANDLE(b) assert(false)
#define ON_COUNTED seen = w & (SENT | ONE_SEND)
#include "client.pml"

// The reference in transit that slot k carries has not been taken.
#define STILL_UNDER_WAY(k, b) ((word[b] & SENT) && SEND_NUMBER(word[b]) == SLOT_NUMBER(slot[k]))
#ifdef NO_ADOPTION
#define UNDER_WAY(k, b) false
#else
#define UNDER_WAY(k, b) STILL_UNDER_WAY(k, b)
#endif
#define TAKE_BACK(k, b) if :: STILL_UNDER_WAY(k, b) -> word[b] = word[b] & ~SENT :: else fi
// Session 0 lets go when the reference was taken, or nobody is left to take it. (The C++ does not know
// who that would be, and waits for a grace period to end.)
#define LETS_GO(k) (STATE(slot[k]) == TRANSIT && (!STILL_UNDER_WAY(k, 0) || GONE(bound_for)))
#define ALL_QUIET (slot[SESSION0] == FREE && slot[SESSION0 + 1] == FREE && slot[SESSION0 + 2] == FREE)
#define FINAL                                              \
  assert(COUNT_SLOTS(IN_USE, 0) == 0);                     \
  assert(REFS(word[0]) == 0 && !(word[0] & FROZEN));       \
  INVARIANT(!(word[0] & SENT))
#include "worker.pml"

// 10c, d. Whenever it passes by, the sender looks whether its reference was taken; if its receiver is gone
// it takes it back. Then it releases.
#ifdef LETS_GO_AT_ONCE
#define LOOK_AFTER_SEND(receiver) skip
#elif defined(LOOKS_AT_COUNT)
#define LOOK_AFTER_SEND(receiver)                                                               \
  if                                                                                            \
  :: REFS(word[0]) > 1                                                                          \
  :: GONE(receiver)                                                                             \
  :: IS_SOLO(me) -> goto over                                                                   \
  fi
#else
#define LOOK_AFTER_SEND(receiver)                                                               \
  if                                                                                            \
  :: !STILL_UNDER_WAY(me, 0)                                                                    \
  :: STILL_UNDER_WAY(me, 0) && GONE(receiver) && !(word[0] & FROZEN) -> TAKE_BACK(me, 0)        \
  :: IS_SOLO(me) -> goto over                                                                   \
  fi
#endif

proctype sender() {
  byte me = 0;
  short seen;
  short w;
  // A private block is sent without being shared first: 10a in place of 1a, 10b in place of 1b.
#ifdef SENT_BEFORE_SLOT
  STEP(1a, slot[me] = SLOT(HELD, 0));
  Share(me, 0);
  STEP(late_10a, slot[me] = TRANSIT_SLOT(0, NEXT_SEND(0)));
#else
  STEP(10a, slot[me] = TRANSIT_SLOT(0, NEXT_SEND(0)));
  Share(me, 0);
#endif
  STEP(10c, LOOK_AFTER_SEND(1));
  Release(me, 0);
release_pending:
  LATER(over);
released:
  STEP(end, done[me] = true; goto over);
killed:
  atomic { dead[me] = true; w = 0 };
over:
  skip
}

proctype receiver(byte me; bool sends_on) {
  byte h;
  short seen;  // SENT and the number, as they were in the word that was counted up
  short w;
refused:
  // The handle is in its socket; it tries until it has opened it, or never looks.
  STEP(2a, if :: mail[me] -> slot[me] = SLOT(ACQUIRING, 0) :: done[me] = true; goto over fi);
open_b:
  Open(me, 0);
opened:
  //     for (w = word.load(); w.sent() && w.send_number() == seen;) word.compare_exchange(w, w.Taken());
  //     FROZEN: onto the pending list, and this slot is not released before it is done
  STEP(10e, if :: word[0] & FROZEN -> if :: IS_SOLO(me) -> goto over :: !IS_SOLO(me) -> goto opened fi :: else -> if :: seen & SENT && (word[0] & (SENT | ONE_SEND)) == seen -> word[0] = word[0] & ~SENT :: else fi; seen = 0; mail[me] = false fi);
  if
  :: sends_on
  :: goto release
  fi;
send:
  //     w = word.load(); an earlier Send of the block is still under way: refuse. FROZEN: try again until
  //     the deadline
  STEP(10, w = word[0]; if :: w & (SENT | FROZEN) -> w = 0; if :: goto send :: goto release fi :: else fi);
  //     slot.store(Slot(kTransit, w.send_number() + 1, granule), seq_cst)
  STEP(10a, slot[me] = TRANSIT_SLOT(0, NEXT_SEND(w)));
  //     if (!word.compare_exchange(w, w.Sent())) start over; now the handle may leave
  STEP(10b, if :: word[0] == w -> word[0] = SENT_AGAIN(w); w = 0; CHECK(0); bound_for = 2; mail[2] = true :: else -> w = 0; AGAIN(me); goto send fi);
  STEP(10c, LOOK_AFTER_SEND(2));
release:
  Release(me, 0);
release_pending:
  LATER(over);
released:
  STEP(end, done[me] = true; goto over);
killed:
  atomic { dead[me] = true; sends_on = false; h = 0; w = 0; seen = 0 };
over:
  skip
}

init {
  atomic {
    run worker();
    run sender();
    run receiver(1, true);
    run receiver(2, false)
  }
}

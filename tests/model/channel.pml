// Hand-over through a channel: one cell of a queue that lies in a pool block. Client 0 sends; clients 1
// and 2 receive, and client 1 may send on what it received. With TWO_SENDERS, clients 0 and 1 each send a
// block of their own, and client 2 receives. All are killed at any step.
//
// The cell is one value that is changed by compare-and-swap as a whole:
//   EMPTY(turn) → FULL(turn, handle) → EMPTY(turn + 1)
// How a longer queue finds its next cell does not matter for references, and is not modelled.
#define CLIENTS 3
#define NS 1
#define S0 3  // two dead senders, one of them adopted twice because the worker died in between
#ifdef TWO_SENDERS
#define BLOCKS 2
#else
#define BLOCKS 1
#endif
#ifndef ERAS
#define ERAS 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef WORKER_DEATHS
#define WORKER_DEATHS 1
#endif
#ifndef MESSAGES
#define MESSAGES 1
#endif
#include "layout.pml"

// ---- The cell: turn | block | generation of the handle + 1, or 0.
byte cell;
#define IS_FULL(c) (((c) & 7) != 0)
#define FULL(turn, b, h) ((turn) << 4 | (b) << 3 | ((h) + 1))
#define EMPTIED(c) (((c) ^ 16) & 16)
#define TURN(c) ((c) >> 4)
#define CELL_BLOCK(c) (((c) >> 3) & 1)
#define CELL_GENERATION(c) (((c) & 7) - 1)

#define GONE(p) (dead[p] || done[p])
#ifdef TWO_SENDERS
#define NO_RECEIVER GONE(2)
#else
#define NO_RECEIVER (GONE(1) && GONE(2))
#endif
// The property: what stands in the cell opens, or else it does not stand there any more. So nothing is
// lost but what a receiver took and died with.
#ifdef TAKE_BEFORE_OPEN
#define STALE_HANDLE(b) assert(false)
#else
#define STALE_HANDLE(b) assert(cell != seen)
#endif
#include "client.pml"

// Slot k carries a reference whose entry still stands. The slot names the block; which entry of
// which channel it is for, the C++ writes into a note beside the slot, before the slot.
#define STILL_UNDER_WAY(k, b) (cell == FULL(SLOT_NUMBER(slot[k]), b, GENERATION(word[b])))
#ifdef NO_ADOPTION
#define UNDER_WAY(k, b) false
#else
#define UNDER_WAY(k, b) STILL_UNDER_WAY(k, b)
#endif
#define LETS_GO(k) (STATE(slot[k]) == TRANSIT && (!STILL_UNDER_WAY(k, BLOCK(slot[k])) || NO_RECEIVER))
#define TAKE_BACK(k, b) skip
#define ALL_QUIET (slot[SESSION0] == FREE && slot[SESSION0 + 1] == FREE && slot[SESSION0 + 2] == FREE)
#define NOT_LOST(b) assert(REFS(word[b]) == 0 && !(word[b] & FROZEN) && (word[b] & FREED || !out[b] || dead[b]))
#ifdef TWO_SENDERS
#define FINAL assert(COUNT_SLOTS(IN_USE, 0) == 0); NOT_LOST(0); NOT_LOST(1)
#else
#define FINAL assert(COUNT_SLOTS(IN_USE, 0) == 0); NOT_LOST(0)
#endif
#include "worker.pml"

// 12c, d. Whenever it passes by, the sender looks whether its entry was taken. If nobody is left to take it,
// it takes it itself.
#ifdef LETS_GO_AT_ONCE
#define LOOK_AFTER_ENTRY(nobody_takes_it) skip
#else
#define LOOK_AFTER_ENTRY(nobody_takes_it)                                                      \
  if                                                                          \
  :: !STILL_UNDER_WAY(me, blk)                                                  \
  :: STILL_UNDER_WAY(me, blk) && (nobody_takes_it) -> cell = EMPTIED(cell)            \
  :: IS_SOLO(me) -> goto over                                                 \
  fi
#endif

proctype sender(byte me; byte blk) {
  byte messages = MESSAGES;
  byte seen;  // the cell as it was when this process looked
  short w;
next:
  STEP(1a, if :: messages > 0 -> messages--; slot[me] = SLOT(HELD, blk) :: done[me] = true; goto over fi);
  Share(me, blk);
send:
  STEP(12, seen = cell; if :: IS_FULL(seen) -> seen = 0; if :: goto send :: goto release fi :: else fi);
#ifdef CELL_BEFORE_SLOT
  STEP(12b, if :: cell == seen -> cell = FULL(TURN(seen), blk, GENERATION(word[blk])) :: else -> seen = 0; AGAIN(me); goto send fi);
  STEP(late_12a, slot[me] = TRANSIT_SLOT(blk, TURN(seen)); seen = 0);
#else
  STEP(12a, slot[me] = TRANSIT_SLOT(blk, TURN(seen)));
  STEP(12b, if :: cell == seen -> cell = FULL(TURN(seen), blk, GENERATION(word[blk])); seen = 0 :: else -> seen = 0; AGAIN(me); goto send fi);
#endif
  STEP(12c, LOOK_AFTER_ENTRY(NO_RECEIVER));
release:
  Release(me, blk);
release_pending:
  LATER(over);
released:
  STEP(4, if :: COLLECTABLE(word[blk]) -> COLLECT(blk); goto next :: messages = 0; done[me] = true; goto over fi);
killed:
  atomic { dead[me] = true; messages = 0; seen = 0; w = 0 };
over:
  skip
}

proctype receiver(byte me; byte takes; bool sends_on) {
  byte blk;
  byte h;
  byte seen;
  short w;
refused:
released:
  STEP(12e, seen = 0; blk = 0; if :: takes > 0 && IS_FULL(cell) -> takes--; seen = cell; blk = CELL_BLOCK(cell); h = CELL_GENERATION(cell) :: takes = 0; done[me] = true; goto over fi);
#ifdef TAKE_BEFORE_OPEN
  STEP(early_12f, if :: cell == seen -> cell = EMPTIED(seen) :: else -> AGAIN(me); goto refused fi);
#endif
  STEP(2a, slot[me] = SLOT(ACQUIRING, blk));
open_b:
  Open(me, blk);
opened:
#ifndef TAKE_BEFORE_OPEN
  //     now that its own slot is HELD: if (!cell.compare_exchange(seen, Emptied(seen))) release;
  //     somebody else has it
#ifdef TAKE_WITHOUT_CAS
  STEP(12f, assert(cell == seen); cell = EMPTIED(seen); seen = 0);
#else
  STEP(12f, if :: cell == seen -> cell = EMPTIED(seen); seen = 0 :: else -> seen = 0; goto release fi);
#endif
#endif
  if
  :: sends_on
  :: goto release
  fi;
send:
  STEP(12, seen = cell; if :: IS_FULL(seen) -> seen = 0; if :: goto send :: goto release fi :: else fi);
  STEP(12a, slot[me] = TRANSIT_SLOT(blk, TURN(seen)));
  STEP(12b, if :: cell == seen -> cell = FULL(TURN(seen), blk, GENERATION(word[blk])); seen = 0; sends_on = false :: else -> seen = 0; AGAIN(me); goto send fi);
  STEP(12c, LOOK_AFTER_ENTRY(GONE(2)));
release:
  Release(me, blk);
release_pending:
  LATER(over);
killed:
  atomic { dead[me] = true; takes = 0; sends_on = false; blk = 0; h = 0; seen = 0; w = 0 };
over:
  skip
}

init {
  atomic {
    run worker();
    run sender(0, 0);
#ifdef TWO_SENDERS
    run sender(1, 1);
    run receiver(2, 2, false)
#else
    run receiver(1, 1, true);
    run receiver(2, 1, false)
#endif
  }
}

// What all processes see: block words and slots, and what must hold after every change of them.
//
// Words and slots are packed as in proto/layout/block_word.h and proto/layout/slot.h, with fewer bits.
//
// STEP(rule, ...), of a client, and WORKER_STEP(rule, ...) are one access to memory that others write
// too, together with the private work up to the next such access. `rule` is the rule of README.md that
// it carries out; the comment above it is the line of C++. Before each of them the process may be killed.
// A process that is stopped is one that takes no step for as long as the others please, and that Spin
// tries by itself.
//
// Memory is sequentially consistent here. The C++ needs that where a process stores an intent and then
// loads what the other side stores: its slot, then the word; FROZEN, then the slots. There both sides are
// seq_cst, or have a locked instruction between the two.
//
// A configuration defines before it includes this file:
//   CLIENTS, NS     client processes, numbered from 0, and slots of each
//   S0              slots of session 0, the worker's own
//   BLOCKS          1 or 2
//   ERAS            2 or 4
//   DEATHS          how many clients may be killed
//   WORKER_DEATHS   how often the worker may be

// ---- The block word: number of the last Send | SENT | FROZEN | FREED | era | refs | generation.
#ifndef REF_BITS
#define REF_BITS 3
#endif
#ifndef MAX_GENERATION
#define MAX_GENERATION 3
#endif
#define MAX_REFS ((1 << REF_BITS) - 1)
#define ONE_REF 4
#define ONE_ERA (ONE_REF << REF_BITS)
#define FREED (ONE_ERA << 2)
#define FROZEN (ONE_ERA << 3)
#define SENT (ONE_ERA << 4)  // the reference of that Send has not been taken
#define ONE_SEND (ONE_ERA << 5)
#define GENERATION(w) ((w) & 3)
#define REFS(w) (((w) >> 2) & MAX_REFS)
#define ERA(w) (((w) >> (2 + REF_BITS)) & 3)
#define IS_PRIVATE(w) (REFS(w) == 0 && !((w) & (FREED | FROZEN)))
#define RELEASED(w) ((w) - ONE_REF + (REFS(w) == 1 -> FREED : 0))
#ifdef SENDS_ARE_ALIKE
#define SEND_NUMBER(w) 0
#define NEXT_SEND(w) 0
#else
#define SEND_NUMBER(w) (((w) >> (7 + REF_BITS)) & 1)
#define NEXT_SEND(w) (1 - SEND_NUMBER(w))
#endif
#define SENT_AGAIN(w) (((w) ^ ONE_SEND) | SENT)
short word[BLOCKS];

// ---- The slot: era (VOID), number of the Send or turn of the entry (TRANSIT) | block | state.
#define FREE 0
#define ACQUIRING 1
#define HELD 2
#define RELEASING 3
#define VOID 4
#define TRANSIT 5  // a reference on its way to somebody else; counts like HELD
#define STATE(s) ((s) & 7)
#define BLOCK(s) (((s) >> 3) & 1)
#define SLOT(state, b) ((state) | (b) << 3)
#define VOID_SLOT(b, era) (VOID | (b) << 3 | (era) << 4)
#define TRANSIT_SLOT(b, number) (TRANSIT | (b) << 3 | (number) << 4)
#define SLOT_NUMBER(s) ((s) >> 4)
#define SESSION0 (CLIENTS * NS)  // the first slot of session 0
#define SLOTS (CLIENTS * NS + S0)
byte slot[SLOTS];

// The number of slots k for which F(k, b) is true.
#if SLOTS == 3
#define COUNT_SLOTS(F, b) (F(0, b) + F(1, b) + F(2, b))
#elif SLOTS == 4
#define COUNT_SLOTS(F, b) (F(0, b) + F(1, b) + F(2, b) + F(3, b))
#elif SLOTS == 5
#define COUNT_SLOTS(F, b) (F(0, b) + F(1, b) + F(2, b) + F(3, b) + F(4, b))
#elif SLOTS == 6
#define COUNT_SLOTS(F, b) (F(0, b) + F(1, b) + F(2, b) + F(3, b) + F(4, b) + F(5, b))
#endif
#define HOLDS(k, b) (slot[k] == SLOT(HELD, b) || (slot[k] & 15) == SLOT(TRANSIT, b))
#define IN_FLIGHT(k, b) (slot[k] == SLOT(ACQUIRING, b) || slot[k] == SLOT(RELEASING, b))
#define CARRIES(k, b) (slot[k] == TRANSIT_SLOT(b, SEND_NUMBER(word[b])))
#define IN_USE(k, b) (slot[k] != FREE)

// ---- Processes.
#define WORKER CLIENTS
bool dead[CLIENTS];    // its pidfd is readable, which may be a moment after it was killed
bool reaped[CLIENTS];  // all slots of the dead client are FREE
bool done[CLIENTS];    // it has done its part, and lives on idly
byte deaths = DEATHS;
byte worker_deaths = WORKER_DEATHS;

// ---- Progress. With PROGRESS everyone but one process may stop for ever, at any moment: from then on
// only `solo` moves. It must come to its end. AGAIN stands where a loop starts over, and counts; nothing
// but a loop could hold a process up, for no step of an operation waits for a condition.
#ifdef PROGRESS
#define NOBODY 255
byte solo = NOBODY;
byte laps;
active proctype stop_all_but_one() {
  if
  :: atomic { solo = 0 }
  :: atomic { solo = 1 }
  :: atomic { solo = 2 }
  :: atomic { solo = WORKER }
  fi
}
#define RUNS(p) (solo == NOBODY || solo == (p))
#define RUN(p) RUNS(p) ->
#define KILL solo == NOBODY &&
#define IS_SOLO(p) (solo == (p))
#define AGAIN(p) if :: solo == (p) -> laps++; assert(laps < 8) :: else fi
#else
#define RUNS(p) true
#define RUN(p)
#define KILL
#define IS_SOLO(p) false
#define AGAIN(p) skip
#endif

#ifdef EOF_IS_DEATH
// The broken rule: a client whose connection ended is reaped, though it lives.
active proctype hang_up() {
  if
  :: atomic { dead[0] = true }
  :: atomic { dead[1] = true }
  fi
}
#endif

#ifndef STEP
#define STEP(rule, ...)                                   \
  if                                                      \
  :: atomic { RUN(me) __VA_ARGS__ }                       \
  :: atomic { KILL deaths > 0 -> deaths--; goto killed }  \
  fi
#endif
#ifndef WORKER_STEP
#define WORKER_STEP(rule, ...)                                          \
  if                                                                    \
  :: atomic { RUN(WORKER) __VA_ARGS__ }                                 \
  :: atomic { KILL worker_deaths > 0 -> worker_deaths--; goto killed }  \
  fi
#endif

// ---- Safety. Checked after every change of a word, and whenever a slot becomes HELD: nobody holds a
// reference that is not counted, so that nothing can be freed while somebody uses it.
// BROKEN says that a rule was taken out. That must be found by the harm it does, so the invariants
// whose breach does no harm by itself are then not checked.
#ifdef BROKEN
#define INVARIANT(x) skip
#else
#define INVARIANT(x) assert(x)
#endif
#define CHECK(b)                                                         \
  assert((word[b] & FROZEN) || REFS(word[b]) >= COUNT_SLOTS(HOLDS, b));  \
  assert(!(word[b] & FREED) || REFS(word[b]) == 0);                      \
  INVARIANT(!(word[b] & SENT) || COUNT_SLOTS(CARRIES, b) > 0)

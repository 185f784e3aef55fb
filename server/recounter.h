// Counts the references to a block anew, from the slots, where a death left it unknown whether a
// reference is in the count of the block's word (rules 6, 8 and 9 of tests/model/README.md).
//
// All words of a batch are frozen; then one pass over the slots of all sessions counts them, and
// turns away who is in the middle of a step; then each word is given its count, under the next era.
// So the slots of a pool are read once for a batch, however many words are in it; that takes about
// a nanosecond for each slot the pool's sessions ever used. Meanwhile whoever opens one of these
// blocks waits, who releases one goes on and finishes later, and everything else is as ever. The
// recount waits for nobody: a process that is stopped in the middle of a step finds, when it goes
// on, that it was left out.
//
// An era must not be used again while a process that was left out under it may still hold a look at
// a word of that era. Slots that were turned are therefore remembered until they are written again.
// With 16 eras a recount is put off while as many processes are stopped in the middle of a step on
// one block. A process in the middle of more steps than a block can have references is lying: no
// more of its slots are remembered than that, whatever becomes of it.
//
// For one thread at a time.

#ifndef SPANPOOL_SERVER_RECOUNTER_H_
#define SPANPOOL_SERVER_RECOUNTER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "allocator/units.h"
#include "proto/layout/slot.h"
#include "server/pool_arenas.h"
#include "server/recount_journal.h"
#include "server/session.h"
#include "server/worker_references.h"

namespace spanpool {

class Recounter {
 public:
  struct Options {
    // All that can count up a word. `sessions` is asked once the words are frozen.
    std::function<std::vector<std::shared_ptr<Session>>()> sessions;
    WorkerReferences* worker = nullptr;
    PoolArenas* arenas = nullptr;
    RecountJournal* journal = nullptr;
    // A slot of a session makes no sense. Under no lock.
    std::function<void(Session&, const char* what)> lie;
  };
  explicit Recounter(Options options) : options_(std::move(options)) {}
  Recounter(const Recounter&) = delete;
  Recounter& operator=(const Recounter&) = delete;

  enum class Result : uint8_t {
    kExact,   // the word says how many slots hold the block; or it has no references at all
    kPutOff,  // no era is left; nothing was done
    kLost,    // somebody writes over the word; its span is to be given up
  };
  // Recounts the blocks of `granules`, which are distinct and have words. In flight slots of dead
  // sessions that name one of them are FREE afterwards, unless it was put off.
  std::vector<Result> Recount(absl::Span<const GranuleId> granules);

  // After a restart, before anything else: recounts what the last worker did not finish, and learns
  // which slots it had turned.
  void Resume();

  // Slots that were turned and may stand yet.
  size_t remembered() const { return remembered_; }
  uint64_t recounts() const { return recounts_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kFirstForget = 4096;

  struct Word {
    GranuleId granule;
    layout::SharedWord* shared;
    Result result = Result::kExact;
    bool frozen = false;
    uint32_t era = 0;    // the one while it is frozen
    uint32_t count = 0;  // slots that hold it
  };
  // A slot that was turned to VOID.
  struct Turned {
    std::weak_ptr<Session> session;
    bool worker = false;  // session 0's
    uint32_t slot = 0;
    uint64_t bits = 0;
  };

  // Rule 6a.
  void Freeze(Word* word);
  // Rule 6b, on all slots; then 6c.
  void CountAndThaw(std::vector<Word>* words);
  void ScanMemory(SessionMemory& memory, const std::shared_ptr<Session>& session, bool dead,
                  std::vector<Word>* words);
  void Thaw(Word* word);
  // The eras that slots turned for `granule` still say, a bit for each.
  uint32_t TakenEras(GranuleId granule);
  bool Stands(const Turned& turned) const;
  // Forgets the slots that were written since they were turned, and those of liars.
  void Forget();

  const Options options_;
  // Which of a batch's words a granule is, while there is a batch.
  absl::flat_hash_map<GranuleId, uint32_t> index_;
  absl::flat_hash_map<GranuleId, std::vector<Turned>> turned_;
  size_t remembered_ = 0;  // in turned_
  size_t forget_at_ = kFirstForget;
  std::atomic<uint64_t> recounts_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_RECOUNTER_H_

// Which words may be frozen, so that a restarted worker finds them.
//
// A recount says which words it is about to freeze, and that it is done with all of them. Should
// the worker die in between, its successor recounts those again before it does anything else (rules
// 8a and 8b of tests/model/README.md); so whatever implements this keeps it where the successor
// finds it, and has it there when a call returns.

#ifndef SPANPOOL_SERVER_RECOUNT_JOURNAL_H_
#define SPANPOOL_SERVER_RECOUNT_JOURNAL_H_

#include <vector>

#include "absl/types/span.h"
#include "allocator/units.h"

namespace spanpool {

// For one thread at a time.
class RecountJournal {
 public:
  virtual ~RecountJournal() = default;
  // These words may be frozen from now on; none was.
  virtual void Begin(absl::Span<const GranuleId> words) = 0;
  // No word is.
  virtual void End() = 0;
  // What was begun and not ended.
  virtual std::vector<GranuleId> Unfinished() const = 0;
};

// One that dies with the worker.
class MemoryRecountJournal : public RecountJournal {
 public:
  void Begin(absl::Span<const GranuleId> words) override {
    words_.assign(words.begin(), words.end());
  }
  void End() override { words_.clear(); }
  std::vector<GranuleId> Unfinished() const override { return words_; }

 private:
  std::vector<GranuleId> words_;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_RECOUNT_JOURNAL_H_

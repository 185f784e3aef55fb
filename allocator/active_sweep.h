// Whether a sweep is still going on: one word that holds who is in it and whether work is left.
//
// Two bits of knowledge decide that a sweep is over: nothing is left to take, and nobody is still
// working on what he took. Kept in two variables they can be read between the moment a span is
// taken and the moment its taker is counted, and the sweep is declared over too early. (Go 1.16 did
// not count sweepers that came in by another door; Go 1.17 counted them after they had taken a
// span.) Here they are one word, changed by compare-and-swap:
//
//   bit 31       drained: nothing is left to take
//   bits 0..30   sweepers that have begun and not ended
//
// A sweeper begins *before* it may take a span; once drained is set nobody can begin. So the word
// "drained, 0 sweepers" is final until the next sweep, and no span is being swept then. The one who
// starts the next sweep counts himself first and clears drained when everything is prepared.
//
// Thread-safe.

#ifndef SPANPOOL_ALLOCATOR_ACTIVE_SWEEP_H_
#define SPANPOOL_ALLOCATOR_ACTIVE_SWEEP_H_

#include <atomic>
#include <cstdint>
#include <utility>

#include "allocator/check.h"
#include "allocator/units.h"

namespace spanpool {

class ActiveSweep {
 public:
  // The right to take and sweep spans, while it exists. Taking a span requires one, so nobody can
  // forget to be counted.
  class Token {
   public:
    Token() = default;
    Token(Token&& other) noexcept : sweep_(std::exchange(other.sweep_, nullptr)) {}
    Token& operator=(Token&& other) noexcept {
      End();
      sweep_ = std::exchange(other.sweep_, nullptr);
      return *this;
    }
    ~Token() { End(); }

    // False: the sweep is drained, there is nothing to take.
    explicit operator bool() const { return sweep_ != nullptr; }
    // What it is a token of; requires one.
    ActiveSweep& sweep() const { return *sweep_; }

    // Gives the right up early. True if that ended the sweep.
    bool End() {
      ActiveSweep* const sweep = std::exchange(sweep_, nullptr);
      return sweep != nullptr && sweep->End();
    }

   private:
    friend class ActiveSweep;
    explicit Token(ActiveSweep* sweep) : sweep_(sweep) {}
    ActiveSweep* sweep_ = nullptr;
  };

  // Joins the sweep; an empty token if it is drained.
  Token Begin() {
    uint32_t word = word_.load(std::memory_order_relaxed);
    do {
      if ((word & kDrained) != 0) return Token();
      SPANPOOL_CHECK_LT(word, kDrained - 1);
      // acquire: pairs with the release in Open, so that the sweeper sees what there is to take.
    } while (!word_.compare_exchange_weak(word, word + 1, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    return Token(this);
  }

  // Says that nothing is left to take. Only a sweeper can know.
  void MarkDrained(const Token& token) {
    SPANPOOL_CHECK(token.sweep_ == this);
    word_.fetch_or(kDrained, std::memory_order_relaxed);
  }

  // Pages whose sweeping has begun since the sweep was restarted. Counted by those who sweep,
  // before they do.
  void CountSwept(const Token& token, PageCount pages) {
    SPANPOOL_CHECK(token.sweep_ == this);
    pages_swept_.fetch_add(pages.value(), std::memory_order_relaxed);
  }
  PageCount pages_swept() const { return PageCount(pages_swept_.load(std::memory_order_relaxed)); }

  // Nothing is left and nobody is at work.
  bool done() const {
    // acquire: pairs with the release in End, so that all sweeping is seen.
    return word_.load(std::memory_order_acquire) == kDrained;
  }

  // Returns once the sweep is done. May miss that and wait for the next one's end: the caller makes
  // sure that sweepers go on.
  void WaitUntilDone() const {
    for (uint32_t word = word_.load(std::memory_order_acquire); word != kDrained;
         word = word_.load(std::memory_order_acquire)) {
      word_.wait(word, std::memory_order_acquire);
    }
  }

  // Makes the caller the first sweeper of the next sweep, if the last one is done; else an empty
  // token. One of several callers wins. Nobody joins, and nothing is done, before Open.
  Token Restart() {
    uint32_t expected = kDrained;
    // acquire: pairs with the release in End; all of the last sweep is seen.
    if (!word_.compare_exchange_strong(expected, kDrained | 1, std::memory_order_acquire,
                                       std::memory_order_relaxed)) {
      return Token();
    }
    pages_swept_.store(0, std::memory_order_relaxed);
    return Token(this);
  }
  // There is something to take now: others may join. By the holder of Restart's token.
  void Open(const Token& token) {
    SPANPOOL_CHECK(token.sweep_ == this);
    // release: pairs with the acquire in Begin.
    word_.fetch_and(~kDrained, std::memory_order_release);
  }

  uint32_t sweepers() const { return word_.load(std::memory_order_relaxed) & ~kDrained; }

 private:
  static constexpr uint32_t kDrained = uint32_t{1} << 31;

  bool End() {
    // release: pairs with the acquire in done() and Restart().
    const uint32_t before = word_.fetch_sub(1, std::memory_order_release);
    SPANPOOL_CHECK_NE(before & ~kDrained, 0u);
    if (before != (kDrained | 1)) return false;
    word_.notify_all();
    return true;
  }

  // Before the first sweep there is nothing to take.
  std::atomic<uint32_t> word_{kDrained};
  std::atomic<uint64_t> pages_swept_{0};
};

}  // namespace spanpool

#endif  // SPANPOOL_ALLOCATOR_ACTIVE_SWEEP_H_

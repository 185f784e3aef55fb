// What no hand-over can do without: kWindow preallocated blocks in shared memory, used in turn.
//
//   floor_program ring       the ring alone
//   floor_program protocol   the ring, and what the reference protocol does to the blocks' words:
//                            shared, opened, released by the receiver, released and at once
//                            collected by the sender. Four compare-and-swaps, on words that lie
//                            as those of neighbouring blocks of a pool do. No slots, no
//                            allocator, no checks but those that a compare-and-swap makes

#include <atomic>
#include <functional>
#include <iostream>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "allocator/units.h"
#include "bench/handoff/two_sides.h"
#include "bench/spsc_ring.h"
#include "proto/layout/block_word.h"

namespace spanpool::bench {
namespace {

using layout::BlockWord;
using Word = std::atomic<uint64_t>;
// As large as a handle.
struct Message {
  uint64_t place;
  uint64_t number;
};
using Ring = SpscRing<Message, kWindow>;

constexpr size_t kLargestBlock = 1 << 20;

struct Shared {
  Ring ring;
  alignas(4096) Word words[kWindow * kLargestBlock / kGranuleBytes];
  alignas(4096) std::byte blocks[kWindow * kLargestBlock];
};

// Changes a word by the transition `to` until the compare-and-swap succeeds.
template <auto to>
BlockWord Change(Word& word) {
  uint64_t bits = word.load(std::memory_order_acquire);
  BlockWord after;
  do {
    after = std::invoke(to, BlockWord(bits));
  } while (!word.compare_exchange_weak(bits, after.bits(), std::memory_order_acq_rel,
                                       std::memory_order_acquire));
  return after;
}

class FloorSide : public Side {
 public:
  FloorSide(Shared* shared, bool words) : shared_(shared), words_(words) {}
  absl::Status Prepare(size_t bytes) override {
    if (bytes > kLargestBlock) return absl::InvalidArgumentError("there are no such blocks");
    bytes_ = bytes;
    return absl::OkStatus();
  }

 protected:
  std::byte* BlockAt(uint64_t place) const { return shared_->blocks + place * bytes_; }
  Word& WordAt(uint64_t place) const { return shared_->words[place * bytes_ / kGranuleBytes]; }

  Shared* const shared_;
  const bool words_;
  size_t bytes_ = 0;
};

class FloorSender final : public FloorSide {
 public:
  using FloorSide::FloorSide;
  absl::Status Prepare(size_t bytes) override {
    // Nobody holds a block between runs but the sender.
    for (Word& word : shared_->words) word.store(0, std::memory_order_relaxed);
    return FloorSide::Prepare(bytes);
  }

  void Run(uint64_t messages) override {
    words_ ? RunWith<true>(messages) : RunWith<false>(messages);
  }

 private:
  template <bool kWords>
  void RunWith(uint64_t messages) {
    Ring& ring = shared_->ring;
    for (uint64_t number = 0; number < messages; ++number) {
      ring.WaitForRoom();
      const uint64_t place = number % kWindow;
      if constexpr (kWords) {
        Word& word = WordAt(place);
        if (!BlockWord(word.load(std::memory_order_relaxed)).is_private()) {
          // The receiver has let go: a place is free for new only then.
          Change<[](BlockWord last) { return last.Released().Collected(); }>(word);
        }
      }
      WriteEnds(BlockAt(place), bytes_, number);
      if constexpr (kWords) {
        // Nobody else changes a private word.
        Word& word = WordAt(place);
        const BlockWord last(word.load(std::memory_order_relaxed));
        word.store(last.Shared().bits(), std::memory_order_release);
      }
      ring.Push({.place = place, .number = number});
    }
  }
};

class FloorReceiver final : public FloorSide {
 public:
  using FloorSide::FloorSide;
  void Run(uint64_t messages) override {
    words_ ? RunWith<true>(messages) : RunWith<false>(messages);
  }

 private:
  template <bool kWords>
  void RunWith(uint64_t messages) {
    Ring& ring = shared_->ring;
    for (uint64_t number = 0; number < messages; ++number) {
      const uint64_t place = ring.Front().place;
      if constexpr (kWords) Change<&BlockWord::Acquired>(WordAt(place));
      CheckEnds(BlockAt(place), bytes_, number);
      if constexpr (kWords) Change<&BlockWord::Released>(WordAt(place));
      ring.DropFront();
    }
  }
};

template <typename S>
MakeSide Make(bool words) {
  return [words](void* shared) -> absl::StatusOr<std::unique_ptr<Side>> {
    return std::make_unique<S>(static_cast<Shared*>(shared), words);
  };
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  using namespace spanpool::bench;  // NOLINT: this file is one program
  const std::string_view what = argc == 2 ? argv[1] : "";
  if (what != "ring" && what != "protocol") {
    std::cerr << "usage: floor_program ring | protocol\n";
    return 2;
  }
  const bool words = what == "protocol";
  return RunTwoSides(sizeof(Shared), Make<FloorSender>(words), Make<FloorReceiver>(words));
}

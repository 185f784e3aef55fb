#include "client/channel_ring.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <functional>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "client/history.h"
#include "client/schedules.h"
#include "gtest/gtest.h"
#include "proto/layout/channel_layout.h"
#include "proto/layout/step.h"

namespace spanpool::internal {
namespace {

using Found = ChannelRing::Found;
using Kind = Operation::Kind;
using Result = Operation::Result;
using layout::ChannelHeader;
using layout::HandleBits;

// Memory that forked children share.
class Memory {
 public:
  explicit Memory(size_t bytes)
      : bytes_(bytes),
        at_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    EXPECT_NE(at_, MAP_FAILED);
  }
  ~Memory() { munmap(at_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* at() const { return at_; }
  size_t bytes() const { return bytes_; }

 private:
  const size_t bytes_;
  void* const at_;
};

class Ring {
 public:
  explicit Ring(uint32_t capacity) : memory_(layout::ChannelBytes(capacity)) { New(capacity); }

  // A new channel in the same memory.
  void New(uint32_t capacity) {
    std::memset(memory_.at(), 0, layout::ChannelBytes(capacity));
    ChannelRing::Format(memory_.at(), capacity);
    ring_.emplace(*ChannelRing::At(memory_.at(), memory_.bytes()));
  }

  ChannelRing& operator*() { return *ring_; }
  ChannelRing* operator->() { return &*ring_; }
  ChannelHeader& header() { return *static_cast<ChannelHeader*>(memory_.at()); }
  layout::SharedEntry& entry(uint32_t i) {
    return reinterpret_cast<layout::SharedEntry*>(&header() + 1)[i];
  }
  Memory& memory() { return memory_; }

 private:
  Memory memory_;
  std::optional<ChannelRing> ring_;
};

HandleBits HandleOf(uint32_t value) {
  return {.granule = GranuleId(value), .length = 64, .generation = value};
}

Result ResultOf(Found found) {
  switch (found) {
    case Found::kPlace:
      return Result::kDone;
    case Found::kNothing:
      return Result::kNothing;
    case Found::kClosed:
      return Result::kClosed;
    default:
      return Result::kUnknown;
  }
}

using FillFunction = std::function<bool(const ChannelRing::Place&, const HandleBits&)>;
using TakeFunction = std::function<bool(const ChannelRing::Place&)>;

// With another second step, if `fill` is not null.
Result TrySend(ChannelRing& ring, uint32_t value, const FillFunction& fill = nullptr) {
  ChannelRing::Place place;
  for (;;) {
    const Found found = ring.FindEmpty(&place);
    if (found != Found::kPlace) return ResultOf(found);
    const HandleBits handle = HandleOf(value);
    if (fill != nullptr ? fill(place, handle) : ring.Fill(place, handle)) return Result::kDone;
  }
}
Result TryReceive(ChannelRing& ring, uint32_t* value, const TakeFunction& take = nullptr) {
  ChannelRing::Place place;
  for (;;) {
    const Found found = ring.FindFull(&place);
    if (found != Found::kPlace) return ResultOf(found);
    const HandleBits handle = place.entry.handle(0);
    *value = static_cast<uint32_t>(handle.generation);
    if (take != nullptr ? take(place) : ring.Take(place)) {
      EXPECT_EQ(handle, HandleOf(*value));
      return Result::kDone;
    }
  }
}

TEST(ChannelRing, HandsOverInOrder) {
  for (const uint32_t capacity : {1u, 2u, 8u}) {
    Ring ring(capacity);
    uint32_t sent = 0;
    uint32_t received = 0;
    uint32_t value = 0;
    for (int round = 0; round < 100; ++round) {
      while (TrySend(*ring, sent) == Result::kDone) ++sent;
      EXPECT_EQ(sent - received, capacity);
      EXPECT_EQ(ring->size(), capacity);
      for (uint32_t i = 0; i <= static_cast<uint32_t>(round) % capacity; ++i) {
        ASSERT_EQ(TryReceive(*ring, &value), Result::kDone);
        ASSERT_EQ(value, received++);
      }
    }
    while (TryReceive(*ring, &value) == Result::kDone) ASSERT_EQ(value, received++);
    EXPECT_EQ(received, sent);
    EXPECT_EQ(ring->size(), 0u);
  }
}

TEST(ChannelRing, TurnsAndPositionsWrapUnnoticed) {
  constexpr uint32_t kCapacity = 2;
  Ring ring(kCapacity);
  // Three turns before the turn wraps.
  const uint64_t position = uint64_t{kCapacity} * (layout::kTurnMask - 2);
  ring.header().tail = position;
  ring.header().head = position;
  for (uint32_t i = 0; i < kCapacity; ++i) {
    const layout::ChannelEntry empty = layout::ChannelEntry::Empty(layout::kTurnMask - 2);
    ring.entry(i).first = empty.first();
  }
  for (uint32_t i = 0; i < 20; ++i) {
    uint32_t value = 0;
    ASSERT_EQ(TrySend(*ring, i), Result::kDone);
    ASSERT_EQ(TryReceive(*ring, &value), Result::kDone);
    ASSERT_EQ(value, i);
    ASSERT_EQ(TryReceive(*ring, &value), Result::kNothing);
  }
}

TEST(ChannelRing, AClosedChannelIsEmptiedAndThenEnds) {
  Ring ring(4);
  EXPECT_EQ(TrySend(*ring, 1), Result::kDone);
  EXPECT_EQ(TrySend(*ring, 2), Result::kDone);
  ring->Close();
  EXPECT_EQ(TrySend(*ring, 3), Result::kClosed);
  uint32_t value = 0;
  EXPECT_EQ(TryReceive(*ring, &value), Result::kDone);
  EXPECT_EQ(TryReceive(*ring, &value), Result::kDone);
  EXPECT_EQ(value, 2u);
  EXPECT_EQ(TryReceive(*ring, &value), Result::kClosed);
  EXPECT_EQ(TryReceive(*ring, &value), Result::kClosed);
  ring->Close();
  EXPECT_EQ(TrySend(*ring, 4), Result::kClosed);
}

// Who looked before the close, and fills after somebody was told of the end.
TEST(ChannelRing, ALateSenderFindsTheEntrySealed) {
  Ring ring(4);
  ChannelRing::Place place;
  ASSERT_EQ(ring->FindEmpty(&place), Found::kPlace);
  ring->Close();
  uint32_t value = 0;
  EXPECT_EQ(TryReceive(*ring, &value), Result::kClosed);
  EXPECT_FALSE(ring->Fill(place, HandleOf(1)));
  EXPECT_EQ(ring->FindEmpty(&place), Found::kClosed);
  EXPECT_EQ(TryReceive(*ring, &value), Result::kClosed);
}

TEST(ChannelRing, MemoryThatHoldsNoChannelIsRefused) {
  Ring ring(8);
  const auto at = [&ring] { return ChannelRing::At(ring.memory().at(), ring.memory().bytes()); };
  EXPECT_TRUE(at().ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(
      ChannelRing::At(ring.memory().at(), ring.memory().bytes() - 1).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(ChannelRing::At(ring.memory().at(), 8).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      ChannelRing::At(static_cast<std::byte*>(ring.memory().at()) + 16, 300).status()));
  for (const uint32_t capacity : {0u, 3u, 16u, 1u << 21, 1u << 31, UINT32_MAX}) {
    ring.header().capacity = capacity;
    EXPECT_TRUE(absl::IsFailedPrecondition(at().status())) << capacity;
  }
  ring.header().capacity = 8;
  EXPECT_TRUE(at().ok());
  ring.header().version = 2;
  EXPECT_TRUE(absl::IsFailedPrecondition(at().status()));
  ring.header().version = 1;
  ring.header().magic = 0;
  EXPECT_TRUE(absl::IsFailedPrecondition(at().status()));
}

TEST(ChannelRing, PositionsThatCannotBeAreNoticed) {
  ChannelRing::Place place;
  for (const uint64_t position : {uint64_t{9}, uint64_t{1} << 20, uint64_t{1} << 31}) {
    Ring ring(4);
    ring.header().tail = position;
    ring.header().head = position;
    EXPECT_EQ(ring->FindFull(&place), Found::kBroken) << position;
    EXPECT_EQ(ring->FindEmpty(&place), Found::kBroken) << position;
    EXPECT_LE(ring->size(), 4u);
  }
}

// Random bytes over everything that is shared: each call returns, with whatever result.
TEST(ChannelRing, ScribblingOverItAllMakesNoCallHang) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const bool subtle : {false, true}) {
    for (int round = 0; round < 2000; ++round) {
      Ring ring(4);
      const auto number = [&] { return subtle ? random() % 8 : random(); };
      ring.header().tail = number();
      ring.header().head = number();
      ring.header().closed = static_cast<uint32_t>(random() % 2);
      ring.header().items = static_cast<uint32_t>(random());
      ring.header().room = static_cast<uint32_t>(random());
      for (uint32_t i = 0; i < 4; ++i) {
        ring.entry(i).first = number() << 32 | (random() % 4) << 62;
        ring.entry(i).second = number();
      }
      ChannelRing::Place place;
      for (int i = 0; i < 10; ++i) {
        if (ring->FindEmpty(&place) == Found::kPlace) (void)ring->Fill(place, HandleOf(1));
        if (ring->FindFull(&place) == Found::kPlace) (void)ring->Take(place);
      }
    }
  }
}

// --- histories ---

// What the processes of one run did. Operations are recorded in shared memory, so that those of
// processes that were killed are known.
class Recorder {
 public:
  Recorder() : memory_(sizeof(Log)), log_(*new (memory_.at()) Log) {}

  void New() {
    log_.clock.store(1);
    log_.used.store(0);
  }

  Result Send(ChannelRing& ring, int process, uint32_t value, const FillFunction& fill = nullptr) {
    Operation& mine = Begin({.kind = Kind::kSend, .value = value, .process = process});
    const Result result = TrySend(ring, value, fill);
    return End(mine, result);
  }
  Result Receive(ChannelRing& ring, int process, const TakeFunction& take = nullptr) {
    Operation& mine = Begin({.kind = Kind::kReceive, .process = process});
    uint32_t value = 0;
    const Result result = TryReceive(ring, &value, take);
    mine.value = result == Result::kDone ? value : 0;
    return End(mine, result);
  }
  void Close(ChannelRing& ring, int process) {
    Operation& mine = Begin({.kind = Kind::kClose, .process = process});
    ring.Close();
    End(mine, Result::kDone);
  }

  std::vector<Operation> history() const {
    return {log_.operations.begin(), log_.operations.begin() + log_.used.load()};
  }

 private:
  struct Log {
    std::atomic<uint64_t> clock{1};
    std::atomic<uint32_t> used{0};
    std::array<Operation, 64> operations;
  };

  Operation& Begin(Operation operation) {
    const uint32_t index = log_.used.fetch_add(1);
    EXPECT_LT(index, log_.operations.size());
    Operation& mine = log_.operations[index];
    mine = operation;
    // seq_cst, here and in End: everything of the operation is in between.
    mine.begin = log_.clock.fetch_add(1);
    return mine;
  }
  Result End(Operation& mine, Result result) {
    mine.end = log_.clock.fetch_add(1);
    mine.result = result;
    return result;
  }

  Memory memory_;
  Log& log_;
};

// Four to six threads at once, on a queue that is often full and often empty, that yield at random
// steps: 600 histories of up to 64 operations.
TEST(ChannelRing, RecordedHistoriesAreThoseOfAQueue) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  static thread_local std::minstd_rand* yields = nullptr;
  layout::step_hook.store([](const char*) {
    if (yields != nullptr && (*yields)() % 4 == 0) std::this_thread::yield();
  });
  Ring ring(8);
  Recorder recorder;
  for (int round = 0; round < 600 && !testing::Test::HasFailure(); ++round) {
    const uint32_t capacity = 1u << (random() % 3);
    const int threads = 4 + static_cast<int>(random() % 3);
    const int each = 60 / threads;
    const bool closes = random() % 2 == 0;
    ring.New(capacity);
    recorder.New();
    std::atomic<int> ready{0};
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) {
      running.emplace_back([&, t, mine = random()] {
        std::minstd_rand dice(static_cast<uint32_t>(mine) | 1);
        yields = &dice;
        ready.fetch_add(1);
        while (ready.load() < threads) std::this_thread::yield();
        for (int i = 0; i < each; ++i) {
          if (dice() % 2 == 0) {
            recorder.Send(*ring, t, static_cast<uint32_t>(t * 100 + i));
          } else {
            recorder.Receive(*ring, t);
          }
        }
        if (closes && t == 0) recorder.Close(*ring, t);
        yields = nullptr;
      });
    }
    for (std::thread& thread : running) thread.join();
    EXPECT_TRUE(IsExplained(recorder.history(), capacity)) << ToString(recorder.history());
  }
  layout::step_hook.store(nullptr);
}

// Three processes, every order of their steps with few preemptions, one of them dying at each of
// its steps: what is left afterwards is what the history says, and comes out.
class ChannelRingSchedules : public testing::TestWithParam<uint32_t> {
 protected:
  // Runs `programs`, then empties the queue.
  void Check(const Schedules::Options& options,
             const std::vector<std::function<void()>>& programs) {
    const uint32_t capacity = GetParam();
    const uint64_t runs = Schedules::RunAll(
        options,
        [&] {
          ring_.New(capacity);
          recorder_.New();
        },
        programs,
        [&] {
          while (recorder_.Receive(*ring_, 9) == Result::kDone) {
          }
          EXPECT_TRUE(IsExplained(recorder_.history(), capacity)) << ToString(recorder_.history());
          return !HasFailure();
        });
    RecordProperty("runs", std::to_string(runs));
    // Fewer would mean that no step was passed.
    EXPECT_GT(runs, 1000u);
  }
  void Send(int process, uint32_t value) { recorder_.Send(*ring_, process, value); }
  void Receive(int process) { recorder_.Receive(*ring_, process); }
  void Close(int process) { recorder_.Close(*ring_, process); }

  Ring ring_{8};
  Recorder recorder_;
};

INSTANTIATE_TEST_SUITE_P(Capacities, ChannelRingSchedules, testing::Values(1, 2, 4));

TEST_P(ChannelRingSchedules, TwoSendersAndAReceiver) {
  Check({.preemptions = 2, .deaths = 1}, {[&] { Send(0, 1); },
                                          [&] {
                                            Send(1, 2);
                                            Send(1, 3);
                                          },
                                          [&] {
                                            Receive(2);
                                            Receive(2);
                                          }});
}

TEST_P(ChannelRingSchedules, ASenderAndTwoReceivers) {
  Check({.preemptions = 2, .deaths = 1}, {[&] {
                                            Send(0, 1);
                                            Send(0, 2);
                                            Send(0, 3);
                                          },
                                          [&] { Receive(1); },
                                          [&] {
                                            Receive(2);
                                            Receive(2);
                                          }});
}

TEST_P(ChannelRingSchedules, OneSendsWhileAnotherCloses) {
  Check({.preemptions = 2, .deaths = 1}, {[&] {
                                            Send(0, 1);
                                            Send(0, 2);
                                          },
                                          [&] { Close(1); },
                                          [&] {
                                            Receive(2);
                                            Receive(2);
                                          }});
}

TEST_P(ChannelRingSchedules, ThreePreemptions) {
  Check({.preemptions = 3, .deaths = 0}, {[&] { Send(0, 1); },
                                          [&] {
                                            Send(1, 2);
                                            Receive(1);
                                          },
                                          [&] { Receive(2); }});
}

// That the tests above would notice: a receiver that takes without a compare-and-swap (rule 12f),
// and a sender that does not look at the turn.
TEST(Schedules, AQueueThatHandsOutTwiceIsFound) {
  Ring ring(2);
  Recorder recorder;
  bool explained = true;
  const auto take = [&ring](const ChannelRing::Place& place) {
    SPANPOOL_STEP("wrong");
    const auto empty = layout::ChannelEntry::Empty(place.entry.turn() + 1);
    place.at->second.store(empty.second());
    place.at->first.store(empty.first());
    ring.header().head.store(place.position + 1);
    return true;
  };
  Schedules::RunAll(
      {.preemptions = 1},
      [&] {
        ring.New(2);
        recorder.New();
        recorder.Send(*ring, 0, 1);
      },
      {[&] { recorder.Receive(*ring, 1, take); }, [&] { recorder.Receive(*ring, 2, take); }},
      [&] {
        explained = IsExplained(recorder.history(), 2);
        return explained;
      });
  EXPECT_FALSE(explained);
}

TEST(Schedules, AQueueThatLosesIsFound) {
  Ring ring(2);
  Recorder recorder;
  bool explained = true;
  const auto fill = [&ring](const ChannelRing::Place& place, const HandleBits& handle) {
    SPANPOOL_STEP("wrong");
    const auto full = ChannelRing::Filled(place, handle);
    place.at->second.store(full.second());
    place.at->first.store(full.first());
    ring.header().tail.store(place.position + 1);
    return true;
  };
  Schedules::RunAll(
      {.preemptions = 1},
      [&] {
        ring.New(2);
        recorder.New();
      },
      {[&] { recorder.Send(*ring, 0, 1, fill); }, [&] { recorder.Send(*ring, 1, 2, fill); }},
      [&] {
        while (recorder.Receive(*ring, 9) == Result::kDone) {
        }
        explained = IsExplained(recorder.history(), 2);
        return explained;
      });
  EXPECT_FALSE(explained);
}

TEST(Schedules, EveryOrderOfTwoProgramsComesUpOnce) {
  std::string order;
  std::set<std::string> orders;
  const auto program = [&order](char name) {
    for (int i = 0; i < 3; ++i) {
      SPANPOOL_STEP("step");
      order += name;
    }
  };
  const uint64_t runs = Schedules::RunAll(
      {.preemptions = 10}, [&] { order.clear(); }, {[&] { program('a'); }, [&] { program('b'); }},
      [&] {
        orders.insert(order);
        return true;
      });
  EXPECT_EQ(orders.size(), 20u);  // 6 over 3
  EXPECT_GE(runs, orders.size());
}

// --- deaths ---

// A child is killed at the 1st, 2nd, 3rd … step of its operation, and then another process goes on.
// What the dead one had in hand is in the queue or is not; nothing else is lost, nothing comes
// twice, nobody is held up.
class ChannelRingDeath : public testing::TestWithParam<Kind> {
 protected:
  static constexpr uint32_t kCapacity = 4;

  // Runs `operation` in a child that is killed at step `step`. False: it came to its end before.
  static bool DiesAt(int step, const std::function<void()>& operation) {
    const pid_t child = fork();
    if (child == 0) {
      static int left;
      left = step;
      layout::step_hook.store([](const char*) {
        if (--left == 0) raise(SIGKILL);
      });
      operation();
      _exit(0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status);
  }

  Ring ring_{kCapacity};
  Recorder recorder_;
};

INSTANTIATE_TEST_SUITE_P(Operations, ChannelRingDeath,
                         testing::Values(Kind::kSend, Kind::kReceive, Kind::kClose));

TEST_P(ChannelRingDeath, KilledAtEachStepItHoldsUpNobody) {
  for (uint32_t filled = 0; filled <= kCapacity; ++filled) {
    for (const bool sleepers : {false, true}) {
      int step = 1;
      for (bool died = true; died; ++step) {
        SCOPED_TRACE(testing::Message() << filled << " filled, killed at step " << step);
        ring_.New(kCapacity);
        recorder_.New();
        uint32_t value = 0;
        while (value < filled) recorder_.Send(*ring_, 0, ++value);
        if (sleepers) {  // so that there are wakes to die in
          (void)ring_->items().Announce();
          (void)ring_->room().Announce();
        }
        died = DiesAt(step, [&] {
          if (GetParam() == Kind::kSend) recorder_.Send(*ring_, 1, 100);
          if (GetParam() == Kind::kReceive) recorder_.Receive(*ring_, 1);
          if (GetParam() == Kind::kClose) recorder_.Close(*ring_, 1);
        });
        for (int i = 0; i < 3; ++i) {
          recorder_.Send(*ring_, 0, ++value);
          recorder_.Send(*ring_, 0, ++value);
          recorder_.Receive(*ring_, 2);
        }
        while (recorder_.Receive(*ring_, 2) == Result::kDone) {
        }
        ASSERT_TRUE(IsExplained(recorder_.history(), kCapacity)) << ToString(recorder_.history());
      }
      EXPECT_GT(step, 2);
    }
  }
}

}  // namespace
}  // namespace spanpool::internal

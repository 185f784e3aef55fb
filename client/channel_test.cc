// Channels between sessions of a pool in this process: each session is a process as far as
// references go. Real processes and their deaths are in tests/kill_steps_test.cc
// and tests/random_deaths_test.cc.

#include "spanpool/channel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/fake_pool.h"
#include "client/session_core.h"
#include "gtest/gtest.h"
#include "proto/layout/block_word.h"
#include "proto/layout/channel_layout.h"
#include "proto/layout/handle_bits.h"
#include "spanpool/session.h"

namespace spanpool {
namespace {

using internal::FakePool;
using internal::SessionCore;
using layout::ChannelEntry;
using layout::ChannelHeader;
using layout::SharedEntry;

class ChannelTest : public testing::Test {
 protected:
  Buffer MustAllocate(const std::unique_ptr<Session>& session, uint64_t value, size_t bytes = 256) {
    absl::StatusOr<Buffer> buffer = session->Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    std::memcpy(buffer->data(), &value, sizeof(value));
    return *std::move(buffer);
  }
  static uint64_t ValueOf(const Buffer& buffer) {
    uint64_t value = 0;
    std::memcpy(&value, buffer.data(), sizeof(value));
    return value;
  }
  std::unique_ptr<Channel> MustCreate(uint32_t capacity) {
    absl::StatusOr<std::unique_ptr<Channel>> channel = Channel::Create(*a_, capacity);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return *std::move(channel);
  }
  std::unique_ptr<Channel> MustOpen(const std::unique_ptr<Session>& session, Handle handle) {
    absl::StatusOr<std::unique_ptr<Channel>> channel = Channel::Open(*session, handle);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return *std::move(channel);
  }
  layout::BlockWord Word(const Handle& handle) {
    const layout::HandleBits bits = layout::HandleBits::Unpack(handle.bits[0], handle.bits[1]);
    return layout::BlockWord(pool_.WordOf(bits.granule).load());
  }
  static ChannelHeader& HeaderOf(Channel& channel) {
    return *reinterpret_cast<ChannelHeader*>(const_cast<std::byte*>(channel.block().data()));
  }
  static SharedEntry* EntriesOf(Channel& channel) {
    return reinterpret_cast<SharedEntry*>(&HeaderOf(channel) + 1);
  }
  internal::References& ReferencesOf(const std::unique_ptr<Session>& session) {
    return SessionCore::CoreOf(*session)->references();
  }
  // Ends all sessions: nothing of the pool is left in use.
  void ExpectNothingLeft() {
    for (auto* session : {&a_, &b_, &c_}) {
      if (*session == nullptr) continue;
      ReferencesOf(*session).Settle();
      EXPECT_EQ(ReferencesOf(*session).slots_in_use(), 0u);
      session->reset();
    }
    EXPECT_TRUE(pool_.Empty());
  }

  FakePool pool_{256 << 20};
  std::unique_ptr<Session> a_ = SessionCore::NewSession(pool_.Attach());
  std::unique_ptr<Session> b_ = SessionCore::NewSession(pool_.Attach());
  std::unique_ptr<Session> c_ = SessionCore::NewSession(pool_.Attach());
};

TEST_F(ChannelTest, BuffersComeOutInOrderAndTheirReferenceWithThem) {
  std::unique_ptr<Channel> to = MustCreate(4);
  std::unique_ptr<Channel> from = MustOpen(b_, to->handle());
  for (uint64_t round = 0; round < 20; ++round) {
    for (uint64_t i = 0; i < 4; ++i) {
      Buffer buffer = MustAllocate(a_, round * 4 + i, 100 + i * 10'000);
      ASSERT_TRUE(to->TrySend(std::move(buffer)).ok());
      EXPECT_EQ(buffer.size(), 0u);
    }
    EXPECT_EQ(from->stats().size, 4u);
    for (uint64_t i = 0; i < 4; ++i) {
      absl::StatusOr<Buffer> buffer = from->TryReceive();
      ASSERT_TRUE(buffer.ok()) << buffer.status();
      EXPECT_EQ(ValueOf(*buffer), round * 4 + i);
      EXPECT_EQ(buffer->size(), 100 + i * 10'000);
      const Handle handle = *buffer->Share();
      ReferencesOf(a_).Settle();
      EXPECT_EQ(Word(handle).refs(), 1u);  // the receiver's
    }
  }
  EXPECT_EQ(to->stats().sent, 80u);
  EXPECT_EQ(to->stats().received, 80u);
  to.reset();
  from.reset();
  ExpectNothingLeft();
}

TEST_F(ChannelTest, AFullChannelLeavesTheBufferWithItsSender) {
  std::unique_ptr<Channel> channel = MustCreate(2);
  ASSERT_TRUE(channel->TrySend(MustAllocate(a_, 1)).ok());
  ASSERT_TRUE(channel->TrySend(MustAllocate(a_, 2)).ok());
  Buffer third = MustAllocate(a_, 3);
  EXPECT_TRUE(absl::IsUnavailable(channel->TrySend(std::move(third))));
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      channel->Send(std::move(third), absl::Now() + absl::Milliseconds(1))));
  ASSERT_EQ(third.size(), 256u);
  EXPECT_EQ(ValueOf(third), 3u);
  EXPECT_EQ(ValueOf(*channel->TryReceive()), 1u);
  EXPECT_TRUE(channel->TrySend(std::move(third)).ok());
  EXPECT_EQ(ValueOf(*channel->TryReceive()), 2u);
  EXPECT_EQ(ValueOf(*channel->TryReceive()), 3u);
  channel.reset();
  ExpectNothingLeft();
}

TEST_F(ChannelTest, AnEmptyChannelSaysSoAtTheDeadline) {
  std::unique_ptr<Channel> channel = MustCreate(2);
  EXPECT_TRUE(absl::IsUnavailable(channel->TryReceive().status()));
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(channel->Receive(absl::Now() + absl::Milliseconds(1)).status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(channel->Receive(absl::Now() - absl::Hours(1)).status()));
}

TEST_F(ChannelTest, CapacitiesAreRoundedUp) {
  EXPECT_EQ(MustCreate(1)->stats().capacity, 1u);
  EXPECT_EQ(MustCreate(3)->stats().capacity, 4u);
  EXPECT_EQ(MustCreate(1000)->stats().capacity, 1024u);
  EXPECT_TRUE(absl::IsInvalidArgument(Channel::Create(*a_, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Channel::Create(*a_, (1 << 20) + 1).status()));
}

TEST_F(ChannelTest, AfterCloseTheRestIsReceivedAndThenTheEnd) {
  std::unique_ptr<Channel> to = MustCreate(4);
  std::unique_ptr<Channel> from = MustOpen(b_, to->handle());
  ASSERT_TRUE(to->Send(MustAllocate(a_, 1)).ok());
  ASSERT_TRUE(from->Close().ok());
  Buffer late = MustAllocate(a_, 2);
  EXPECT_TRUE(absl::IsFailedPrecondition(to->Send(std::move(late))));
  EXPECT_EQ(ValueOf(late), 2u);
  EXPECT_TRUE(to->stats().closed);
  EXPECT_EQ(ValueOf(*from->Receive()), 1u);
  EXPECT_TRUE(absl::IsOutOfRange(from->Receive().status()));
  EXPECT_TRUE(absl::IsOutOfRange(from->TryReceive().status()));
}

TEST_F(ChannelTest, CloseWakesAllWhoWait) {
  std::unique_ptr<Channel> full = MustCreate(1);
  std::unique_ptr<Channel> empty = MustCreate(1);
  ASSERT_TRUE(full->Send(MustAllocate(a_, 1)).ok());
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 2; ++i) {
    threads.emplace_back(
        [&, i] { EXPECT_TRUE(absl::IsFailedPrecondition(full->Send(MustAllocate(a_, i)))); });
    threads.emplace_back([&] { EXPECT_TRUE(absl::IsOutOfRange(empty->Receive().status())); });
  }
  while (full->stats().sleeps < 2 || empty->stats().sleeps < 2) std::this_thread::yield();
  EXPECT_TRUE(full->Close().ok());
  EXPECT_TRUE(empty->Close().ok());
  for (std::thread& thread : threads) thread.join();
}

TEST_F(ChannelTest, OtherOwnersOfABufferKeepIt) {
  std::unique_ptr<Channel> to = MustCreate(4);
  std::unique_ptr<Channel> from = MustOpen(b_, to->handle());
  Buffer buffer = MustAllocate(a_, 7);
  const Buffer kept = buffer.Ref();
  Buffer again = buffer.Ref();
  // The same block can be in the channel twice.
  ASSERT_TRUE(to->Send(std::move(buffer)).ok());
  ASSERT_TRUE(to->Send(std::move(again)).ok());
  {
    const Buffer first = *from->Receive();
    const Buffer second = *from->Receive();
    EXPECT_EQ(ValueOf(first), 7u);
    EXPECT_EQ(first.data(), second.data());
    ReferencesOf(a_).Settle();
  }
  EXPECT_EQ(ValueOf(kept), 7u);
}

TEST_F(ChannelTest, WhatWasReceivedCanBeSentOn) {
  std::unique_ptr<Channel> there = MustCreate(2);
  std::unique_ptr<Channel> back = MustCreate(2);
  std::unique_ptr<Channel> there_b = MustOpen(b_, there->handle());
  std::unique_ptr<Channel> back_b = MustOpen(b_, back->handle());
  Buffer ball = MustAllocate(a_, 0);
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_TRUE(there->Send(std::move(ball)).ok());
    Buffer received = *there_b->Receive();
    const uint64_t value = ValueOf(received) + 1;
    std::memcpy(received.data(), &value, sizeof(value));
    ASSERT_TRUE(back_b->Send(std::move(received)).ok());
    ball = *back->Receive();
    ASSERT_EQ(ValueOf(ball), i + 1);
  }
  ball = Buffer();
  there.reset();
  back.reset();
  there_b.reset();
  back_b.reset();
  ExpectNothingLeft();
}

TEST_F(ChannelTest, WhatIsLeftInAChannelIsDroppedWithIt) {
  std::unique_ptr<Channel> to = MustCreate(4);
  std::unique_ptr<Channel> from = MustOpen(b_, to->handle());
  ASSERT_TRUE(to->Send(MustAllocate(a_, 1)).ok());
  Buffer second = MustAllocate(a_, 2);
  const Handle handle = *second.Share();
  ASSERT_TRUE(to->Send(std::move(second)).ok());
  to.reset();
  ReferencesOf(a_).Settle();
  EXPECT_EQ(Word(handle).refs(), 1u);  // somebody may still receive it
  from.reset();
  ReferencesOf(a_).Settle();
  EXPECT_TRUE(Word(handle).freed() || Word(handle).is_private());
  ExpectNothingLeft();
}

TEST_F(ChannelTest, AChannelKeepsTheSessionItIsOf) {
  std::unique_ptr<Channel> to = MustCreate(4);
  std::unique_ptr<Channel> from = MustOpen(b_, to->handle());
  Buffer buffer = MustAllocate(a_, 5);
  a_.reset();
  b_.reset();
  ASSERT_TRUE(to->Send(std::move(buffer)).ok());
  EXPECT_EQ(ValueOf(*from->Receive()), 5u);
}

TEST_F(ChannelTest, WrongUseIsRefused) {
  std::unique_ptr<Channel> channel = MustCreate(4);
  EXPECT_TRUE(absl::IsFailedPrecondition(channel->Send(Buffer())));
  EXPECT_TRUE(absl::IsFailedPrecondition(channel->Send(MustAllocate(b_, 1))));
  absl::StatusOr<Buffer> small = a_->Allocate(16, {.alignment = 16});
  EXPECT_TRUE(absl::IsFailedPrecondition(channel->Send(*std::move(small))));

  Buffer other = MustAllocate(a_, 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(Channel::Open(*b_, *other.Share()).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Channel::Open(Buffer()).status()));
  const auto reader = SessionCore::NewSession(pool_.AttachReadOnly());
  EXPECT_TRUE(absl::IsPermissionDenied(Channel::Open(*reader, channel->handle()).status()));
  const Handle handle = channel->handle();
  channel.reset();
  EXPECT_TRUE(absl::IsNotFound(Channel::Open(*b_, handle).status()));
}

TEST_F(ChannelTest, AForkedChildIsRefusedAndItsParentGoesOn) {
  std::unique_ptr<Channel> channel = MustCreate(4);
  ASSERT_TRUE(channel->Send(MustAllocate(a_, 9)).ok());
  const pid_t child = fork();
  if (child == 0) {
    const bool good = absl::IsFailedPrecondition(channel->TryReceive().status()) &&
                      absl::IsFailedPrecondition(channel->TrySend(Buffer())) &&
                      absl::IsFailedPrecondition(channel->Close()) && channel->stats().size == 0;
    channel.reset();
    _exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(ValueOf(*channel->TryReceive()), 9u);
}

// Handles that name nothing, as a liar writes them, or the daemon's grace period leaves them.
TEST_F(ChannelTest, HandlesThatNameNothingAreSkipped) {
  std::unique_ptr<Channel> channel = MustCreate(4);
  SharedEntry* const entries = EntriesOf(*channel);
  const auto write = [&](uint32_t index, const layout::HandleBits& handle) {
    const ChannelEntry entry = ChannelEntry::Full(0, handle);
    entries[index].second.store(entry.second());
    entries[index].first.store(entry.first());
  };
  Buffer freed = MustAllocate(a_, 1);
  const Handle handle = *freed.Share();
  freed = Buffer();
  write(0, layout::HandleBits::Unpack(handle.bits[0], handle.bits[1]));
  write(1, {.granule = GranuleId(layout::kMaxHandleGranules - 1), .length = 0xffff});
  ASSERT_TRUE(channel->Send(MustAllocate(a_, 3)).ok());
  absl::StatusOr<Buffer> buffer = channel->Receive();
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(ValueOf(*buffer), 3u);
  EXPECT_EQ(channel->stats().dropped, 2u);
}

TEST_F(ChannelTest, AChannelThatWasWrittenOverSaysSo) {
  std::unique_ptr<Channel> channel = MustCreate(4);
  HeaderOf(*channel).tail = 1000;
  HeaderOf(*channel).head = 1000;
  Buffer buffer = MustAllocate(a_, 1);
  EXPECT_TRUE(absl::IsDataLoss(channel->Send(std::move(buffer))));
  EXPECT_EQ(buffer.size(), 256u);
  EXPECT_TRUE(absl::IsDataLoss(channel->Receive().status()));
  std::memset(const_cast<std::byte*>(channel->block().data()), 0xff, channel->block().size());
  EXPECT_FALSE(channel->TrySend(std::move(buffer)).ok());
  EXPECT_FALSE(channel->TryReceive().ok());
  channel.reset();
}

// Three sessions send and receive at once, with room for a few, so that each side waits often:
// every buffer arrives once, whole, and in the order of its sender.
TEST_F(ChannelTest, ManySendersAndReceiversLoseNothing) {
  constexpr uint64_t kEach = 3000;
  constexpr uint64_t kSenders = 3;
  for (const uint32_t capacity : {1u, 4u, 64u}) {
    std::unique_ptr<Channel> a = MustCreate(capacity);
    std::unique_ptr<Channel> b = MustOpen(b_, a->handle());
    std::unique_ptr<Channel> c = MustOpen(c_, a->handle());
    const std::pair<Session*, Channel*> ends[] = {
        {a_.get(), a.get()}, {b_.get(), b.get()}, {c_.get(), c.get()}};
    std::atomic<uint64_t> senders_left{kSenders};
    std::vector<std::vector<uint64_t>> received(3);
    std::vector<std::thread> threads;
    for (uint64_t s = 0; s < kSenders; ++s) {
      threads.emplace_back([&, s] {
        const auto [session, channel] = ends[s];
        for (uint64_t i = 0; i < kEach; ++i) {
          absl::StatusOr<Buffer> buffer = session->Allocate(64 << (i % 8));
          ASSERT_TRUE(buffer.ok()) << buffer.status();
          const uint64_t value = s << 32 | i;
          std::memcpy(buffer->data(), &value, sizeof(value));
          const absl::Status sent = channel->Send(*std::move(buffer));
          ASSERT_TRUE(sent.ok()) << sent;
        }
        if (senders_left.fetch_sub(1) == 1) {
          EXPECT_TRUE(channel->Close().ok());
        }
      });
      threads.emplace_back([&, s] {
        Channel* const channel = ends[s].second;
        for (;;) {
          absl::StatusOr<Buffer> buffer = channel->Receive();
          if (absl::IsOutOfRange(buffer.status())) break;
          ASSERT_TRUE(buffer.ok()) << buffer.status();
          received[s].push_back(ValueOf(*buffer));
          ASSERT_EQ(buffer->size(), 64u << ((received[s].back() & 0xffffffff) % 8));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<uint64_t> all;
    for (const std::vector<uint64_t>& mine : received) {
      std::map<uint64_t, uint64_t> next;
      for (const uint64_t value : mine) {
        EXPECT_GE(value & 0xffffffff, next[value >> 32]);
        next[value >> 32] = (value & 0xffffffff) + 1;
      }
      all.insert(all.end(), mine.begin(), mine.end());
    }
    std::sort(all.begin(), all.end());
    ASSERT_EQ(all.size(), kSenders * kEach);
    for (uint64_t i = 0; i < all.size(); ++i) {
      ASSERT_EQ(all[i], i / kEach << 32 | i % kEach);
    }
  }
  ExpectNothingLeft();
}

}  // namespace
}  // namespace spanpool

#include "client/daemon_link.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "allocator/lock_rank.h"
#include "client/daemon_names.h"
#include "client/exchange_stream.h"
#include "client/kept_connection.h"
#include "client/lifeline.h"
#include "client/name_source.h"
#include "client/reconnection.h"
#include "client/rpc_connection.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "proto/layout/run_dir.h"
#include "spanpool/v1/pool.pb.h"

namespace spanpool::internal {
namespace {

using layout::UniqueFd;

// How long the daemon may take to answer. It never waits for anything before it does, so one that
// takes longer is stopped or hung.
constexpr absl::Duration kPatience = absl::Seconds(5);

// A daemon that hangs up instead of answering an attach request was killed just then: its successor
// will answer. More than one such death in a row is a daemon that does not come up.
constexpr int kAttachTries = 3;

// Numbers in one part of an inventory, and returns in one message; the protocol's.
constexpr int kMaxInventory = 16384;
constexpr int kMaxReturns = 4096;

class DaemonLink final : public SpanSource {
 public:
  DaemonLink(const std::string& run_directory, UniqueFd socket)
      : grpc_path_(run_directory + "/" + layout::kGrpcSocketName),
        lifeline_(run_directory + "/" + layout::kAttachSocketName, std::move(socket)),
        reconnection_(grpc_path_, [this] { return lifeline_.ended(); }) {}

  absl::Status Attach(const layout::AttachRequest& request, absl::Time deadline, PoolFacts* facts) {
    layout::AttachReply reply;
    absl::StatusOr<std::vector<UniqueFd>> fds = lifeline_.Attach(request, deadline, &reply);
    if (!fds.ok()) return fds.status();
    token_.assign(reinterpret_cast<const char*>(reply.token), sizeof(reply.token));
    facts->limit_bytes = reply.limit_bytes;
    facts->address_bytes = reply.address_bytes;
    facts->incarnation = reply.incarnation;
    facts->slot_capacity = reply.slot_capacity;
    facts->writable = request.access == layout::AccessMode::kWrite;
    facts->session_segment = std::move((*fds)[0]);
    names_.emplace(
        grpc_path_, token_, [this] { return Connection(); }, &reconnection_);
    SetNoticeCallback([] {});
    return absl::OkStatus();
  }
  // Whether the daemon hung up.
  bool lost() { return lifeline_.ended(); }

  absl::StatusOr<ExchangeResult> Exchange(absl::Span<const GrantSequence> returns,
                                          absl::Span<const SpanWish> wishes) override {
    absl::StatusOr<v1::ExchangeResponse> response =
        ExchangeUntil(absl::Now() + kPatience, returns, wishes);
    if (!response.ok()) return response.status();
    ExchangeResult result;
    result.grants.reserve(static_cast<size_t>(response->grants_size()));
    for (const v1::SpanGrant& grant : response->grants()) {
      if (grant.span_class() >= kNumSpanClasses) continue;  // the handler has returned it
      result.grants.push_back(
          SpanGrant{GrantSequence(grant.sequence()),
                    PageRange{PageId(grant.first_page()), PageCount(grant.pages())},
                    SpanClass::FromValue(static_cast<uint8_t>(grant.span_class())),
                    {grant.in_use().begin(), grant.in_use().end()}});
    }
    for (const v1::Shortfall& shortfall : response->shortfalls()) {
      // The first wish is what somebody waits for.
      if (!result.shortfall.ok() && shortfall.want() != 0) continue;
      result.shortfall =
          absl::Status(static_cast<absl::StatusCode>(shortfall.code()), shortfall.message());
    }
    return result;
  }

  absl::StatusOr<ArenaFds> OpenArena(ArenaIndex arena) override {
    absl::StatusOr<ArenaFds> fds = lifeline_.OpenArena(arena, absl::Now() + kPatience);
    if (absl::IsUnavailable(fds.status()) && lifeline_.ended()) {
      return reconnection_.Lost(fds.status());
    }
    return fds;
  }

  absl::Status Detach() override {
    if (HasReturns()) Exchange({}, {}).status().IgnoreError();
    return lifeline_.Detach(absl::Now() + kPatience);
  }

  DaemonState state() override {
    if (lifeline_.ended()) return DaemonState::kLost;
    RankedMutexLock lock(&mu_);
    return stream_ != nullptr && stream_->failed() ? DaemonState::kOffline
                                                   : DaemonState::kConnected;
  }

  int notice_fd() const override { return lifeline_.fd(); }

  void SetNoticeCallback(std::function<void()> wake) override {
    wake_ = wake;
    lifeline_.SetCallbacks(std::move(wake), [this] { reconnection_.WakeAll(); });
  }

  std::optional<RecallRequest> TakeRecall() override {
    Lifeline::Notices notices = lifeline_.TakeNotices();
    if (notices.resumed) exchange_due_.store(true, std::memory_order_relaxed);
    if (lifeline_.ended()) reconnection_.WakeAll();
    return notices.recall;
  }
  void AnswerRecall(const RecallRequest& recall) override { lifeline_.AnswerRecall(recall.number); }
  bool TakeExchangeDue() override {
    return exchange_due_.exchange(false, std::memory_order_relaxed);
  }

  std::vector<GrantSequence> TakeUnknown() override {
    // acquire: pairs with the release in Enter.
    if (!has_unknown_.exchange(false, std::memory_order_acquire)) return {};
    RankedMutexLock lock(&grants_mu_);
    return std::exchange(unknown_, {});
  }

  NameSource* names() override { return names_.has_value() ? &*names_ : nullptr; }

  void AbandonInChild() override ABSL_NO_THREAD_SAFETY_ANALYSIS {
    // The object itself is the parent's: in the child it is never destroyed.
    lifeline_.AbandonInChild();
    connection_.AbandonInChild();
    if (names_.has_value()) names_->AbandonInChild();
  }

 private:
  // One message and its answer, on as many streams as it takes.
  absl::StatusOr<v1::ExchangeResponse> ExchangeUntil(absl::Time deadline,
                                                     absl::Span<const GrantSequence> returns,
                                                     absl::Span<const SpanWish> wishes) {
    absl::Status why;
    for (;;) {
      v1::ExchangeRequest request;
      const std::shared_ptr<ExchangeStream> stream = Prepare(returns, &request);
      if (stream != nullptr) {
        for (const SpanWish& wish : wishes) {
          v1::SpanWant* const want = request.add_wants();
          want->set_span_class(wish.span_class.value());
          want->set_spans(wish.spans);
          want->set_pages(wish.pages.value());
          want->set_alignment_pages(wish.alignment.value());
        }
        absl::StatusOr<v1::ExchangeResponse> response =
            stream->Exchange(std::move(request), deadline);
        if (response.ok()) {
          reconnection_.NoteAnswer();
          return response;
        }
        why = response.status();
        if (absl::IsDeadlineExceeded(why) && !stream->failed()) return reconnection_.NoAnswer();
        if (absl::Status lost = reconnection_.LostIfRefused(why); !lost.ok()) return lost;
      }
      if (absl::Status go_on = reconnection_.Await(deadline, why); !go_on.ok()) return go_on;
    }
  }

  // The stream to use, a new one if the last has failed; null if it is not yet time for that. With
  // the returns, and others that there is room for.
  std::shared_ptr<ExchangeStream> Prepare(absl::Span<const GrantSequence> returns,
                                          v1::ExchangeRequest* request)
      ABSL_LOCKS_EXCLUDED(mu_, grants_mu_) {
    RankedMutexLock lock(&mu_);
    {
      // Whatever becomes of the message, no later inventory has them: so the daemon takes them
      // back.
      RankedMutexLock grants_lock(&grants_mu_);
      for (const GrantSequence sequence : returns) held_.erase(sequence.value());
    }
    if (stream_ == nullptr || stream_->failed()) {
      if (!reconnection_.TakeTurn()) return nullptr;
      OpenStreamLocked();
    }
    for (const GrantSequence sequence : returns) {
      request->add_returns()->set_grant_sequence(sequence.value());
    }
    RankedMutexLock grants_lock(&grants_mu_);
    while (!to_return_.empty() && request->returns_size() < kMaxReturns) {
      request->add_returns()->set_grant_sequence(to_return_.back());
      to_return_.pop_back();
    }
    return stream_;
  }

  // Every stream of the session but the first begins with the inventory. It is on its way before
  // another thread can use the stream.
  void OpenStreamLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const bool first = stream_ == nullptr;
    stream_ = std::make_shared<ExchangeStream>(
        connection_.Get(), token_,
        [this](const v1::ExchangeResponse& answer, bool awaited) { Enter(answer, awaited); });
    if (first) return;
    std::vector<uint64_t> sequences;
    {
      RankedMutexLock lock(&grants_mu_);
      sequences.assign(held_.begin(), held_.end());
      to_return_.clear();
    }
    std::sort(sequences.begin(), sequences.end());
    uint64_t before = 0;
    auto next = sequences.begin();
    do {
      v1::ExchangeRequest part;
      v1::Inventory& inventory = *part.mutable_inventory();
      while (next != sequences.end() && inventory.sequence_deltas_size() < kMaxInventory) {
        inventory.add_sequence_deltas(*next - before);
        before = *next++;
      }
      inventory.set_more(next != sequences.end());
      stream_->Send(std::move(part));
    } while (next != sequences.end());
  }

  // Enters what an answer says of grants.
  void Enter(const v1::ExchangeResponse& answer, bool awaited) ABSL_LOCKS_EXCLUDED(grants_mu_) {
    {
      RankedMutexLock lock(&grants_mu_);
      for (const v1::SpanGrant& grant : answer.grants()) {
        if (awaited && grant.span_class() < kNumSpanClasses) {
          held_.insert(grant.sequence());
        } else {
          to_return_.push_back(grant.sequence());
        }
      }
      for (const uint64_t sequence : answer.unknown()) {
        if (held_.erase(sequence) != 0) unknown_.push_back(GrantSequence(sequence));
      }
    }
    const bool late = !awaited && answer.grants_size() != 0;
    if (late) exchange_due_.store(true, std::memory_order_relaxed);
    if (answer.unknown_size() != 0) has_unknown_.store(true, std::memory_order_release);
    if (late || answer.unknown_size() != 0) wake_();
  }

  std::shared_ptr<RpcConnection> Connection() ABSL_LOCKS_EXCLUDED(mu_) {
    RankedMutexLock lock(&mu_);
    if (!connection_.usable() && !reconnection_.TakeTurn()) return nullptr;
    return connection_.Get();
  }

  bool HasReturns() ABSL_LOCKS_EXCLUDED(grants_mu_) {
    RankedMutexLock lock(&grants_mu_);
    return !to_return_.empty();
  }

  // Constant once attached.
  const std::string grpc_path_;
  std::string token_;
  std::function<void()> wake_ = [] {};
  std::optional<DaemonNames> names_;

  Lifeline lifeline_;
  Reconnection reconnection_;
  std::atomic<bool> exchange_due_{false};
  std::atomic<bool> has_unknown_{false};

  // Locked inside a stream's lock; outlives the stream.
  RankedMutex grants_mu_{LockRank::kLeaf};
  absl::flat_hash_set<uint64_t> held_ ABSL_GUARDED_BY(grants_mu_);  // the inventory
  // Of answers that came too late, or could not be.
  std::vector<uint64_t> to_return_ ABSL_GUARDED_BY(grants_mu_);
  std::vector<GrantSequence> unknown_ ABSL_GUARDED_BY(grants_mu_);

  RankedMutex mu_{LockRank::kLink};
  KeptConnection connection_ ABSL_GUARDED_BY(mu_){grpc_path_};
  std::shared_ptr<ExchangeStream> stream_ ABSL_GUARDED_BY(mu_);  // null before the first
};

}  // namespace

absl::StatusOr<std::unique_ptr<SpanSource>> AttachToDaemon(const std::string& run_directory,
                                                           const std::string& pool, Access access,
                                                           absl::Duration timeout,
                                                           PoolFacts* facts) {
  layout::AttachRequest request;
  if (pool.size() >= sizeof(request.pool) || pool.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", pool, "\" is no name of a pool"));
  }
  std::memcpy(request.pool, pool.data(), pool.size());
  request.access =
      access == Access::kReadOnly ? layout::AccessMode::kRead : layout::AccessMode::kWrite;
  const absl::Time deadline = absl::Now() + timeout;
  for (int tried = 1;; ++tried) {
    absl::StatusOr<UniqueFd> socket =
        Lifeline::Connect(run_directory + "/" + layout::kAttachSocketName);
    if (!socket.ok()) return socket.status();
    auto link = std::make_unique<DaemonLink>(run_directory, *std::move(socket));
    absl::Status status = link->Attach(request, deadline, facts);
    if (status.ok()) return link;
    if (!absl::IsUnavailable(status) || !link->lost() || tried == kAttachTries) return status;
  }
}

}  // namespace spanpool::internal

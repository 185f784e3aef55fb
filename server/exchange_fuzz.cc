// libFuzzer's door to Exchange: the input is what some clients ask a pool for, in which order, and
// when they leave, are evicted or die. No rule of the messages is kept.

#include <fcntl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_join.h"
#include "allocator/check.h"
#include "proto/layout/attach.h"
#include "proto/layout/packet.h"
#include "server/config.h"
#include "server/fuzz_input.h"
#include "server/pool.h"
#include "server/pool_audit.h"
#include "server/session.h"
#include "server/session_table.h"

namespace spanpool {
namespace {

constexpr size_t kMostSessions = 6;

class Clients {
 public:
  explicit Clients(FuzzInput input) : input_(input), pool_(Config(), nullptr, &sessions_) {}

  void Run() {
    while (!input_.empty()) {
      Act();
      pool_.heap().CheckInvariants();
    }
    for (const std::shared_ptr<Session>& session : clients_) Die(*session);
    pool_.Sweep();
    pool_.heap().CheckInvariants();
    SPANPOOL_CHECK_EQ(absl::StrJoin(AuditPool(pool_, AuditDepth::kBooks), "; "), "");
    SPANPOOL_CHECK_EQ(pool_.stats().heap.on_loan_bytes, 0u);
    SPANPOOL_CHECK_EQ(pool_.stats().heap.in_lists_bytes, 0u);
  }

 private:
  static PoolConfig Config() {
    PoolConfig config;
    config.limit_bytes = uint64_t{4} << 20;
    config.reserve_bytes = 0;
    config.session_limit_bytes = uint64_t{3} << 20;
    return config;
  }

  void Act() {
    switch (input_.Below(8)) {
      case 0:
        return Attach();
      case 1:
        if (Session* session = Any()) Leave(*session);
        return;
      case 2:
        pool_.Sweep();
        return;
      case 3:
        if (Session* session = Any()) Reconcile(*session);
        return;
      default:
        if (Session* session = Any()) Exchange(*session);
    }
  }

  Session* Any() {
    if (clients_.empty()) Attach();
    return clients_[input_.Below(static_cast<uint32_t>(clients_.size()))].get();
  }

  void Attach() {
    if (clients_.size() == kMostSessions) return;
    auto session =
        pool_.Attach({.pid = 1, .uid = 0, .gids = {}},
                     input_.Below(8) == 0 ? layout::AccessMode::kRead : layout::AccessMode::kWrite,
                     layout::UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)));
    SPANPOOL_CHECK(session.ok()) << session.status();
    clients_.push_back(*std::move(session));
  }

  void Leave(Session& session) {
    switch (input_.Below(4)) {
      case 0:
        (void)pool_.Detach(session);
        return;
      case 1:
        pool_.LifelineEnded(session);
        return;
      case 2:
        pool_.Evict(session, absl::InvalidArgumentError("as it is told"));
        return;
      default:
        Die(session);
        std::erase_if(clients_, [&](const auto& each) { return each.get() == &session; });
    }
  }

  void Die(Session& session) {
    if (!pool_.ProcessDied(session)) return;
    while (pool_.ReapSome(session, 100) != ReapProgress::kDone) {
    }
  }

  uint64_t Sequence() {
    if (granted_.empty() || input_.Below(8) == 0) return input_.Number();
    return granted_[input_.Byte() % granted_.size()];
  }

  ExchangeWant SomeWant() {
    ExchangeWant want{.span_class = input_.Below(140), .spans = input_.Below(8)};
    if (want.span_class > 137) want.span_class = static_cast<uint32_t>(input_.Number());
    if (want.spans > 5) want.spans = static_cast<uint32_t>(input_.Number());
    if (want.span_class < 2) {
      want.pages = input_.Below(4) == 0 ? input_.Number() : input_.Byte();
      want.alignment_pages =
          input_.Below(4) == 0 ? input_.Number() : uint64_t{1} << input_.Below(6);
    }
    return want;
  }

  void Exchange(Session& session) {
    ExchangeBatch batch;
    for (uint32_t n = input_.Below(6); n > 0; --n) batch.returns.push_back(Sequence());
    for (uint32_t n = input_.Below(5); n > 0; --n) batch.wants.push_back(SomeWant());
    if (input_.Below(64) == 0) batch.returns.resize(Pool::kMaxReturns + 1);
    if (input_.Below(64) == 0) batch.wants.resize(Pool::kMaxWants + 1, SomeWant());
    const uint64_t had = session.loan_bytes();
    const auto result = pool_.Exchange(session, batch);
    SPANPOOL_CHECK_LE(session.loan_bytes(), session.limit_bytes());
    if (!result.ok()) {
      // Nothing was done.
      SPANPOOL_CHECK_EQ(session.loan_bytes(), had);
      if (absl::IsInvalidArgument(result.status())) pool_.Evict(session, result.status());
      return;
    }
    for (const ExchangeGrant& grant : result->grants) {
      SPANPOOL_CHECK_LT(grant.want, batch.wants.size());
      const ExchangeWant& want = batch.wants[grant.want];
      SPANPOOL_CHECK_EQ(grant.span_class.value(), want.span_class);
      if (want.alignment_pages != 0) {
        SPANPOOL_CHECK_EQ(grant.first_page.value() % want.alignment_pages, 0u);
      }
      granted_.push_back(grant.sequence);
    }
  }

  void Reconcile(Session& session) {
    InventoryProgress progress;
    for (bool more = true; more;) {
      InventoryPart part;
      more = part.more = input_.Below(4) == 0;
      for (uint32_t n = input_.Below(6); n > 0; --n) {
        part.sequence_deltas.push_back(input_.Below(16) == 0 ? input_.Number() : input_.Below(5));
      }
      if (input_.Below(64) == 0) part.sequence_deltas.resize(Pool::kMaxInventory + 1, 1);
      const uint64_t had = session.loan_bytes();
      const auto unknown = pool_.Reconcile(session, part, &progress);
      if (!unknown.ok()) {
        SPANPOOL_CHECK_EQ(session.loan_bytes(), had);
        if (absl::IsInvalidArgument(unknown.status())) pool_.Evict(session, unknown.status());
        return;
      }
      SPANPOOL_CHECK_LE(session.loan_bytes(), had);
      SPANPOOL_CHECK_LE(unknown->size(), part.sequence_deltas.size());
      if (!more) SPANPOOL_CHECK_LE(session.loan_count(), progress.count);
    }
  }

  FuzzInput input_;
  SessionTable sessions_{1000};
  Pool pool_;
  std::vector<std::shared_ptr<Session>> clients_;
  std::vector<uint64_t> granted_;
};

}  // namespace
}  // namespace spanpool

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  spanpool::Clients(spanpool::FuzzInput(data, size)).Run();
  return 0;
}

#include "spanpool/session.h"

#include <utility>

#include "client/daemon_link.h"
#include "client/memory_resource.h"
#include "client/session_core.h"
#include "client/target.h"

namespace spanpool {

using internal::SessionCore;

absl::StatusOr<std::unique_ptr<Session>> Session::Attach(const SessionOptions& options) {
  absl::StatusOr<std::string> run_directory = internal::ResolveRunDirectory(options.target);
  if (!run_directory.ok()) return run_directory.status();
  internal::PoolFacts facts;
  absl::StatusOr<std::unique_ptr<internal::SpanSource>> link =
      internal::AttachToDaemon(*run_directory, internal::ResolvePool(options.pool), options.access,
                               options.attach_timeout, &facts);
  if (!link.ok()) return link.status();
  absl::StatusOr<SessionCore*> core = SessionCore::Create(std::move(facts), *std::move(link));
  if (!core.ok()) return core.status();
  return std::unique_ptr<Session>(new Session(*core));
}

Session::Session(SessionCore* core) : core_(core), resource_(internal::NewMemoryResource(core)) {
  core_->SetSession(this);
}

Session::~Session() {
  if (core_->abandoned()) return;
  core_->SetSession(nullptr);
  core_->Unref();
}

absl::StatusOr<Buffer> Session::Allocate(size_t bytes, const AllocateOptions& options) {
  return core_->Allocate(bytes, options);
}

absl::StatusOr<Buffer> Session::Open(const Handle& handle) { return core_->Open(handle); }

void* Session::MallocSlow(size_t bytes) noexcept {
  return core_->Malloc(bytes, bytes <= 8 ? 8 : 16);
}

void Session::FreeSlow(void* block) noexcept { core_->Free(block, __builtin_return_address(0)); }

size_t Session::UsableSize(const void* block) const noexcept { return core_->UsableSize(block); }

std::pmr::memory_resource* Session::resource() noexcept { return resource_.get(); }

SessionStats Session::stats() const { return core_->stats(); }

void Session::SetMisuseHandler(MisuseHandler handler) {
  core_->misuse().SetHandler(std::move(handler));
}

}  // namespace spanpool

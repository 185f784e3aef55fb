#include "spanpool/session.h"

#include <utility>

#include "client/memory_resource.h"
#include "client/session_core.h"

namespace spanpool {

using internal::SessionCore;

std::unique_ptr<Session> internal::SessionCore::NewSession(SessionCore* core) {
  return std::unique_ptr<Session>(new Session(core));
}

SessionCore* internal::SessionCore::CoreOf(const Session& session) { return session.core_; }

Session::Session(SessionCore* core) : core_(core), resource_(internal::NewMemoryResource(core)) {
  core_->SetSession(this);
}

Session::~Session() {
  if (core_->abandoned()) return;
  core_->SetSession(nullptr);
  core_->Close();
}

absl::StatusOr<Buffer> Session::AllocateSlow(size_t bytes, const AllocateOptions& options) {
  return core_->Allocate(bytes, options);
}

absl::StatusOr<Buffer> Session::Open(const Handle& handle) { return core_->Open(handle); }

absl::StatusOr<Buffer> Session::TakeBack(const Handle& handle) { return core_->TakeBack(handle); }

void* Session::MallocSlow(size_t bytes) noexcept {
  return core_->Malloc(bytes, bytes <= 8 ? 8 : 16);
}

void Session::FreeSlow(void* block) noexcept {
  core_->FreeNoted(block, __builtin_return_address(0));
}

void Session::NoteTaken(void* block) noexcept { core_->NoteTaken(block); }

bool Session::NoteFreed(void* block) noexcept {
  return core_->NoteFreed(block, __builtin_return_address(0));
}

size_t Session::UsableSize(const void* block) const noexcept { return core_->UsableSize(block); }

std::pmr::memory_resource* Session::resource() noexcept { return resource_.get(); }

SessionStats Session::stats() const { return core_->stats(); }

void Session::SetMisuseHandler(MisuseHandler handler) {
  core_->misuse().SetHandler(std::move(handler));
}

}  // namespace spanpool

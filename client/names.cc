#include "spanpool/names.h"

#include <deque>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "client/name_source.h"
#include "client/session_core.h"
#include "proto/layout/block_name.h"
#include "proto/layout/step.h"
#include "spanpool/session.h"

namespace spanpool {

using internal::NameNews;
using internal::NameSource;
using internal::NameStream;
using internal::SessionCore;

namespace {

absl::Status CheckName(std::string_view name) {
  if (layout::IsBlockName(name)) return absl::OkStatus();
  // What is much too long is not repeated.
  return absl::InvalidArgumentError(
      absl::StrCat("\"", std::string(name.substr(0, layout::kMaxNameBytes)),
                   "\" is no name for a block; expected ", layout::kNameRule));
}

// Where the names are, for one that is valid.
absl::StatusOr<NameSource*> NamesOf(SessionCore& core, std::string_view name) {
  if (absl::Status attached = core.CheckAttached(); !attached.ok()) return attached;
  if (absl::Status valid = CheckName(name); !valid.ok()) return valid;
  if (NameSource* const names = core.names(); names != nullptr) return names;
  return absl::UnimplementedError("this pool keeps no names");
}

}  // namespace

absl::Status Session::Publish(std::string_view name, const Buffer& buffer,
                              const PublishOptions& options) {
  absl::StatusOr<NameSource*> names = NamesOf(*core_, name);
  if (!names.ok()) return names.status();
  absl::StatusOr<Handle> handle = SessionCore::HandleToPublish(buffer);
  if (!handle.ok()) return handle.status();
  SPANPOOL_STEP("publish.call");
  absl::Status status = (*names)->Publish(std::string(name), *handle, options);
  // Rule 13c: until here the buffer has kept the block.
  SPANPOOL_STEP("publish.told");
  return status;
}

absl::Status Session::Unpublish(std::string_view name) {
  absl::StatusOr<NameSource*> names = NamesOf(*core_, name);
  if (!names.ok()) return names.status();
  SPANPOOL_STEP("unpublish.call");
  absl::Status status = (*names)->Unpublish(std::string(name));
  SPANPOOL_STEP("unpublish.told");
  return status;
}

absl::StatusOr<Buffer> Session::Open(std::string_view name) {
  absl::StatusOr<NameSource*> names = NamesOf(*core_, name);
  if (!names.ok()) return names.status();
  uint64_t tried = 0;
  for (;;) {
    absl::StatusOr<NamedBlock> block = (*names)->Lookup(std::string(name));
    if (!block.ok()) return block.status();
    // The name has stood all the time, and what it stands for cannot be opened.
    if (block->version == tried) {
      return absl::DataLossError("the block table was written over by some process of the pool");
    }
    absl::StatusOr<Buffer> buffer = core_->OpenNamed(block->handle);
    if (!absl::IsNotFound(buffer.status())) return buffer;
    tried = block->version;  // unpublished since, and perhaps published anew
  }
}

absl::StatusOr<Buffer> Session::Open(std::string_view name, absl::Time deadline) {
  absl::StatusOr<Buffer> buffer = Open(name);
  if (!absl::IsNotFound(buffer.status())) return buffer;
  const std::unique_ptr<NameStream> stream =
      core_->names()->Watch({.name = std::string(name), .prefix = ""});
  for (;;) {
    absl::StatusOr<NameNews> news = stream->Next(deadline);
    if (absl::IsDeadlineExceeded(news.status())) {
      return absl::DeadlineExceededError(
          absl::StrCat("nothing was published under \"", std::string(name), "\""));
    }
    if (!news.ok()) return news.status();
    if (news->changes.empty()) continue;
    buffer = Open(name);
    if (!absl::IsNotFound(buffer.status())) return buffer;
  }
}

absl::StatusOr<std::vector<NamedBlock>> Session::ListNames(std::string_view prefix) {
  absl::StatusOr<NameSource*> names = NamesOf(*core_, prefix.empty() ? "any" : prefix);
  if (!names.ok()) return names.status();
  return (*names)->List(std::string(prefix));
}

struct NameWatch::Impl {
  Impl(SessionCore* its_core, std::unique_ptr<NameStream> its_stream)
      : core(its_core), stream(std::move(its_stream)) {}

  void Take(const NameNews& news);

  SessionCore* const core;  // one reference
  std::unique_ptr<NameStream> stream;
  std::deque<NameChange> ready;
  std::map<std::string, uint64_t> known;  // what was told: versions of names that stand
  // After a reset, until all that there is was told: what was told since.
  bool resetting = false;
  std::set<std::string> since_reset;
};

void NameWatch::Impl::Take(const NameNews& news) {
  if (news.reset) {
    resetting = true;
    since_reset.clear();
  }
  for (const NameChange& change : news.changes) {
    if (change.kind == NameChange::Kind::kPublished) {
      if (resetting) since_reset.insert(change.name);
      uint64_t& version = known[change.name];
      if (std::exchange(version, change.block.version) == change.block.version) continue;
      ready.push_back(change);
    } else if (known.erase(change.name) != 0) {
      ready.push_back(change);
    }
  }
  if (!resetting || !news.current) return;
  resetting = false;
  for (auto it = known.begin(); it != known.end();) {
    if (since_reset.count(it->first) != 0) {
      ++it;
      continue;
    }
    // Why, nobody has kept.
    ready.push_back({.kind = NameChange::Kind::kUnpublished, .name = it->first, .block = {}});
    it = known.erase(it);
  }
}

absl::StatusOr<std::unique_ptr<NameWatch>> Session::WatchNames(std::string_view prefix) {
  absl::StatusOr<NameSource*> names = NamesOf(*core_, prefix.empty() ? "any" : prefix);
  if (!names.ok()) return names.status();
  core_->AddOwner();
  return std::unique_ptr<NameWatch>(new NameWatch(std::make_unique<NameWatch::Impl>(
      core_, (*names)->Watch({.name = "", .prefix = std::string(prefix)}))));
}

NameWatch::NameWatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

NameWatch::~NameWatch() {
  if (impl_->core->abandoned()) {
    (void)impl_->stream.release();  // its connection is the parent's
    return;
  }
  impl_->stream.reset();
  impl_->core->DropOwner();
}

absl::StatusOr<NameChange> NameWatch::Next(absl::Time deadline) {
  if (absl::Status attached = impl_->core->CheckAttached(); !attached.ok()) return attached;
  while (impl_->ready.empty()) {
    absl::StatusOr<NameNews> news = impl_->stream->Next(deadline);
    if (!news.ok()) return news.status();
    impl_->Take(*news);
  }
  NameChange change = std::move(impl_->ready.front());
  impl_->ready.pop_front();
  return change;
}

}  // namespace spanpool

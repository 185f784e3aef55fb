#include "server/name_table.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "allocator/check.h"

namespace spanpool {
namespace {

PoolState::NameOnRecord OnRecord(const PublishedBlock& block, uint32_t slot, uint64_t version) {
  return {.record = 0,
          .name = block.name,
          .handle = block.handle,
          .slot = slot,
          .version = version,
          .session = block.session,
          .pid = block.pid,
          .uid = block.uid,
          .outlives_session = block.outlives_session};
}

absl::Status NoSuchName(absl::string_view name) {
  return absl::NotFoundError(absl::StrCat("nothing is published under \"", name, "\""));
}

}  // namespace

uint64_t NameTable::NoteLocked(Change change, uint64_t before, Watches* to_wake) {
  const uint64_t last = version_++;
  const uint64_t now = version_;
  if (state_ != nullptr) state_->SetNameVersion(version_);
  changes_.erase(before);
  // A removal is forgotten when its name stands again.
  if (const auto removal = removals_.find(change.name); removal != removals_.end()) {
    changes_.erase(removal->second);
    removal_versions_.erase(removal->second);
    removals_.erase(removal);
  }
  std::erase_if(watches_, [&](const std::weak_ptr<Watch>& each) {
    std::shared_ptr<Watch> watch = each.lock();
    if (watch == nullptr) return true;
    if (watch->filter_.Matches(change.name)) {
      to_wake->push_back(std::move(watch));
    } else if (watch->started_ && watch->seen_ == last) {
      watch->seen_ = now;  // it would find nothing for it
    }
    return false;
  });
  if (change.removed) {
    removals_[change.name] = version_;
    removal_versions_.insert(version_);
    if (removals_.size() > max_names_) {
      horizon_ = *removal_versions_.begin();
      removal_versions_.erase(removal_versions_.begin());
      const auto oldest = changes_.find(horizon_);
      removals_.erase(oldest->second.name);
      changes_.erase(oldest);
    }
  }
  changes_.emplace(version_, std::move(change));
  return version_;
}

absl::StatusOr<uint64_t> NameTable::Publish(const Session& session, PublishedBlock block,
                                            uint32_t slot, bool replace,
                                            std::optional<uint32_t>* replaced) {
  Watches to_wake;
  uint64_t version;
  {
    RankedMutexLock lock(&mu_);
    if (session.state() != SessionState::kAttached) {
      return absl::UnauthenticatedError("the session is not attached; attach again");
    }
    block.session = session.id();
    block.pid = session.peer().pid;
    block.uid = session.peer().uid;
    const std::string name = block.name;
    const auto found = names_.find(name);
    uint64_t before = 0;
    if (found != names_.end()) {
      const PublishedBlock& old = found->second.block;
      const bool same = old.handle == block.handle && old.session == block.session;
      if (same && old.outlives_session == block.outlives_session) {
        *replaced = slot;
        return old.version;
      }
      if (!same && !replace) {
        return absl::AlreadyExistsError(
            absl::StrCat("\"", name, "\" is published already, by session ", old.session, " (pid ",
                         old.pid, "): take another name, unpublish it, or publish with `replace`"));
      }
      before = old.version;
    } else if (names_.size() >= max_names_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the pool has ", names_.size(),
                       " names, as many as it may: unpublish some, or raise limits.names"));
    }
    uint32_t record = 0;
    if (state_ != nullptr) {
      absl::StatusOr<uint32_t> recorded = state_->RecordName(OnRecord(block, slot, version_ + 1));
      if (!recorded.ok()) return recorded.status();
      record = *recorded;
    }
    if (found != names_.end()) {
      const PublishedBlock& old = found->second.block;
      if (!old.outlives_session) of_session_.erase({old.session, name});
      if (state_ != nullptr) state_->DropName(found->second.record);
      found->second.record = record;
      *replaced = std::exchange(found->second.slot, slot);
    }
    version = NoteLocked({.name = name}, before, &to_wake);
    block.version = version;
    if (!block.outlives_session) of_session_.insert({block.session, name});
    if (found != names_.end()) {
      found->second.block = std::move(block);
    } else {
      names_.emplace(name, Entry{std::move(block), slot, record});
    }
  }
  for (const std::shared_ptr<Watch>& watch : to_wake) watch->wake_();
  return version;
}

void NameTable::Restore(const std::vector<PoolState::NameOnRecord>& names) {
  RankedMutexLock lock(&mu_);
  SPANPOOL_CHECK(version_ == 0 && names_.empty());
  for (const PoolState::NameOnRecord& name : names) {
    version_ = std::max(version_, name.version);
    changes_.emplace(name.version, Change{.name = name.name});
    if (!name.outlives_session) of_session_.insert({name.session, name.name});
    names_.emplace(name.name, Entry{.block = {.name = name.name,
                                              .handle = name.handle,
                                              .version = name.version,
                                              .outlives_session = name.outlives_session,
                                              .session = name.session,
                                              .pid = name.pid,
                                              .uid = name.uid},
                                    .slot = name.slot,
                                    .record = name.record});
  }
  // What went before is not known any more; there is no watch yet that could ask for it.
  version_ = std::max(version_, state_->name_version());
}

absl::StatusOr<PublishedBlock> NameTable::Lookup(absl::string_view name) const {
  RankedMutexLock lock(&mu_);
  const auto found = names_.find(name);
  if (found == names_.end()) return NoSuchName(name);
  return found->second.block;
}

uint32_t NameTable::RemoveLocked(Names::iterator it, NameRemoval why, Watches* to_wake) {
  const uint32_t slot = it->second.slot;
  const PublishedBlock block = std::move(it->second.block);
  if (state_ != nullptr) state_->DropName(it->second.record);
  names_.erase(it);
  if (!block.outlives_session) of_session_.erase({block.session, block.name});
  NoteLocked({.name = block.name, .removed = true, .removal = why}, block.version, to_wake);
  return slot;
}

absl::StatusOr<uint32_t> NameTable::Unpublish(absl::string_view name) {
  Watches to_wake;
  uint32_t slot;
  {
    RankedMutexLock lock(&mu_);
    const auto found = names_.find(name);
    if (found == names_.end()) return NoSuchName(name);
    slot = RemoveLocked(found, NameRemoval::kUnpublished, &to_wake);
  }
  for (const std::shared_ptr<Watch>& watch : to_wake) watch->wake_();
  return slot;
}

std::vector<uint32_t> NameTable::EndSession(const Session& session, NameRemoval why) {
  std::vector<uint32_t> slots;
  Watches to_wake;
  {
    RankedMutexLock lock(&mu_);
    SPANPOOL_CHECK(session.state() != SessionState::kAttached);
    for (;;) {
      const auto next = of_session_.lower_bound({session.id(), ""});
      if (next == of_session_.end() || next->first != session.id()) break;
      slots.push_back(RemoveLocked(names_.find(next->second), why, &to_wake));
    }
  }
  for (const std::shared_ptr<Watch>& watch : to_wake) watch->wake_();
  return slots;
}

std::vector<uint32_t> NameTable::EndOthers(const absl::flat_hash_set<uint32_t>& attached) {
  std::vector<uint32_t> slots;
  Watches to_wake;
  {
    RankedMutexLock lock(&mu_);
    for (auto next = of_session_.begin(); next != of_session_.end();) {
      if (attached.contains(next->first)) {
        ++next;
        continue;
      }
      const std::pair<uint32_t, std::string> gone = *next;
      slots.push_back(
          RemoveLocked(names_.find(gone.second), NameRemoval::kPublisherLost, &to_wake));
      next = of_session_.upper_bound(gone);
    }
  }
  for (const std::shared_ptr<Watch>& watch : to_wake) watch->wake_();
  return slots;
}

std::vector<PublishedBlock> NameTable::List(absl::string_view prefix, absl::string_view after,
                                            size_t most, bool* more) const {
  std::vector<PublishedBlock> blocks;
  *more = false;
  RankedMutexLock lock(&mu_);
  auto it = after < prefix ? names_.lower_bound(prefix) : names_.upper_bound(after);
  for (; it != names_.end() && absl::StartsWith(it->first, prefix); ++it) {
    if (blocks.size() == most) {
      *more = true;
      break;
    }
    blocks.push_back(it->second.block);
  }
  return blocks;
}

std::shared_ptr<NameTable::Watch> NameTable::NewWatch(NameFilter filter,
                                                      std::function<void()> wake) {
  auto watch = std::make_shared<Watch>(std::move(filter), std::move(wake));
  RankedMutexLock lock(&mu_);
  watches_.push_back(watch);
  return watch;
}

NameTable::News NameTable::Take(Watch& watch, size_t most) {
  News news;
  RankedMutexLock lock(&mu_);
  if (!watch.started_ || (watch.seen_ != 0 && watch.seen_ < horizon_)) {
    watch.started_ = true;
    watch.seen_ = 0;
    watch.nothing_ = version_;
    news.reset = true;
  }
  for (auto it = changes_.upper_bound(watch.seen_); it != changes_.end(); ++it) {
    const auto& [version, change] = *it;
    const bool tell =
        watch.filter_.Matches(change.name) && !(change.removed && version <= watch.nothing_);
    if (tell && news.changes.size() == most) return news;
    watch.seen_ = version;
    if (!tell) continue;
    ChangedName told{.name = change.name, .published = {}, .removal = change.removal};
    if (!change.removed) told.published = names_.find(change.name)->second.block;
    news.changes.push_back(std::move(told));
  }
  watch.seen_ = version_;
  news.current = true;
  return news;
}

size_t NameTable::size() const {
  RankedMutexLock lock(&mu_);
  return names_.size();
}

std::vector<std::pair<uint32_t, PublishedBlock>> NameTable::Slots() const {
  std::vector<std::pair<uint32_t, PublishedBlock>> slots;
  RankedMutexLock lock(&mu_);
  for (const auto& [name, entry] : names_) slots.emplace_back(entry.slot, entry.block);
  return slots;
}

void NameTable::CheckInvariants() const {
  RankedMutexLock lock(&mu_);
  size_t of_session = 0;
  for (const auto& [name, entry] : names_) {
    SPANPOOL_CHECK_EQ(name, entry.block.name);
    const auto change = changes_.find(entry.block.version);
    SPANPOOL_CHECK(change != changes_.end() && change->second.name == name &&
                   !change->second.removed);
    SPANPOOL_CHECK(!removals_.contains(name));
    if (!entry.block.outlives_session) {
      ++of_session;
      SPANPOOL_CHECK(of_session_.contains({entry.block.session, name}));
    }
  }
  SPANPOOL_CHECK_EQ(of_session, of_session_.size());
  SPANPOOL_CHECK_LE(names_.size(), size_t{max_names_});
  SPANPOOL_CHECK_LE(removals_.size(), size_t{max_names_});
  SPANPOOL_CHECK_EQ(removals_.size(), removal_versions_.size());
  SPANPOOL_CHECK_EQ(changes_.size(), names_.size() + removals_.size());
  for (const auto& [name, version] : removals_) {
    const auto change = changes_.find(version);
    SPANPOOL_CHECK(change != changes_.end() && change->second.name == name &&
                   change->second.removed && version > horizon_);
  }
}

}  // namespace spanpool

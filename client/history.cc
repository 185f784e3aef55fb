#include "client/history.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "allocator/check.h"

namespace spanpool::internal {
namespace {

using Kind = Operation::Kind;
using Result = Operation::Result;

struct Queue {
  std::vector<uint32_t> items;
  bool closed = false;
  bool sealed = false;  // somebody was told that it is closed and empty

  friend bool operator==(const Queue&, const Queue&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const Queue& queue) {
    return H::combine(std::move(h), queue.items, queue.closed, queue.sealed);
  }
};

class Search {
 public:
  Search(const std::vector<Operation>& history, uint32_t capacity)
      : history_(history), capacity_(capacity) {
    for (size_t i = 0; i < history.size(); ++i) {
      if (history[i].result != Result::kUnknown) needed_ |= uint64_t{1} << i;
    }
  }

  // Whether the operations that are not in `done` can follow on `queue`.
  bool From(uint64_t done, const Queue& queue) {
    if ((done & needed_) == needed_) return true;
    if (!been_.insert({done, queue}).second) return false;
    uint64_t first_end = Operation::kNever;
    for (size_t i = 0; i < history_.size(); ++i) {
      if ((done >> i & 1) == 0) first_end = std::min(first_end, history_[i].end);
    }
    for (size_t i = 0; i < history_.size(); ++i) {
      if ((done >> i & 1) != 0 || history_[i].begin > first_end) continue;
      const std::optional<Queue> next = After(queue, history_[i]);
      if (next.has_value() && From(done | uint64_t{1} << i, *next)) return true;
    }
    return false;
  }

 private:
  std::optional<Queue> After(Queue queue, const Operation& operation) const {
    const Result result = operation.result;
    switch (operation.kind) {
      case Kind::kSend:
        if (result == Result::kClosed) return Only(queue.closed, std::move(queue));
        if (result == Result::kNothing) return Only(queue.items.size() == capacity_, queue);
        if (queue.sealed || queue.items.size() == capacity_) return std::nullopt;
        queue.items.push_back(operation.value);
        return queue;
      case Kind::kReceive:
        if (result == Result::kNothing) return Only(queue.items.empty() && !queue.closed, queue);
        if (result == Result::kClosed) {
          if (!queue.items.empty() || !queue.closed) return std::nullopt;
          queue.sealed = true;
          return queue;
        }
        if (queue.items.empty()) return std::nullopt;
        if (result == Result::kDone && queue.items.front() != operation.value) return std::nullopt;
        queue.items.erase(queue.items.begin());
        return queue;
      case Kind::kClose:
        queue.closed = true;
        return queue;
    }
    return std::nullopt;
  }
  static std::optional<Queue> Only(bool possible, Queue queue) {
    return possible ? std::optional<Queue>(std::move(queue)) : std::nullopt;
  }

  const std::vector<Operation>& history_;
  const uint32_t capacity_;
  uint64_t needed_ = 0;
  absl::flat_hash_set<std::pair<uint64_t, Queue>> been_;
};

}  // namespace

bool IsExplained(const std::vector<Operation>& history, uint32_t capacity) {
  SPANPOOL_CHECK(history.size() <= 64);
  uint64_t closed = Operation::kNever;
  for (const Operation& each : history) {
    if (each.kind == Kind::kClose) closed = std::min(closed, each.end);
  }
  for (const Operation& each : history) {
    if (each.kind == Kind::kSend && each.result == Result::kDone && each.begin > closed) {
      return false;
    }
  }
  return Search(history, capacity).From(0, Queue());
}

std::string ToString(const std::vector<Operation>& history) {
  static constexpr const char* kKinds[] = {"send", "receive", "close"};
  static constexpr const char* kResults[] = {"done", "nothing", "closed", "unknown"};
  std::string text;
  for (const Operation& each : history) {
    absl::StrAppend(&text, "process ", each.process, ": ", kKinds[static_cast<int>(each.kind)], " ",
                    each.value, " ", kResults[static_cast<int>(each.result)], " [", each.begin,
                    ", ", each.end == Operation::kNever ? "never" : absl::StrCat(each.end), "]\n");
  }
  return text;
}

}  // namespace spanpool::internal

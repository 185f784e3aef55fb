#include "server/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace spanpool {
namespace {

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The number in a file that holds one; nothing if it is missing or says "max".
std::optional<uint64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadFile(path);
  uint64_t number;
  if (!text || !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &number)) return std::nullopt;
  return number;
}

// The number after `key` in lines of "key number".
uint64_t ReadStat(const std::string& path, absl::string_view key) {
  const std::string text = ReadFile(path).value_or("");
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    uint64_t number;
    if (absl::ConsumePrefix(&line, key) && absl::ConsumePrefix(&line, " ") &&
        absl::SimpleAtoi(line, &number)) {
      return number;
    }
  }
  return 0;
}

struct Controller {
  std::string mount;  // where the hierarchy is mounted, with the root
  std::string path;   // the process's cgroup in it
  const char *limit, *usage, *inactive;
};

// What each cgroup from the process's own up to the root has left; the smallest.
std::optional<uint64_t> Available(const Controller& controller) {
  std::optional<uint64_t> least;
  std::string path = controller.path;
  for (;;) {
    const std::string folder = controller.mount + path;
    const auto limit = ReadNumber(absl::StrCat(folder, "/", controller.limit));
    const auto usage = ReadNumber(absl::StrCat(folder, "/", controller.usage));
    // Version 1 says "no limit" with a number near 2^63.
    if (limit && usage && *limit < uint64_t{1} << 62) {
      const uint64_t cache =
          std::min(ReadStat(absl::StrCat(folder, "/memory.stat"), controller.inactive), *usage);
      const uint64_t used = *usage - cache;
      const uint64_t left = *limit > used ? *limit - used : 0;
      least = std::min(least.value_or(left), left);
    }
    if (path.empty() || path == "/") return least;
    path.resize(path.rfind('/'));
  }
}

}  // namespace

std::optional<uint64_t> MemoryLimit::CgroupAvailableBytes() const {
  const std::string cgroups = ReadFile(root_ + "/proc/self/cgroup").value_or("");
  std::optional<uint64_t> least;
  for (absl::string_view line : absl::StrSplit(cgroups, '\n')) {
    // "ID:CONTROLLERS:PATH"; the unified hierarchy of version 2 is "0::PATH".
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    std::vector<Controller> controllers;
    if (fields[1].empty()) {
      for (const char* mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
        controllers.push_back(
            {root_ + mount, fields[2], "memory.max", "memory.current", "inactive_file"});
      }
    } else {
      const std::vector<std::string> names = absl::StrSplit(fields[1], ',');
      if (std::find(names.begin(), names.end(), "memory") == names.end()) continue;
      controllers.push_back({root_ + "/sys/fs/cgroup/memory", fields[2], "memory.limit_in_bytes",
                             "memory.usage_in_bytes", "total_inactive_file"});
    }
    for (const Controller& controller : controllers) {
      const std::optional<uint64_t> left = Available(controller);
      if (left) least = std::min(least.value_or(*left), *left);
    }
  }
  return least;
}

absl::StatusOr<uint64_t> MemoryLimit::AvailableBytes() const {
  const std::string meminfo = ReadFile(root_ + "/proc/meminfo").value_or("");
  for (absl::string_view line : absl::StrSplit(meminfo, '\n')) {
    if (!absl::ConsumePrefix(&line, "MemAvailable:")) continue;
    absl::ConsumeSuffix(&line, "kB");
    uint64_t kib;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &kib)) break;
    const uint64_t machine = kib * 1024;
    return std::min(machine, CgroupAvailableBytes().value_or(machine));
  }
  return absl::NotFoundError(
      absl::StrCat(root_, "/proc/meminfo has no MemAvailable; is /proc mounted?"));
}

}  // namespace spanpool

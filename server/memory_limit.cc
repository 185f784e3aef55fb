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
#include "allocator/memfd_arena_source.h"

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

// What a controller of cgroups keeps in a cgroup's folder, in one version.
struct CgroupFiles {
  const char* limit;
  const char* usage;
  const char* reclaimable;  // a key of memory.stat; null: nothing in `usage` is
};

struct Resource {
  const char* controller;  // its name, and that of its mount in version 1
  CgroupFiles version1, version2;
};

constexpr Resource kMemory = {
    "memory",
    {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
    {"memory.max", "memory.current", "inactive_file"},
};
constexpr Resource kHugePages = {
    "hugetlb",
    {"hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.usage_in_bytes", nullptr},
    {"hugetlb.2MB.max", "hugetlb.2MB.current", nullptr},
};

struct Controller {
  std::string mount;  // where the hierarchy is mounted, with the root
  std::string path;   // the process's cgroup in it
  CgroupFiles files;
};

// What each cgroup from the process's own up to the root has left; the smallest.
std::optional<uint64_t> Available(const Controller& controller) {
  std::optional<uint64_t> least;
  std::string path = controller.path;
  for (;;) {
    const std::string folder = controller.mount + path;
    const CgroupFiles& files = controller.files;
    const auto limit = ReadNumber(absl::StrCat(folder, "/", files.limit));
    const auto usage = ReadNumber(absl::StrCat(folder, "/", files.usage));
    // Version 1 says "no limit" with a number near 2^63.
    if (limit && usage && *limit < uint64_t{1} << 62) {
      uint64_t used = *usage;
      if (files.reclaimable != nullptr) {
        used -= std::min(ReadStat(absl::StrCat(folder, "/memory.stat"), files.reclaimable), used);
      }
      const uint64_t left = *limit > used ? *limit - used : 0;
      least = std::min(least.value_or(left), left);
    }
    if (path.empty() || path == "/") return least;
    path.resize(path.rfind('/'));
  }
}

// What the cgroups of this process leave it of `resource`; nothing if none limits it.
std::optional<uint64_t> CgroupAvailableBytes(const std::string& root, const Resource& resource) {
  const std::string cgroups = ReadFile(root + "/proc/self/cgroup").value_or("");
  std::optional<uint64_t> least;
  for (absl::string_view line : absl::StrSplit(cgroups, '\n')) {
    // "ID:CONTROLLERS:PATH"; the unified hierarchy of version 2 is "0::PATH".
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    std::vector<Controller> controllers;
    if (fields[1].empty()) {
      for (const char* mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
        controllers.push_back({root + mount, fields[2], resource.version2});
      }
    } else {
      const std::vector<std::string> names = absl::StrSplit(fields[1], ',');
      if (std::find(names.begin(), names.end(), resource.controller) == names.end()) continue;
      controllers.push_back({absl::StrCat(root, "/sys/fs/cgroup/", resource.controller), fields[2],
                             resource.version1});
    }
    for (const Controller& controller : controllers) {
      const std::optional<uint64_t> left = Available(controller);
      if (left) least = std::min(least.value_or(*left), *left);
    }
  }
  return least;
}

}  // namespace

MemoryLimit::HugePages MemoryLimit::AvailableHugePages() const {
  const std::string folder = root_ + "/sys/kernel/mm/hugepages/hugepages-2048kB";
  HugePages pages;
  pages.set_aside = ReadNumber(folder + "/nr_hugepages").value_or(0);
  pages.free = ReadNumber(folder + "/free_hugepages").value_or(0);
  pages.free -= std::min(pages.free, ReadNumber(folder + "/resv_hugepages").value_or(0));
  if (const auto bytes = CgroupAvailableBytes(root_, kHugePages)) {
    pages.allowed = *bytes / MemfdArenaSource::kHugePageBytes;
  }
  return pages;
}

absl::StatusOr<uint64_t> MemoryLimit::AvailableBytes() const {
  const std::string meminfo = ReadFile(root_ + "/proc/meminfo").value_or("");
  for (absl::string_view line : absl::StrSplit(meminfo, '\n')) {
    if (!absl::ConsumePrefix(&line, "MemAvailable:")) continue;
    absl::ConsumeSuffix(&line, "kB");
    uint64_t kib;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &kib)) break;
    const uint64_t machine = kib * 1024;
    return std::min(machine, CgroupAvailableBytes(root_, kMemory).value_or(machine));
  }
  return absl::NotFoundError(
      absl::StrCat(root_, "/proc/meminfo has no MemAvailable; is /proc mounted?"));
}

}  // namespace spanpool

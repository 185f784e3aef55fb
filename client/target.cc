#include "client/target.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "proto/layout/run_dir.h"

namespace spanpool::internal {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// host:port, and not a path: a path with a colon and digits at its end has a slash.
bool IsHostAndPort(std::string_view target) {
  const size_t colon = target.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == target.size() ||
      target.find('/') != std::string_view::npos) {
    return false;
  }
  const std::string_view port = target.substr(colon + 1);
  return std::all_of(port.begin(), port.end(), [](unsigned char c) { return std::isdigit(c); });
}

}  // namespace

absl::StatusOr<std::string> ResolveRunDirectory(std::string_view target) {
  std::string chosen(target);
  if (chosen.empty()) chosen = Environment("SPANPOOL_TARGET");
  if (chosen.empty()) chosen = layout::DefaultRunDirectory();
  if (chosen.empty()) {
    return absl::InvalidArgumentError(
        "no daemon was named: give its run directory, or set SPANPOOL_TARGET");
  }
  if (IsHostAndPort(chosen)) {
    return absl::UnimplementedError(
        absl::StrCat("\"", chosen,
                     "\" is on another machine; only a run directory on this one can be attached "
                     "to yet"));
  }
  return chosen;
}

std::string ResolvePool(std::string_view pool) {
  if (!pool.empty()) return std::string(pool);
  const std::string variable = Environment("SPANPOOL_POOL");
  return variable.empty() ? "default" : variable;
}

}  // namespace spanpool::internal

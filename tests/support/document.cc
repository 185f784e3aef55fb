#include "tests/support/document.h"

#include <fstream>

#include "absl/strings/str_cat.h"

namespace spanpool::testing {

std::vector<std::string> Blocks(const std::string& path, const std::string& language) {
  std::ifstream page(path);
  std::vector<std::string> blocks;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (inside && line == "```") {
      inside = false;
    } else if (inside) {
      absl::StrAppend(&blocks.back(), line, "\n");
    } else if (line == absl::StrCat("```", language)) {
      inside = true;
      blocks.emplace_back();
    }
  }
  return blocks;
}

}  // namespace spanpool::testing

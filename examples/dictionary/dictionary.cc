// A dictionary that any number of processes look words up in, and that is in memory once.
//
//   dictionary publish NAME FILE    a line of FILE is a word, a tab and what it means
//   dictionary look NAME WORD...

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "spanpool/spanpool.h"

namespace {

// The published block is an array of these, by the order of their words. There is no pointer in it:
// each process has the block at another address.
struct Entry {
  char word[32];  // what is shorter ends with a zero
  char meaning[96];
};

template <size_t kSize>
std::string_view Text(const char (&field)[kSize]) {
  return {field, strnlen(field, kSize)};  // whoever wrote it may have left the zero out
}

absl::Status Publish(const char* name, const char* path) {
  std::map<std::string, std::string> words;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos || tab > sizeof(Entry::word) ||
        line.size() - tab - 1 > sizeof(Entry::meaning)) {
      return absl::InvalidArgumentError(absl::StrCat("a line without a tab, or too long: ", line));
    }
    words[line.substr(0, tab)] = line.substr(tab + 1);
  }
  const auto session = spanpool::Session::Attach({});
  if (!session.ok()) return session.status();
  absl::StatusOr<spanpool::Buffer> block =
      (*session)->Allocate(words.size() * sizeof(Entry), {.zeroed = true});
  if (!block.ok()) return block.status();
  auto* entry = reinterpret_cast<Entry*>(block->data());
  for (const auto& [word, meaning] : words) {
    word.copy(entry->word, sizeof(entry->word));
    meaning.copy(entry->meaning, sizeof(entry->meaning));
    ++entry;
  }
  // The name stays when this process ends. Who has an older edition open keeps that.
  return (*session)->Publish(name, *block, {.outlive_session = true, .replace = true});
}

absl::Status Look(const char* name, absl::Span<char*> words) {
  const auto session = spanpool::Session::Attach({.access = spanpool::Access::kReadOnly});
  if (!session.ok()) return session.status();
  const absl::StatusOr<spanpool::Buffer> block = (*session)->Open(std::string_view(name));
  if (!block.ok()) return block.status();
  if (block->size() % sizeof(Entry) != 0) return absl::InvalidArgumentError("no dictionary");
  const absl::Span<const Entry> entries(reinterpret_cast<const Entry*>(block->data()),
                                        block->size() / sizeof(Entry));
  for (const std::string_view word : words) {
    const auto found = std::lower_bound(
        entries.begin(), entries.end(), word,
        [](const Entry& entry, std::string_view wanted) { return Text(entry.word) < wanted; });
    const bool is_there = found != entries.end() && Text(found->word) == word;
    std::cout << word << ": " << (is_there ? Text(found->meaning) : "?") << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc < 4 ? "" : argv[1];
  if (what != "look" && (what != "publish" || argc != 4)) {
    std::cerr << "usage: dictionary publish NAME FILE | dictionary look NAME WORD...\n";
    return 2;
  }
  const absl::Status status =
      what == "publish" ? Publish(argv[2], argv[3])
                        : Look(argv[2], absl::MakeSpan(argv, static_cast<size_t>(argc)).subspan(3));
  if (!status.ok()) std::cerr << "dictionary: " << status << "\n";
  return status.ok() ? 0 : 1;
}

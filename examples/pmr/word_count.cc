// Counts the words of a file, in containers of the standard library whose memory is the pool's.
//
//   word_count FILE

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iostream>
#include <memory_resource>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "spanpool/spanpool.h"

namespace {

constexpr size_t kMost = 10;  // how many words are printed

using Counts = std::pmr::unordered_map<std::pmr::string, size_t>;

// A container passes its resource on to what it holds: table, nodes and the words' characters all
// come from the same place.
Counts Count(std::istream& text, std::pmr::memory_resource* memory) {
  Counts counts(memory);
  std::pmr::string word(memory);
  while (text >> word) ++counts[word];
  return counts;
}

void PrintMostFrequent(const Counts& counts, std::pmr::memory_resource* memory) {
  std::pmr::vector<const Counts::value_type*> words(memory);
  words.reserve(counts.size());
  for (const auto& entry : counts) words.push_back(&entry);
  const auto end = words.begin() + static_cast<std::ptrdiff_t>(std::min(kMost, words.size()));
  std::partial_sort(words.begin(), end, words.end(), [](const auto* a, const auto* b) {
    return a->second != b->second ? a->second > b->second : a->first < b->first;
  });
  for (auto word = words.begin(); word != end; ++word) {
    std::cout << (*word)->second << " " << (*word)->first << "\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::cerr << "usage: word_count FILE\n", 2;
  std::ifstream text(argv[1]);
  if (!text) return std::cerr << "word_count: cannot read " << argv[1] << "\n", 1;

  auto session = spanpool::Session::Attach({});
  if (!session.ok()) return std::cerr << "word_count: " << session.status() << "\n", 1;
  std::pmr::memory_resource* const memory = (*session)->resource();

  try {
    const Counts counts = Count(text, memory);
    PrintMostFrequent(counts, memory);
    // The pool's books, while the containers stand.
    const spanpool::SessionStats stats = (*session)->stats();
    std::cout << stats.allocations << " allocations, " << stats.refills
              << " of them waited for the daemon; " << (stats.bytes_on_loan >> 10)
              << " KiB on loan\n";
  } catch (const std::bad_alloc&) {
    // Only this process's own work is lost: its memory goes back, and others carry on.
    std::cerr << "word_count: the pool is full; give it a higher limit, or split the file\n";
    return 1;
  }
}

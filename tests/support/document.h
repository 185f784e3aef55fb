// What stands in a document: for tests that do what it says.

#ifndef SPANPOOL_TESTS_SUPPORT_DOCUMENT_H_
#define SPANPOOL_TESTS_SUPPORT_DOCUMENT_H_

#include <string>
#include <vector>

namespace spanpool::testing {

// The fenced blocks of one language of a Markdown file, in order; each line ends with a newline.
std::vector<std::string> Blocks(const std::string& path, const std::string& language);

}  // namespace spanpool::testing

#endif  // SPANPOOL_TESTS_SUPPORT_DOCUMENT_H_

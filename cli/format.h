// How figures look on a terminal.

#ifndef SPANPOOL_CLI_FORMAT_H_
#define SPANPOOL_CLI_FORMAT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace spanpool::cli {

// "0 B", "512 B", "1.5 KiB", "64.0 MiB".
std::string HumanBytes(uint64_t bytes);

// "3s", "2m 5s", "3h 2m", "4d 1h".
std::string HumanSeconds(double seconds);

// Lines of equal columns two spaces apart; the first column is flush left, others flush right.
// Every row has as many cells as the first.
std::string Table(const std::vector<std::vector<std::string>>& rows);

}  // namespace spanpool::cli

#endif  // SPANPOOL_CLI_FORMAT_H_

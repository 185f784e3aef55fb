// A process to be killed: holds BLOCKS shared blocks of SIZE bytes of the pool that SPANPOOL_TARGET
// names.
//
//   recovery_holder BLOCKS SIZE      prints READY once it does, or why it cannot; ends with its
//   input

#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "spanpool/spanpool.h"

namespace {

absl::Status Hold(spanpool::Session& session, size_t blocks, size_t bytes,
                  std::vector<spanpool::Buffer>* held) {
  held->reserve(blocks);
  while (held->size() < blocks) {
    absl::StatusOr<spanpool::Buffer> buffer =
        session.Allocate(bytes, {.timeout = absl::Seconds(20)});
    if (!buffer.ok()) return buffer.status();
    const absl::StatusOr<spanpool::Handle> handle = buffer->Share();
    if (!handle.ok()) return handle.status();
    held->push_back(*std::move(buffer));
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  absl::StatusOr<std::unique_ptr<spanpool::Session>> session = spanpool::Session::Attach({});
  absl::Status status = session.status();
  std::vector<spanpool::Buffer> held;
  if (status.ok()) {
    status = Hold(**session, std::strtoull(argv[1], nullptr, 10),
                  std::strtoull(argv[2], nullptr, 10), &held);
  }
  std::cout << (status.ok() ? "READY" : std::string(status.message())) << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
  }
  return 0;
}

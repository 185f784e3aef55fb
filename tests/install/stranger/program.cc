// A program of somebody who has only the installed library. It calls all of the interface once, so
// that a symbol which the library does not export is an error of the linker's.

#include <spanpool/spanpool.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <memory_resource>
#include <utility>
#include <vector>

namespace {

#define REQUIRE(condition)                                                          \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::cerr << "program.cc:" << __LINE__ << ": not so: " << #condition << "\n"; \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (false)

void UseBuffers(spanpool::Session& session) {
  auto buffer = session.Allocate(1 << 20, {.zeroed = true});
  if (!buffer.ok()) {
    std::cerr << buffer.status() << "\n";
    std::exit(1);
  }
  REQUIRE(buffer->span()[12345] == std::byte{0});
  std::strcpy(reinterpret_cast<char*>(buffer->data()), "hello");
  REQUIRE(buffer->Trim(4096).ok());
  const spanpool::Buffer other_owner = buffer->Ref();

  const auto handle = buffer->Share();
  REQUIRE(handle.ok());
  const auto parsed = spanpool::Handle::Parse(handle->ToString());
  REQUIRE(parsed.ok() && *parsed == *handle);
  auto same = session.Open(*parsed);
  REQUIRE(same.ok() && same->size() == 4096);
  REQUIRE(std::strcmp(reinterpret_cast<const char*>(same->data()), "hello") == 0);
  REQUIRE(std::move(*same).Send().ok());
}

void UseMalloc(spanpool::Session& session) {
  int misuses = 0;
  session.SetMisuseHandler([&misuses](const spanpool::Misuse&) { ++misuses; });
  std::vector<void*> blocks;
  for (size_t size = 1; size < 100'000; size = size * 3 / 2 + 1) {
    blocks.push_back(session.Malloc(size));
    REQUIRE(blocks.back() != nullptr && session.UsableSize(blocks.back()) >= size);
    std::memset(blocks.back(), 0x5a, size);
  }
  for (void* block : blocks) session.Free(block);
  REQUIRE(misuses == 0);
  session.Free(&misuses);
  REQUIRE(misuses == 1);
  session.SetMisuseHandler(nullptr);

  std::pmr::vector<int> numbers(session.resource());
  for (int i = 0; i < 10'000; ++i) numbers.push_back(i);
  REQUIRE(numbers[9'999] == 9'999);
}

}  // namespace

int main() {
  auto session = spanpool::Session::Attach({});
  if (!session.ok()) {
    std::cerr << session.status() << "\n";
    return 1;
  }
  UseBuffers(**session);
  UseMalloc(**session);
  REQUIRE((*session)->stats().allocations > 0);
  std::cout << "all of it works\n";
}

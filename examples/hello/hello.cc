#include <cstring>
#include <iostream>

#include "spanpool/spanpool.h"

int main() {
  auto session = spanpool::Session::Attach({});  // the daemon on this machine
  if (!session.ok()) return std::cerr << session.status() << "\n", 1;

  auto buffer = (*session)->Allocate(1 << 20);  // 1 MiB of shared memory
  if (!buffer.ok()) return std::cerr << buffer.status() << "\n", 1;
  std::strcpy(reinterpret_cast<char*>(buffer->data()), "hello");

  auto handle = buffer->Share();  // 16 bytes: send them to another process by any means
  if (!handle.ok()) return std::cerr << handle.status() << "\n", 1;
  std::cout << handle->ToString() << "\n";

  auto same = (*session)->Open(*handle);  // there: the same bytes, no copy
  if (!same.ok()) return std::cerr << same.status() << "\n", 1;
  std::cout << reinterpret_cast<const char*>(same->data()) << "\n";
}

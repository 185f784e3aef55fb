// A std::pmr::memory_resource over a session.

#ifndef SPANPOOL_CLIENT_MEMORY_RESOURCE_H_
#define SPANPOOL_CLIENT_MEMORY_RESOURCE_H_

#include <cstddef>
#include <memory>
#include <memory_resource>

#include "client/session_core.h"

namespace spanpool::internal {

// Thread-safe. Equal only to itself.
std::unique_ptr<std::pmr::memory_resource> NewMemoryResource(SessionCore* core);

}  // namespace spanpool::internal

#endif  // SPANPOOL_CLIENT_MEMORY_RESOURCE_H_

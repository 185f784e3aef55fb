// libFuzzer's door to the heap: the input is a sequence of operations (heap_driver.h).

#include <cstddef>
#include <cstdint>

#include "allocator/check.h"
#include "allocator/heap_driver.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  spanpool::HeapDriver driver;
  SPANPOOL_CHECK_EQ(driver.Run({data, size}, 16), "");
  SPANPOOL_CHECK_EQ(driver.Finish(), "");
  return 0;
}

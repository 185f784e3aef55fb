// A shared library of somebody's that keeps spanpool to itself, as a module of an interpreter
// would.

#include <spanpool/spanpool.h>

extern "C" int plugin_run() {
  auto session = spanpool::Session::Attach({});
  if (!session.ok()) return 1;
  void* block = (*session)->Malloc(100);
  (*session)->Free(block);
  return block == nullptr ? 2 : 0;
}

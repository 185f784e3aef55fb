// Loads a plugin and runs it.

#include <dlfcn.h>

#include <cstdio>

int main(int, char** argv) {
  void* plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) return std::puts(dlerror()), 1;
  auto* run = reinterpret_cast<int (*)()>(dlsym(plugin, "plugin_run"));
  return run == nullptr ? 1 : run();
}

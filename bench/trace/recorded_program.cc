// Allocates in ways that the recorder's test knows, and ends without cleaning up.

#include <malloc.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

namespace {

// Keeps the compiler from pairing allocations with frees and leaving both out.
void* volatile sink;

void Use(void* block) { sink = block; }

void FromAThread() {
  for (int i = 0; i < 1000; ++i) {
    void* block = malloc(70'001);
    Use(block);
    free(block);
  }
}

}  // namespace

int main() {
  void* a = malloc(10'001);
  Use(a);
  void* b = calloc(3, 10'002);
  Use(b);
  free(a);
  b = realloc(b, 100'003);
  Use(b);
  void* c = nullptr;
  if (posix_memalign(&c, 4096, 10'004) != 0) return 1;
  Use(c);
  if (malloc_usable_size(c) < 10'004) return 1;
  free(c);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(FromAThread);
  for (std::thread& thread : threads) thread.join();
  // A forked child is not recorded.
  const pid_t child = fork();
  if (child == 0) {
    Use(malloc(66'666));
    _exit(0);
  }
  if (child < 0 || waitpid(child, nullptr, 0) != child) return 1;
  Use(malloc(10'005));
  _exit(0);
}

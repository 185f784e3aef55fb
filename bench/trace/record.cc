// Records what a program asks its allocator for: a library for LD_PRELOAD.
//
//   SPANPOOL_TRACE=/tmp/run LD_PRELOAD=…/librecord.so PROGRAM…
//
// writes /tmp/run.PROGRAM.PID for each process that is started (trace_format.h), whichever way it
// ends: the file is a shared mapping, and its header always tells how many bytes of it are valid.
// SPANPOOL_TRACE_EVENTS=N stops recording, not the program, after N events. A forked child that
// does not call exec is not recorded.
//
// All of it runs inside malloc, so it allocates nothing itself: the C library's own allocator is
// reached by its internal names, which need no look-up, and the table of live blocks is a mapping.
// One lock puts the events of all threads in one order; it is taken before a block is freed and
// after one is allocated, so that no address is allocated twice in the trace without a free
// between.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "bench/trace/trace_format.h"

extern "C" {
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);
extern char* program_invocation_short_name;
}

namespace spanpool::bench {
namespace {

// The ids of live blocks by address: open addressing, linear probing, deletion by moving back.
class LiveBlocks {
 public:
  bool Insert(void* block, uint64_t id) {
    if ((count_ + 1) * 2 > capacity_ && !Rehash()) return false;
    size_t i = Home(block);
    while (entries_[i].block != nullptr) i = (i + 1) & (capacity_ - 1);
    entries_[i] = {block, id};
    ++count_;
    return true;
  }

  bool Remove(void* block, uint64_t* id) {
    if (capacity_ == 0) return false;
    size_t i = Home(block);
    while (entries_[i].block != block) {
      if (entries_[i].block == nullptr) return false;
      i = (i + 1) & (capacity_ - 1);
    }
    *id = entries_[i].id;
    --count_;
    for (size_t j = i;;) {
      j = (j + 1) & (capacity_ - 1);
      if (entries_[j].block == nullptr) break;
      // An entry may fill the hole unless its home lies behind the hole.
      const size_t from_home = (j - Home(entries_[j].block)) & (capacity_ - 1);
      if (from_home >= ((j - i) & (capacity_ - 1))) {
        entries_[i] = entries_[j];
        i = j;
      }
    }
    entries_[i] = {};
    return true;
  }

 private:
  struct Entry {
    void* block;
    uint64_t id;
  };

  size_t Home(void* block) const {
    const uint64_t hash = reinterpret_cast<uint64_t>(block) * 0x9e3779b97f4a7c15u;
    return hash >> (64 - std::countr_zero(capacity_));
  }

  bool Rehash() {
    const size_t capacity = capacity_ == 0 ? size_t{1} << 16 : capacity_ * 2;
    void* memory = mmap(nullptr, capacity * sizeof(Entry), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    Entry* old = entries_;
    const size_t old_capacity = capacity_;
    entries_ = static_cast<Entry*>(memory);
    capacity_ = capacity;
    count_ = 0;
    for (size_t i = 0; i < old_capacity; ++i) {
      if (old[i].block != nullptr) Insert(old[i].block, old[i].id);
    }
    if (old != nullptr) munmap(old, old_capacity * sizeof(Entry));
    return true;
  }

  Entry* entries_ = nullptr;
  size_t capacity_ = 0;
  size_t count_ = 0;
};

class Recorder {
 public:
  void Allocated(void* block, size_t bytes, size_t alignment) {
    if (block == nullptr || state_ == State::kOff) return;
    const int saved_errno = errno;
    pthread_mutex_lock(&mu_);
    if (Ready() && live_.Insert(block, next_id_)) {
      TraceEvent event{TraceEvent::Kind::kAlloc, bytes};
      if (alignment > 16) {
        event.kind = TraceEvent::Kind::kAlignedAlloc;
        event.alignment_log2 = static_cast<uint8_t>(std::countr_zero(alignment));
      }
      Append(event);
      ++next_id_;
    }
    pthread_mutex_unlock(&mu_);
    errno = saved_errno;
  }

  // Blocks from before the recording began are no part of it.
  void Freed(void* block) {
    if (block == nullptr || state_ == State::kOff) return;
    const int saved_errno = errno;
    pthread_mutex_lock(&mu_);
    uint64_t id;
    if (Ready() && live_.Remove(block, &id)) Append({TraceEvent::Kind::kFree, id});
    pthread_mutex_unlock(&mu_);
    errno = saved_errno;
  }

  // What realloc did, as a move. The old block's address may be the new one's.
  void* Reallocate(void* block, size_t bytes) {
    if (state_ == State::kOff || block == nullptr || bytes == 0) {
      Freed(bytes == 0 ? block : nullptr);
      void* moved = __libc_realloc(block, bytes);
      if (block == nullptr) Allocated(moved, bytes, 0);
      return moved;
    }
    pthread_mutex_lock(&mu_);
    uint64_t id = 0;
    const bool known = Ready() && live_.Remove(block, &id);
    void* moved = __libc_realloc(block, bytes);
    const int saved_errno = errno;
    if (known && moved == nullptr) live_.Insert(block, id);
    if (moved != nullptr && Ready()) {
      if (live_.Insert(moved, next_id_)) {
        Append({TraceEvent::Kind::kAlloc, bytes});
        ++next_id_;
      }
      if (known) Append({TraceEvent::Kind::kFree, id});
    }
    pthread_mutex_unlock(&mu_);
    errno = saved_errno;
    return moved;
  }

 private:
  enum class State { kNew, kOn, kOff };
  static constexpr size_t kFileStep = size_t{1} << 22;

  bool Ready() {
    if (state_ == State::kNew) state_ = Open() ? State::kOn : State::kOff;
    return state_ == State::kOn;
  }

  bool Open() {
    const char* prefix = getenv("SPANPOOL_TRACE");
    if (prefix == nullptr) return false;
    char path[512];
    size_t n = 0;
    const auto put = [&](const char* text) {
      while (*text != 0 && n + 1 < sizeof(path)) path[n++] = *text++;
    };
    char pid[24] = {};
    size_t digit = sizeof(pid) - 1;
    for (long value = getpid(); value > 0; value /= 10) {
      pid[--digit] = static_cast<char>('0' + value % 10);
    }
    put(prefix);
    put(".");
    put(program_invocation_short_name);
    put(".");
    put(pid + digit);
    path[n] = 0;
    file_ = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file_ < 0) return false;
    const char* limit = getenv("SPANPOOL_TRACE_EVENTS");
    if (limit != nullptr) events_left_ = strtoull(limit, nullptr, 10);
    pthread_atfork(nullptr, nullptr, [] { instance().state_ = State::kOff; });
    if (!Extend()) return false;
    memcpy(header()->magic, kTraceMagic, sizeof(header()->magic));
    used_ = sizeof(TraceHeader);
    return true;
  }

  bool Extend() {
    if (ftruncate(file_, static_cast<off_t>(mapped_ + kFileStep)) != 0) return false;
    void* memory = mapped_ == 0
                       ? mmap(nullptr, kFileStep, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0)
                       : mremap(file_bytes_, mapped_, mapped_ + kFileStep, MREMAP_MAYMOVE);
    if (memory == MAP_FAILED) return false;
    file_bytes_ = static_cast<unsigned char*>(memory);
    mapped_ += kFileStep;
    return true;
  }

  void Append(const TraceEvent& event) {
    if (events_left_ == 0 || (used_ + kMaxEventBytes > mapped_ && !Extend())) {
      state_ = State::kOff;
      return;
    }
    --events_left_;
    used_ = static_cast<size_t>(PutEvent(event, next_id_, file_bytes_ + used_) - file_bytes_);
    header()->event_bytes = used_ - sizeof(TraceHeader);
  }

  TraceHeader* header() { return reinterpret_cast<TraceHeader*>(file_bytes_); }

  pthread_mutex_t mu_ = PTHREAD_MUTEX_INITIALIZER;
  volatile State state_ = State::kNew;  // read outside the lock only to skip what would do nothing
  int file_ = -1;
  unsigned char* file_bytes_ = nullptr;
  size_t mapped_ = 0;
  size_t used_ = 0;
  uint64_t events_left_ = UINT64_MAX;
  uint64_t next_id_ = 0;
  LiveBlocks live_;

 public:
  static Recorder& instance() {
    static constinit Recorder recorder;
    return recorder;
  }
};

}  // namespace
}  // namespace spanpool::bench

using Recorder = spanpool::bench::Recorder;

extern "C" {

void* malloc(size_t bytes) {
  void* block = __libc_malloc(bytes);
  Recorder::instance().Allocated(block, bytes, 0);
  return block;
}

void* calloc(size_t count, size_t bytes) {
  void* block = __libc_calloc(count, bytes);
  Recorder::instance().Allocated(block, count * bytes, 0);
  return block;
}

void* realloc(void* block, size_t bytes) { return Recorder::instance().Reallocate(block, bytes); }

void* memalign(size_t alignment, size_t bytes) {
  void* block = __libc_memalign(alignment, bytes);
  Recorder::instance().Allocated(block, bytes, alignment);
  return block;
}

void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }

int posix_memalign(void** block, size_t alignment, size_t bytes) {
  if (alignment % sizeof(void*) != 0 || !std::has_single_bit(alignment)) return EINVAL;
  void* result = memalign(alignment, bytes);
  if (result == nullptr) return ENOMEM;
  *block = result;
  return 0;
}

void* reallocarray(void* block, size_t count, size_t bytes) {
  size_t total;
  if (__builtin_mul_overflow(count, bytes, &total)) {
    errno = ENOMEM;
    return nullptr;
  }
  return realloc(block, total);
}

// Of a program that is linked with another allocator, which would not know our blocks.
size_t malloc_usable_size(void* block) noexcept {
  using Function = size_t (*)(void*);
  static const auto libc_function = reinterpret_cast<Function>(
      dlsym(dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD), "malloc_usable_size"));
  return libc_function(block);
}

void free(void* block) {
  Recorder::instance().Freed(block);
  __libc_free(block);
}

}  // extern "C"

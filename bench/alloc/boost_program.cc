// boost::interprocess::managed_shared_memory: an allocator in shared memory, with its own mutex in
// it.

#include <sys/statvfs.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/alloc/patterns.h"
#if SPANPOOL_HAVE_BOOST_INTERPROCESS
#include <boost/interprocess/managed_shared_memory.hpp>

namespace {

namespace ipc = boost::interprocess;

// The segment of the case under way.
std::optional<ipc::managed_shared_memory> segment;

struct Boost {
  ipc::managed_shared_memory* memory = nullptr;

  // Fresh memory of twice what will be live. Nobody else needs the name, so it goes at once: then
  // nothing is left behind, however this program ends.
  absl::Status Prepare(size_t bytes, size_t live, int) {
    const std::string name = absl::StrCat("spanpool-bench-", getpid());
    segment.reset();
    ipc::shared_memory_object::remove(name.c_str());
    const size_t wanted = (size_t{1} << 20) + 2 * live * bytes;
    struct statvfs shm;
    if (statvfs("/dev/shm", &shm) != 0 || shm.f_bavail * shm.f_bsize < wanted) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "needs ", wanted >> 20, " MiB of /dev/shm; it has ", shm.f_bavail * shm.f_bsize >> 20));
    }
    try {
      memory = &segment.emplace(ipc::create_only, name.c_str(), wanted);
    } catch (const ipc::interprocess_exception& e) {
      return absl::ResourceExhaustedError(absl::StrCat("managed_shared_memory: ", e.what()));
    }
    ipc::shared_memory_object::remove(name.c_str());
    return absl::OkStatus();
  }
  void EnterThread() {}
  void LeaveThread() {}
  void* Alloc(size_t bytes) { return memory->allocate(bytes, std::nothrow); }
  void Free(void* block) { memory->deallocate(block); }
};

}  // namespace

int main() {
  Boost allocator;
  return spanpool::bench::Serve(allocator);
}

#else

int main() {
  return spanpool::bench::ServeAbsent(
      "Boost.Interprocess is not installed; run apt-get install libboost-dev");
}

#endif

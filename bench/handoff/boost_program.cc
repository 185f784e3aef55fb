// boost::interprocess::managed_shared_memory: an allocator in shared memory, with its mutex in it.
// The sender allocates, a ring carries the block's offset, the receiver deallocates.

#include <sys/statvfs.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/handoff/two_sides.h"
#include "bench/spsc_ring.h"
#if SPANPOOL_HAVE_BOOST_INTERPROCESS
#include <boost/interprocess/managed_shared_memory.hpp>

namespace spanpool::bench {
namespace {

namespace ipc = boost::interprocess;
using Segment = ipc::managed_shared_memory;

// As large as a handle.
struct Message {
  Segment::handle_t block;
  uint64_t number;
};
using Ring = SpscRing<Message, kWindow>;

struct Shared {
  Ring ring;
  char name[64];  // of the segment
};

// Each size has fresh memory of twice what is under way. The name goes as soon as the receiver has
// opened it: nothing is left behind unless the program dies in between.
class Sender final : public Side {
 public:
  explicit Sender(Shared* shared) : shared_(shared) {}
  ~Sender() override { RemoveName(); }

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    segment_.reset();
    RemoveName();
    const size_t wanted = (size_t{1} << 20) + 2 * (kWindow + 2) * bytes;
    struct statvfs shm;
    if (statvfs("/dev/shm", &shm) != 0 || shm.f_bavail * shm.f_bsize < wanted) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "needs ", wanted >> 20, " MiB of /dev/shm; it has ", shm.f_bavail * shm.f_bsize >> 20));
    }
    absl::StrCat("spanpool-bench-", getpid()).copy(shared_->name, sizeof(shared_->name) - 1);
    try {
      segment_.emplace(ipc::create_only, shared_->name, wanted);
    } catch (const ipc::interprocess_exception& e) {
      return absl::ResourceExhaustedError(absl::StrCat("managed_shared_memory: ", e.what()));
    }
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      shared_->ring.WaitForRoom();
      void* const block = segment_->allocate(bytes_, std::nothrow);
      if (block == nullptr) GiveUp("managed_shared_memory is full");
      WriteEnds(block, bytes_, number);
      shared_->ring.Push({segment_->get_handle_from_address(block), number});
    }
  }

 private:
  void RemoveName() {
    if (*shared_->name != 0) ipc::shared_memory_object::remove(shared_->name);
  }

  Shared* const shared_;
  std::optional<Segment> segment_;
  size_t bytes_ = 0;
};

class Receiver final : public Side {
 public:
  explicit Receiver(Shared* shared) : shared_(shared) {}

  absl::Status Prepare(size_t bytes) override {
    bytes_ = bytes;
    try {
      segment_.emplace(ipc::open_only, shared_->name);
    } catch (const ipc::interprocess_exception& e) {
      return absl::NotFoundError(absl::StrCat("managed_shared_memory: ", e.what()));
    }
    ipc::shared_memory_object::remove(shared_->name);
    return absl::OkStatus();
  }

  void Run(uint64_t messages) override {
    for (uint64_t number = 0; number < messages; ++number) {
      void* const block = segment_->get_address_from_handle(shared_->ring.Front().block);
      CheckEnds(block, bytes_, number);
      segment_->deallocate(block);
      shared_->ring.DropFront();
    }
  }

 private:
  Shared* const shared_;
  std::optional<Segment> segment_;
  size_t bytes_ = 0;
};

template <typename S>
absl::StatusOr<std::unique_ptr<Side>> Make(void* shared) {
  return std::make_unique<S>(static_cast<Shared*>(shared));
}

}  // namespace
}  // namespace spanpool::bench

int main() {
  using namespace spanpool::bench;  // NOLINT: this file is one program
  return RunTwoSides(sizeof(Shared), Make<Sender>, Make<Receiver>);
}

#else

int main() {
  return spanpool::bench::RunAbsent(
      "Boost.Interprocess is not installed; run apt-get install libboost-dev");
}

#endif

// Session::Malloc and Session::Free, on the pool that SPANPOOL_TARGET names.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "bench/alloc/patterns.h"
#include "spanpool/spanpool.h"

namespace {

struct Spanpool {
  spanpool::Session* session;

  absl::Status Prepare(size_t, size_t, int) { return absl::OkStatus(); }
  void EnterThread() {}
  void LeaveThread() {}
  void* Alloc(size_t bytes) { return session->Malloc(bytes); }
  void Free(void* block) { session->Free(block); }
};

}  // namespace

int main() {
  spanpool::SessionOptions options;
  options.attach_timeout = absl::Seconds(60);  // valgrind makes haste slowly
  absl::StatusOr<std::unique_ptr<spanpool::Session>> session = spanpool::Session::Attach(options);
  if (!session.ok()) return spanpool::bench::ServeAbsent(std::string(session.status().message()));
  Spanpool allocator{session->get()};
  return spanpool::bench::Serve(allocator);
}

// Replays a trace (replay.h) against `spanpool`: Session::Malloc and Session::Free on the pool that
// SPANPOOL_TARGET names. What other processes hold for it is what the daemon holds: the memory
// behind the files it shares (blocks, tables, sessions), and its own records. SPANPOOL_BENCH_DAEMON
// is the daemon's process id.

#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "bench/trace/block_allocators.h"
#include "bench/trace/replay.h"
#include "spanpool/spanpool.h"

namespace spanpool::bench {
namespace {

class Spanpool : public BlockAllocator {
 public:
  Spanpool(std::unique_ptr<Session> session, pid_t daemon)
      : session_(std::move(session)),
        files_(absl::StrCat("/proc/", daemon, "/fd")),
        smaps_rollup_(absl::StrCat("/proc/", daemon, "/smaps_rollup")) {
    if (clock_getcpuclockid(daemon, &clock_) != 0) {
      std::cerr << "replay: there is no daemon " << daemon << "\n";
      std::exit(1);
    }
  }

  void* Alloc(size_t bytes, size_t alignment) override {
    if (alignment <= 16) return session_->Malloc(bytes);
    try {
      return session_->resource()->allocate(bytes, alignment);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }
  void Free(void* block, size_t) override { session_->Free(block); }
  size_t Usable(void* block, size_t) override { return session_->UsableSize(block); }

  uint64_t bytes_elsewhere() override {
    uint64_t bytes = AnonymousBytesOf(smaps_rollup_.c_str());
    std::set<ino_t> seen;  // a file may be open twice
    for (const auto& entry : std::filesystem::directory_iterator(files_)) {
      std::error_code gone;
      const std::string name = std::filesystem::read_symlink(entry.path(), gone).string();
      struct stat file;
      if (!gone && absl::StartsWith(name, "/memfd:") && stat(entry.path().c_str(), &file) == 0 &&
          seen.insert(file.st_ino).second) {
        bytes += static_cast<uint64_t>(file.st_blocks) * 512;
      }
    }
    return bytes;
  }
  double ns_elsewhere() override {
    timespec now{};
    clock_gettime(clock_, &now);
    return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
  }

 private:
  const std::unique_ptr<Session> session_;
  const std::string files_;
  const std::string smaps_rollup_;
  clockid_t clock_{};
};

std::unique_ptr<BlockAllocator> Make(std::string_view name) {
  if (name != "spanpool") return nullptr;
  pid_t daemon = 0;
  const char* const text = std::getenv("SPANPOOL_BENCH_DAEMON");
  if (text == nullptr || !absl::SimpleAtoi(text, &daemon)) {
    std::cerr << "replay: SPANPOOL_BENCH_DAEMON names no process\n";
    std::exit(1);
  }
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Attach({});
  if (!session.ok()) {
    std::cerr << "replay: " << session.status().message() << "\n";
    std::exit(1);
  }
  return std::make_unique<Spanpool>(*std::move(session), daemon);
}

}  // namespace
}  // namespace spanpool::bench

int main(int argc, char** argv) {
  return spanpool::bench::ReplayMain(argc, argv, spanpool::bench::Make);
}

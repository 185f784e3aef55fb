#include "bench/alloc/systems.h"

#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "bench/child.h"
#include "bench/pool_daemon.h"
#include "bench/program.h"
#include "tests/support/process.h"

namespace spanpool::bench {
namespace {

struct System {
  const char* name;
  const char* program;
  const char* library = "";  // put in malloc's place
  const char* package = "";
};

constexpr System kSystems[] = {
    {"spanpool", "bench/alloc/spanpool_program"},
    {"dpdk_mempool", "bench/alloc/dpdk_program"},
    {"tcmalloc", "bench/alloc/malloc_program", "libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"},
    {"jemalloc", "bench/alloc/malloc_program", "libjemalloc.so.2", "libjemalloc2"},
    {"mimalloc", "bench/alloc/malloc_program", "libmimalloc.so.2", "libmimalloc2.0"},
    {"glibc", "bench/alloc/malloc_program"},
    {"boost_interprocess", "bench/alloc/boost_program"},
};

constexpr char kValgrind[] = "/usr/bin/valgrind";
// Of spanpool: room for 256 blocks of 1 MiB, and on every machine the same.
constexpr uint64_t kPoolBytes = uint64_t{1} << 30;

using Environment = std::vector<std::pair<std::string, std::string>>;

// The daemon that all programs of ours share.
class Pool {
 public:
  absl::StatusOr<std::string> Target() {
    if (daemon_ == nullptr) {
      absl::StatusOr<std::unique_ptr<PoolDaemon>> daemon =
          PoolDaemon::Start({.limit_bytes = kPoolBytes});
      if (!daemon.ok()) return daemon.status();
      daemon_ = *std::move(daemon);
    }
    return daemon_->target();
  }

 private:
  std::unique_ptr<PoolDaemon> daemon_;
};

// A system's program, started when it is first asked.
class SystemProgram {
 public:
  SystemProgram(const System& system, bool count_instructions, std::shared_ptr<Pool> pool)
      : system_(system), count_instructions_(count_instructions), pool_(std::move(pool)) {}
  ~SystemProgram() {
    program_.reset();
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  SystemProgram(const SystemProgram&) = delete;
  SystemProgram& operator=(const SystemProgram&) = delete;

  absl::StatusOr<double> Measure(const std::string& pattern, size_t bytes, absl::Duration time) {
    if (!program_) {
      if (absl::Status status = Start(); !status.ok()) {
        program_.reset();
        return status;
      }
    }
    const absl::StatusOr<std::string> answer =
        program_->Ask(absl::StrCat(pattern, " ", bytes, " ", absl::ToInt64Milliseconds(time)));
    if (!answer.ok()) {
      // The next case starts it anew.
      if (absl::IsAborted(answer.status())) program_.reset();
      return answer.status();
    }
    double value = 0;
    if (!absl::SimpleAtod(*answer, &value)) {
      return absl::InternalError(absl::StrCat(system_.program, " answered \"", *answer, "\""));
    }
    return value;
  }

 private:
  absl::Status Start() {
    std::vector<std::string> arguments = {BuiltPath(system_.program)};
    testing::Process::Options options;
    if (*system_.library != 0) {
      const absl::StatusOr<std::string> library = FindLibrary(system_.library, system_.package);
      if (!library.ok()) return library.status();
      options.environment.emplace_back("LD_PRELOAD", *library);
    }
    if (std::string_view(system_.name) == "spanpool") {
      const absl::StatusOr<std::string> target = pool_->Target();
      if (!target.ok()) return target.status();
      options.environment.emplace_back("SPANPOOL_TARGET", *target);
    }
    if (count_instructions_) {
      if (folder_.empty()) folder_ = testing::TemporaryDirectory();
      const std::string out = folder_ + "/callgrind";
      arguments.insert(arguments.begin(), {kValgrind, "-q", "--tool=callgrind",
                                           "--collect-atstart=no", "--callgrind-out-file=" + out});
      options.environment.emplace_back("SPANPOOL_BENCH_CALLGRIND_OUT", out);
    }
    program_ = std::make_unique<Program>(arguments, options);
    return program_->Ready();
  }

  const System& system_;
  const bool count_instructions_;
  const std::shared_ptr<Pool> pool_;
  std::string folder_;
  std::unique_ptr<Program> program_;
};

void Add(Suite& suite, const std::vector<PatternCase>& cases, bool count_instructions) {
  const auto pool = std::make_shared<Pool>();
  for (const System& system : kSystems) {
    const auto program = std::make_shared<SystemProgram>(system, count_instructions, pool);
    for (const PatternCase& c : cases) {
      suite.Add(c.name, system.name, [=, time = suite.round_time()]() -> absl::StatusOr<Metrics> {
        const absl::StatusOr<double> value = program->Measure(c.pattern, c.bytes, time);
        if (!value.ok()) return value.status();
        if (count_instructions) return Metrics{{"instructions", "instructions", *value}};
        return Metrics{{"ns_per_pair", "ns", *value}};
      });
    }
  }
}

}  // namespace

void AddTimed(Suite& suite, const std::vector<PatternCase>& cases) {
  Add(suite, cases, /*count_instructions=*/false);
}

void AddInstructions(Suite& suite, const std::vector<PatternCase>& cases) {
  if (access(kValgrind, X_OK) == 0) return Add(suite, cases, /*count_instructions=*/true);
  for (const PatternCase& c : cases) {
    for (const System& system : kSystems) {
      suite.Absent(c.name, system.name, "valgrind is not installed; run apt-get install valgrind");
    }
  }
}

}  // namespace spanpool::bench

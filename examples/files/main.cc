// The demo: real files, read by two processes, checked by two others, without a copy in between.
//
//   files_demo --spanpoold PATH --spanpool PATH [FILE...]
//
// Starts a daemon in a temporary run directory, two producers and two consumers, and compares what
// the consumers hashed with what OpenSSL makes of the files themselves. Exit code 0 only if every
// hash is equal and the daemon counts no block in use at the end.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "examples/files/consumer.h"
#include "examples/files/messages.h"
#include "examples/files/producer.h"
#include "examples/files/sha256.h"

namespace spanpool::demo {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kDefaultBytes = 512 << 20;  // how much of the machine's own files is read
constexpr const char* kLimit = "1073741824";

// Set by SIGINT, SIGTERM and SIGHUP: the demo ends its processes and removes its directory.
volatile sig_atomic_t interrupted = 0;

void WatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted = 1; };  // no SA_RESTART: waits return
  for (const int signal_number : {SIGINT, SIGTERM, SIGHUP}) {
    sigaction(signal_number, &action, nullptr);
  }
}

// A child process whose standard output is read line by line.
class Child {
 public:
  template <typename Body>
  static Child Fork(const Body& body) {
    int out[2];
    if (pipe2(out, O_CLOEXEC) != 0) std::exit(1);
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid == 0) {
      // Nothing of the demo outlives it, however it ends.
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      for (const int signal_number : {SIGINT, SIGTERM, SIGHUP}) signal(signal_number, SIG_DFL);
      dup2(out[1], STDOUT_FILENO);
      const int code = body();
      std::fflush(stdout);
      _exit(code);
    }
    close(out[1]);
    return Child(pid, out[0]);
  }

  int output() const { return output_; }

  // Reads what is there and hands each full line to `use`. False at the end of the output.
  template <typename Use>
  bool ReadLines(const Use& use) {
    char chunk[65536];
    const ssize_t n = read(output_, chunk, sizeof(chunk));
    if (n < 0 && errno == EINTR) return true;
    if (n <= 0) return false;
    buffered_.append(chunk, static_cast<size_t>(n));
    for (size_t end; (end = buffered_.find('\n')) != std::string::npos;) {
      use(buffered_.substr(0, end));
      buffered_.erase(0, end + 1);
    }
    return true;
  }

  void Signal(int signal) const { kill(pid_, signal); }

  int Wait() const {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  Child(pid_t pid, int output) : pid_(pid), output_(output) {}
  pid_t pid_;
  int output_;
  std::string buffered_;
};

int Exec(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(argv[0], argv.data());
  std::fprintf(stderr, "%s: %s\n", argv[0], std::strerror(errno));
  return 127;
}

// Files of this machine, largest folders of programs and libraries first, until they are enough.
std::vector<std::string> FilesOfThisMachine() {
  std::vector<std::string> found;
  uint64_t total = 0;
  for (const char* root : {"/usr/bin", "/usr/lib"}) {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::recursive_directory_iterator
             it(root, fs::directory_options::skip_permission_denied, error),
         end;
         !error && it != end; it.increment(error)) {
      if (it->is_symlink() || !it->is_regular_file()) continue;
      names.push_back(it->path());
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      if (total >= kDefaultBytes) return found;
      const uint64_t size = fs::file_size(name, error);
      if (error || size == 0 || access(name.c_str(), R_OK) != 0) continue;
      found.push_back(name);
      total += size;
    }
  }
  return found;
}

std::string HashOfFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> chunk(1 << 20);
  Sha256 hash;
  while (file.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || file.gcount() > 0) {
    hash.Add(chunk.data(), static_cast<size_t>(file.gcount()));
  }
  return hash.Finish();
}

// The default pool, as `spanpool --json status` tells it.
std::optional<nlohmann::json> PoolStatus(const std::string& spanpool, const std::string& target) {
  std::string text;
  Child command = Child::Fork([&] {
    return Exec({spanpool, "--target", target, "--json", "status"});
  });
  while (command.ReadLines([&](const std::string& line) { text += line + "\n"; })) {
  }
  if (command.Wait() != 0) return std::nullopt;
  const auto status = nlohmann::json::parse(text, nullptr, false);
  if (status.is_discarded() || !status.contains("pools") || status["pools"].empty()) {
    return std::nullopt;
  }
  return status["pools"][0];
}

// JSON made from protobuf writes 64-bit integers as strings.
uint64_t Number(const nlohmann::json& value) {
  return value.is_string() ? std::stoull(value.get<std::string>()) : value.get<uint64_t>();
}

void DrawProgress(uint64_t done, uint64_t total) {
  constexpr int kWidth = 40;
  const double fraction = total == 0 ? 1 : static_cast<double>(done) / static_cast<double>(total);
  const int filled = static_cast<int>(fraction * kWidth);
  std::fprintf(stderr, "\r[%s%s] %3.0f %%", std::string(static_cast<size_t>(filled), '#').c_str(),
               std::string(static_cast<size_t>(kWidth - filled), '.').c_str(), fraction * 100);
}

struct Totals {
  uint64_t files = 0, wrong = 0;
  uint64_t buffers = 0, bytes = 0;
  uint64_t small = 0, small_waited = 0, large = 0, large_waited = 0;
  double p50_ns = 0, p99_ns = 0;  // the larger of the producers'
};

int Demo(const std::string& spanpoold, const std::string& spanpool,
         std::vector<std::string> files) {
  WatchInterrupts();
  const bool chosen = !files.empty();
  uint64_t total_bytes = 0;
  for (const std::string& file : files) {
    std::error_code error;
    if (!fs::is_regular_file(file, error) || access(file.c_str(), R_OK) != 0) {
      std::fprintf(stderr, "demo: %s: not a readable file\n", file.c_str());
      return 1;
    }
  }
  if (!chosen) files = FilesOfThisMachine();
  for (const std::string& file : files) total_bytes += fs::file_size(file);

  char run_dir[] = "/tmp/spanpool-demo-XXXXXX";
  if (mkdtemp(run_dir) == nullptr) {
    std::fprintf(stderr, "demo: /tmp: %s\n", std::strerror(errno));
    return 1;
  }
  const struct Cleanup {
    std::string path;
    ~Cleanup() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } cleanup{run_dir};

  const std::string log = std::string(run_dir) + "/daemon.log";
  Child daemon = Child::Fork([&] {
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd >= 0) dup2(fd, STDERR_FILENO);
    // One process, which ends with this one whatever happens.
    return Exec({spanpoold, "--run_dir", run_dir, "--limit", kLimit, "--fd_store=none"});
  });
  const auto show_log = [&] { std::cerr << std::ifstream(log).rdbuf(); };
  bool ready = false;
  while (!ready && !interrupted &&
         daemon.ReadLines([&](const std::string& line) { ready |= line == "READY"; })) {
  }
  if (interrupted) return 130;
  if (!ready) {
    std::fprintf(stderr, "demo: the daemon did not start (exit code %d); its log:\n",
                 daemon.Wait());
    show_log();
    return 1;
  }

  // A pipe from each consumer to each producer, for the handle of its channel.
  int pipes[kProducers][kConsumers][2];
  for (auto& row : pipes) {
    for (auto& pair : row) {
      if (pipe2(pair, O_CLOEXEC) != 0) return 1;
    }
  }
  // Closes every end but those that process (`side`, `index`) uses.
  const auto keep_own_ends = [&](int side, int index) {
    std::vector<int> own;
    for (int p = 0; p < kProducers; ++p) {
      for (int c = 0; c < kConsumers; ++c) {
        close(pipes[p][c][1 - side]);
        if ((side == 0 ? p : c) == index) {
          own.push_back(pipes[p][c][side]);
        } else {
          close(pipes[p][c][side]);
        }
      }
    }
    return own;
  };

  std::vector<Child> children;
  const auto start = std::chrono::steady_clock::now();
  for (int p = 0; p < kProducers; ++p) {
    children.push_back(
        Child::Fork([&, p] { return RunProducer(p, run_dir, files, keep_own_ends(0, p)); }));
  }
  for (int c = 0; c < kConsumers; ++c) {
    children.push_back(Child::Fork([&, c] { return RunConsumer(run_dir, keep_own_ends(1, c)); }));
  }
  for (auto& row : pipes) {
    for (auto& pair : row) {
      close(pair[0]);
      close(pair[1]);
    }
  }

  Totals totals;
  std::map<uint32_t, std::string> hashes;
  uint64_t progress = 0;
  const bool terminal = isatty(STDERR_FILENO) == 1;
  const auto on_line = [&](const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "progress") {
      uint64_t bytes = 0;
      words >> bytes;
      progress += bytes;
      if (terminal) DrawProgress(progress, total_bytes);
    } else if (verb == "hash") {
      uint32_t file = 0;
      std::string hash;
      words >> file >> hash;
      hashes[file] = hash;
    } else if (verb == "consumed") {
      uint64_t buffers = 0, bytes = 0;
      words >> buffers >> bytes;
      totals.buffers += buffers;
      totals.bytes += bytes;
    } else if (verb == "done") {
      uint64_t small = 0, small_waited = 0, large = 0, large_waited = 0;
      double p50 = 0, p99 = 0;
      words >> small >> small_waited >> large >> large_waited >> p50 >> p99;
      totals.small += small;
      totals.small_waited += small_waited;
      totals.large += large;
      totals.large_waited += large_waited;
      totals.p50_ns = std::max(totals.p50_ns, p50);
      totals.p99_ns = std::max(totals.p99_ns, p99);
    }
  };
  bool sound = true;
  std::vector<bool> open(children.size(), true);
  while (std::find(open.begin(), open.end(), true) != open.end()) {
    std::vector<pollfd> waits;
    for (size_t i = 0; i < children.size(); ++i) {
      waits.push_back({open[i] ? children[i].output() : -1, POLLIN, 0});
    }
    // The time-out is for a signal that comes between the look and the wait.
    const int ready_count = poll(waits.data(), waits.size(), 200);
    if (interrupted) {
      for (const Child& child : children) child.Signal(SIGKILL);
      daemon.Signal(SIGTERM);
      daemon.Wait();
      std::fprintf(stderr, "\ndemo: interrupted\n");
      return 130;
    }
    if (ready_count <= 0) continue;
    for (size_t i = 0; i < children.size(); ++i) {
      if (!open[i] || waits[i].revents == 0) continue;
      open[i] = children[i].ReadLines(on_line);
      if (open[i] || children[i].Wait() == 0) continue;
      // The others may wait for it for ever.
      sound = false;
      for (size_t other = 0; other < children.size(); ++other) {
        if (open[other]) children[other].Signal(SIGKILL);
      }
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (terminal) std::fprintf(stderr, "\r%60s\r", "");

  // A clean end gives everything back; deaths are noticed within milliseconds. Ask until it shows.
  std::optional<nlohmann::json> pool;
  uint64_t left = UINT64_MAX;
  for (int tries = 0; tries < 100; ++tries) {
    pool = PoolStatus(spanpool, run_dir);
    if (!pool.has_value()) break;
    left = Number((*pool)["on_loan_bytes"]) + Number((*pool)["in_lists_bytes"]);
    if (left == 0) break;
    poll(nullptr, 0, 50);
  }
  daemon.Signal(SIGTERM);
  if (const int code = daemon.Wait(); code != 0) {
    std::fprintf(stderr, "demo: the daemon ended with exit code %d\n", code);
    sound = false;
  }
  if (!sound) show_log();
  if (!pool.has_value()) {
    std::fprintf(stderr, "demo: `spanpool status` failed\n");
    return 1;
  }

  for (uint32_t i = 0; i < files.size() && !interrupted; ++i) {
    ++totals.files;
    if (const std::string expected = HashOfFile(files[i]); hashes[i] != expected) {
      ++totals.wrong;
      std::fprintf(stderr, "demo: %s: hash differs (%s, expected %s)\n", files[i].c_str(),
                   hashes[i].empty() ? "none" : hashes[i].c_str(), expected.c_str());
    }
  }

  if (interrupted) return 130;

  const auto share = [](uint64_t part, uint64_t whole) {
    return whole == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
  };
  std::printf("files            %12llu   hashes equal: %llu, different: %llu\n",
              static_cast<unsigned long long>(totals.files),
              static_cast<unsigned long long>(totals.files - totals.wrong),
              static_cast<unsigned long long>(totals.wrong));
  std::printf("bytes            %12llu   through shared buffers, none copied\n",
              static_cast<unsigned long long>(totals.bytes));
  std::printf("buffers          %12llu   64 B to 4 MiB each\n",
              static_cast<unsigned long long>(totals.buffers));
  std::printf("rate             %12.0f   MB/s, SHA-256 included\n",
              static_cast<double>(totals.bytes) / 1e6 / seconds.count());
  std::printf("allocations <= 32 KiB %7llu   served locally: %.1f %%, by refill: %llu\n",
              static_cast<unsigned long long>(totals.small),
              share(totals.small - totals.small_waited, totals.small),
              static_cast<unsigned long long>(totals.small_waited));
  std::printf("allocations >  32 KiB %7llu   served locally: %.1f %%, by refill: %llu\n",
              static_cast<unsigned long long>(totals.large),
              share(totals.large - totals.large_waited, totals.large),
              static_cast<unsigned long long>(totals.large_waited));
  std::printf("allocation time  p50 %8.0f   ns, p99 %.0f ns\n", totals.p50_ns, totals.p99_ns);
  std::printf("messages         %12llu   counted at the daemon\n",
              static_cast<unsigned long long>(Number((*pool)["exchange_messages_total"])));
  std::printf("bytes still allocated %7llu   after closing\n",
              static_cast<unsigned long long>(left));
  if (totals.bytes != total_bytes && sound) {
    std::fprintf(stderr, "demo: %llu bytes arrived of %llu\n",
                 static_cast<unsigned long long>(totals.bytes),
                 static_cast<unsigned long long>(total_bytes));
    sound = false;
  }
  return sound && totals.wrong == 0 && left == 0 ? 0 : 1;
}

}  // namespace
}  // namespace spanpool::demo

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  CLI::App app{"Passes files through a memory pool from process to process and checks them"};
  std::string spanpoold;
  std::string spanpool;
  std::vector<std::string> files;
  app.add_option("--spanpoold", spanpoold, "The daemon's binary")->required();
  app.add_option("--spanpool", spanpool, "The command's binary")->required();
  app.add_option("FILE", files, "Files to pass; default: files of this machine, 512 MiB");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return spanpool::demo::Demo(spanpoold, spanpool, std::move(files));
}

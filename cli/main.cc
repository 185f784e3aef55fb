// spanpool: the command line. Exit status: 0 done; 1 failed, with one line on standard error that
// says what happened and what to do; 2 wrong usage.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "cli/commands.h"
#include "cli/target.h"

namespace spanpool::cli {
namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

int Fail(int code, std::string message) {
  // One line, whatever a peer may have put into its message.
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "spanpool: %s\n", message.c_str());
  return code;
}

int Main(int argc, char** argv) {
  CLI::App app("spanpool: looks into a running spanpoold", "spanpool");
  std::string target;
  Options options;
  app.add_option("--target", target,
                 "the daemon's run directory; default $SPANPOOL_TARGET, else where spanpoold "
                 "serves by default")
      ->type_name("DIR");
  app.add_option("--pool", options.pool, "only this pool; default $SPANPOOL_POOL, else all")
      ->type_name("NAME");
  app.add_flag("--json", options.json, "print JSON, with the names of admin.proto");
  app.require_subcommand(1);
  app.fallthrough();  // the options may stand after the command too
  absl::StatusOr<std::string> (*command)(const Options&) = nullptr;
  app.add_subcommand("status", "how full each pool is, and who uses it")->callback([&command] {
    command = &Status;
  });
  CLI::App* const trim = app.add_subcommand(
      "trim", "take back what sessions do not use, and give free memory back to the machine");
  trim->add_option("--wait_ms", options.wait_ms, "how long to wait for sessions; default 1000")
      ->check(CLI::Range(1, 60'000))
      ->type_name("MS");
  trim->callback([&command] { command = &Trim; });
  CLI::App* const names =
      app.add_subcommand("names", "the names of blocks, and who published them");
  names->add_option("PREFIX", options.name, "only names that begin so");
  names->callback([&command] { command = &Names; });
  CLI::App* const remove =
      app.add_subcommand("rm", "unpublish a name: its block goes with the last who has it");
  remove->add_option("NAME", options.name, "of --pool, else of pool default")->required();
  remove->callback([&command] { command = &RemoveName; });
  app.add_subcommand("health", "whether the daemon serves: exit 0, or 1")->callback([&command] {
    command = &Health;
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return Fail(kWrongUsage, std::string(error.what()) + "; see --help");
  }

  if (options.pool.empty()) {
    const char* variable = std::getenv("SPANPOOL_POOL");
    if (variable != nullptr) options.pool = variable;
  }
  const absl::StatusOr<std::string> run_dir = ResolveTarget(target);
  if (!run_dir.ok()) return Fail(kFailed, std::string(run_dir.status().message()));
  options.run_dir = *run_dir;
  const absl::StatusOr<std::string> text = command(options);
  if (!text.ok()) return Fail(kFailed, std::string(text.status().message()));
  std::fputs(text->c_str(), stdout);
  return std::fflush(stdout) == 0 ? 0 : Fail(kFailed, "cannot write to standard output");
}

}  // namespace
}  // namespace spanpool::cli

int main(int argc, char** argv) { return spanpool::cli::Main(argc, argv); }

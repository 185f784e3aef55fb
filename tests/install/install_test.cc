// What is installed, used by a stranger who has nothing else of the project: headers, libraries,
// pkg-config and CMake files, binaries, manual pages.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/support/process.h"
#include "tests/support/shell.h"

namespace spanpool::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ReadFile(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::set<std::string> FileNames(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

// Installed once, then moved: what was installed knows no path of its own.
class Install : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new std::string(TemporaryDirectory());
    const ShellResult installed =
        Shell(absl::StrCat("cd ", Runfile(""), " && deploy/install/install.sh . ", *folder_,
                           "/first && mv ", *folder_, "/first ", prefix()));
    ASSERT_TRUE(installed.ok()) << installed;
    for (const std::string project : {"stranger", "stranger_grpc"}) {
      fs::copy(Runfile("tests/install/" + project), folder(project),
               fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    }
    setenv("CMAKE_PREFIX_PATH", prefix().c_str(), 1);
    setenv("PKG_CONFIG_PATH", (prefix() + "/lib/pkgconfig").c_str(), 1);
    // The installed daemon, not the one beside the test.
    fs::create_directory(folder("run"));
    daemon_ = new std::unique_ptr<Process>(
        new Process({prefix() + "/bin/spanpoold", "--run_dir", folder("run"), "--limit",
                     "268435456", "--fd_store=none"}));
    ASSERT_EQ((*daemon_)->ReadLine(), "READY") << (*daemon_)->standard_error();
    setenv("SPANPOOL_TARGET", folder("run").c_str(), 1);
  }
  static void TearDownTestSuite() {
    delete daemon_;
    fs::remove_all(*folder_);
    delete folder_;
  }

  static std::string folder(const std::string& name) { return *folder_ + "/" + name; }
  static std::string prefix() { return folder("prefix"); }

 private:
  static std::string* folder_;
  static std::unique_ptr<Process>* daemon_;
};

std::string* Install::folder_;
std::unique_ptr<Process>* Install::daemon_;

TEST_F(Install, TheHeadersAreThePublicOnes) {
  EXPECT_EQ(FileNames(prefix() + "/include"), std::set<std::string>{"spanpool"});
  std::set<std::string> names = FileNames(Runfile("client/spanpool"));
  names.insert("v1");
  EXPECT_EQ(FileNames(prefix() + "/include/spanpool"), names);
  EXPECT_EQ(FileNames(prefix() + "/include/spanpool/v1"),
            (std::set<std::string>{"payload.pb.h", "payload.proto"}));
}

TEST_F(Install, EveryHeaderCompilesByItself) {
  const std::string flags = Shell("pkg-config --cflags spanpool | tr -d '\\n'").output;
  const auto compile = [&flags](const std::string& header, const std::string& standard) {
    // Twice, for its include guard.
    const std::string include = absl::StrCat("#include <spanpool/", header, ">\\n");
    const ShellResult compiled = Shell(absl::StrCat(
        "printf '", include, include, "' | g++ -std=", standard,
        " -Wall -Wextra -Wpedantic -Wshadow -Werror -fsyntax-only -x c++ ", flags, " -"));
    EXPECT_TRUE(compiled.ok()) << header << ", " << standard << ": " << compiled;
  };
  for (const std::string& header : FileNames(Runfile("client/spanpool"))) {
    compile(header, "c++20");
  }
  compile("spanpool.h", "c++23");
}

TEST_F(Install, ACMakeProjectBuildsAndRuns) {
  const std::string build = folder("cmake");
  const ShellResult built =
      Shell(absl::StrCat("cmake -S ", folder("stranger"), " -B ", build,
                         " -DCMAKE_BUILD_TYPE=Release && cmake --build ", build, " --parallel 2"));
  ASSERT_TRUE(built.ok()) << built;
  for (const char* program : {"/program", "/program_static"}) {
    const ShellResult ran = Shell(build + program);
    EXPECT_TRUE(ran.ok()) << program << ": " << ran;
    EXPECT_EQ(ran.output, "all of it works\n") << program;
  }
  for (const char* plugin : {"/libplugin.so", "/libplugin_static.so"}) {
    const ShellResult ran = Shell(absl::StrCat(build, "/host ", build, plugin));
    EXPECT_TRUE(ran.ok()) << plugin << ": " << ran;
  }
  // Each is linked the way it asked for.
  EXPECT_THAT(Shell("objdump -p " + build + "/program").output, HasSubstr("libspanpool.so.0\n"));
  EXPECT_THAT(Shell("objdump -p " + build + "/program_static").output,
              Not(HasSubstr("libspanpool")));
}

TEST_F(Install, AServiceWithPayloadsBuildsAndRuns) {
  const std::string project = folder("stranger_grpc");
  const std::string build = folder("cmake-grpc");
  const ShellResult cmake = Shell(absl::StrCat(
      "cmake -S ", project, " -B ", build, " -DCMAKE_BUILD_TYPE=Release && ", "cmake --build ",
      build, " --parallel 2 && ", build, "/program ", build, "/socket"));
  EXPECT_TRUE(cmake.ok()) << cmake;
  EXPECT_THAT(cmake.output, HasSubstr("3145728 by handle\n"));
  const ShellResult make = Shell(
      absl::StrCat("make -j 2 -C ", project, " && ", project, "/program ", project, "/socket"));
  EXPECT_TRUE(make.ok()) << make;
  EXPECT_THAT(make.output, HasSubstr("3145728 by handle\n"));
}

TEST_F(Install, CMakeTakesTheStaticLibraryWhenToldTo) {
  const std::string build = folder("cmake-static");
  const ShellResult built = Shell(absl::StrCat("cmake -S ", folder("stranger"), " -B ", build,
                                               " -Dspanpool_USE_STATIC_LIBS=ON && ",
                                               "cmake --build ", build, " --target program"));
  ASSERT_TRUE(built.ok()) << built;
  EXPECT_THAT(Shell("objdump -p " + build + "/program").output, Not(HasSubstr("libspanpool")));
}

TEST_F(Install, CMakeRefusesAnotherSeriesOfVersions) {
  const std::string project = folder("versions");
  fs::create_directory(project);
  const std::map<std::string, bool> cases = {
      {"", true},          {"0.1", true},        {"0.1.0", true}, {"0.1.99", false},
      {"0.0.9", false},    {"0.2", false},       {"1.0", false},  {"0.1.0 EXACT", true},
      {"0.0...0.2", true}, {"0.0...<0.1", false}};
  for (const auto& [version, found] : cases) {
    std::ofstream(project + "/CMakeLists.txt")
        << "cmake_minimum_required(VERSION 3.19)\nproject(versions CXX)\nfind_package(spanpool "
        << version << " REQUIRED)\n";
    const ShellResult configured =
        Shell(absl::StrCat("cmake -S ", project, " -B ", project, "/build"));
    EXPECT_EQ(configured.ok(), found) << version << ": " << configured;
  }
}

TEST_F(Install, AMakefileProjectBuildsAndRuns) {
  const std::string build = folder("make");
  fs::copy(folder("stranger"), build);
  const ShellResult built = Shell("make -C " + build);
  ASSERT_TRUE(built.ok()) << built;
  for (const char* program : {"/program", "/program_static"}) {
    const ShellResult ran = Shell(build + program);
    EXPECT_TRUE(ran.ok()) << program << ": " << ran;
    EXPECT_EQ(ran.output, "all of it works\n") << program;
  }
}

TEST_F(Install, TheSharedLibraryExportsNothingButTheInterface) {
  const ShellResult symbols = Shell("nm -DC --defined-only " + prefix() + "/lib/libspanpool.so");
  ASSERT_TRUE(symbols.ok()) << symbols;
  const std::regex allowed(
      R"(\w+ A SPANPOOL_0|\w+ [TW] spanpool::(Session|Buffer|Channel|Handle|NameWatch)::.*@@SPANPOOL_0)"
      R"(|\w+ T spanpool::internal::(DropBlock|ShareBlock|TakeBlock|UndoPop|UndoPush)\(.*@@SPANPOOL_0)"
      R"(|\w+ D spanpool::internal::hot_cache@@SPANPOOL_0)");
  for (absl::string_view line : absl::StrSplit(symbols.output, '\n', absl::SkipEmpty())) {
    EXPECT_TRUE(std::regex_match(std::string(line), allowed)) << line;
  }
  EXPECT_THAT(symbols.output, HasSubstr("spanpool::Session::Attach("));
}

TEST_F(Install, TheListOfSymbolsHasALineForEveryHeader) {
  const std::string map = ReadFile(Runfile("deploy/install/libspanpool.map"));
  for (const std::string& header : FileNames(Runfile("client/spanpool"))) {
    EXPECT_THAT(map, HasSubstr("# " + header)) << "does " << header << " declare new symbols?";
  }
}

TEST_F(Install, TheStaticLibrariesDefineNamesOfTheirOwnOnly) {
  // Strong symbols; weak ones are everybody's templates and inline functions.
  const ShellResult symbols = Shell("nm -gC --defined-only " + prefix() + "/lib/libspanpool*.a");
  ASSERT_TRUE(symbols.ok()) << symbols;
  const std::regex strong(R"(\w+ [TDBR] (.*))");
  for (absl::string_view line : absl::StrSplit(symbols.output, '\n', absl::SkipEmpty())) {
    std::smatch match;
    const std::string text(line);
    if (!std::regex_match(text, match, strong)) continue;
    EXPECT_TRUE(absl::StrContains(match[1].str(), "spanpool")) << line;
  }
}

TEST_F(Install, TheSonameIsVersioned) {
  const std::string lib = prefix() + "/lib/";
  EXPECT_THAT(Shell("objdump -p " + lib + "libspanpool.so").output,
              HasSubstr("SONAME               libspanpool.so.0\n"));
  EXPECT_EQ(fs::read_symlink(lib + "libspanpool.so"), "libspanpool.so.0");
  const std::string version = fs::read_symlink(lib + "libspanpool.so.0").string();
  EXPECT_EQ(Shell(prefix() + "/bin/spanpoold --version").output,
            "spanpoold " + version.substr(std::string("libspanpool.so.").size()) + "\n");
  EXPECT_EQ(Shell("pkg-config --modversion spanpool").output,
            version.substr(std::string("libspanpool.so.").size()) + "\n");
}

TEST_F(Install, EveryOptionOfABinaryStandsInItsManualPage) {
  const std::map<std::string, std::string> pages = {{"spanpool", "man1/spanpool.1"},
                                                    {"spanpoold", "man8/spanpoold.8"}};
  for (const auto& [binary, page] : pages) {
    const std::string manual = ReadFile(absl::StrCat(prefix(), "/share/man/", page));
    const std::string help = Shell(absl::StrCat(prefix(), "/bin/", binary, " --help")).output;
    const std::regex option("--([a-z_]+)");
    int options = 0;
    for (std::sregex_iterator it(help.begin(), help.end(), option), end; it != end; ++it) {
      ++options;
      // In a page hyphens are written \-, and maybe in bold.
      EXPECT_THAT(manual, HasSubstr("\\-\\-" + (*it)[1].str())) << page;
    }
    EXPECT_GT(options, 2) << help;
  }
}

TEST_F(Install, NoFileKnowsWhereItWasInstalledFirst) {
  const ShellResult found = Shell(absl::StrCat("grep -rl ", folder("first"), " ", prefix()));
  EXPECT_EQ(found.exit, 1) << found;
}

TEST_F(Install, AStagedInstallationIsLaidOutForItsPrefix) {
  const std::string stage = folder("stage");
  const ShellResult installed =
      Shell(absl::StrCat("cd ", Runfile(""), " && DESTDIR=", stage,
                         " deploy/install/install.sh . /usr lib/x86_64-linux-gnu"));
  ASSERT_TRUE(installed.ok()) << installed;
  const std::string lib = stage + "/usr/lib/x86_64-linux-gnu";
  EXPECT_EQ(Shell(absl::StrCat("export PKG_CONFIG_PATH=", lib,
                               "/pkgconfig; realpath $(pkg-config --variable=includedir spanpool)"))
                .output,
            stage + "/usr/include\n");
  EXPECT_EQ(Shell(absl::StrCat("grep -rl ", stage, " ", stage)).exit, 1);
  EXPECT_TRUE(fs::exists(lib + "/cmake/spanpool/spanpoolConfig.cmake"));
  EXPECT_TRUE(fs::exists(stage + "/usr/bin/spanpoold"));
}

}  // namespace
}  // namespace spanpool::testing

#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

namespace spanpool {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string ErrorOf(absl::string_view text) {
  const auto config = ParseConfig(text, "pool.textproto");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

TEST(Config, EveryFieldArrives) {
  const auto config = ParseConfig(R"(
    run_dir: "/tmp/x"
    grace_ms: 0
    log { format: JSON level: "debug" }
    limits { sessions: 7 threads: 9 message_bytes: 65536 }
    pool {
      name: "frames" limit_bytes: 1048576 reserve_bytes: 0 session_limit_bytes: 8192
      allow { uid: 0 access: READ }
      allow { gid: 44 access: ADMIN }
    })",
                                  "f");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->run_dir, "/tmp/x");
  EXPECT_EQ(config->grace, absl::ZeroDuration());
  EXPECT_EQ(config->log_format, LogFormat::kJson);
  EXPECT_EQ(config->log_level, "debug");
  EXPECT_EQ(config->max_sessions, 7u);
  EXPECT_EQ(config->max_threads, 9u);
  EXPECT_EQ(config->max_message_bytes, 65536u);
  ASSERT_EQ(config->pools.size(), 1u);
  const PoolConfig& pool = config->pools[0];
  EXPECT_EQ(pool.name, "frames");
  EXPECT_EQ(pool.limit_bytes, 1048576u);
  EXPECT_EQ(pool.reserve_bytes, 0u);
  EXPECT_EQ(pool.session_limit_bytes, 8192u);
  ASSERT_EQ(pool.allow.size(), 2u);
  EXPECT_EQ(pool.allow[0].uid, 0u);
  EXPECT_EQ(pool.allow[0].access, AccessLevel::kRead);
  EXPECT_EQ(pool.allow[1].gid, 44u);
  EXPECT_EQ(pool.allow[1].access, AccessLevel::kAdmin);
}

TEST(Config, AnUnknownFieldIsRefusedWithItsPlace) {
  EXPECT_THAT(ErrorOf("grace_ms: 5\n  colour: 7\n"), StartsWith("pool.textproto:2:"));
  EXPECT_THAT(ErrorOf("grace_ms: 5\n  colour: 7\n"), HasSubstr("colour"));
}

TEST(Config, BrokenSyntaxIsRefusedWithItsPlaceAndWhatWasExpected) {
  EXPECT_THAT(ErrorOf("pool {\n  name: \"a\"\n"), StartsWith("pool.textproto:3:1: Expected"));
  EXPECT_THAT(ErrorOf("grace_ms: \"soon\""), HasSubstr("pool.textproto:1:11: Expected integer"));
}

TEST(Config, ValuesOutOfRangeAreRefusedWithPlaceAndRange) {
  EXPECT_EQ(ErrorOf("pool {\n  name: \"a\"\n  limit_bytes: 4096\n}"),
            "pool.textproto:3:3: limit_bytes is 4096; expected 1048576 to 17592186044416");
  EXPECT_THAT(ErrorOf("pool { name: \"a\"\n limit_bytes: 0 }"), StartsWith("pool.textproto:2:2:"));
  EXPECT_THAT(ErrorOf("pool { name: \"a\" limit_bytes: 1048576\n reserve_bytes: 1048577 }"),
              StartsWith("pool.textproto:2:2: reserve_bytes"));
  EXPECT_THAT(ErrorOf("pool { name: \"a\"\n session_limit_bytes: 1 }"),
              StartsWith("pool.textproto:2:2: session_limit_bytes"));
  EXPECT_THAT(ErrorOf("limits {\n sessions: 0 }"), StartsWith("pool.textproto:2:2: sessions"));
  EXPECT_THAT(ErrorOf("limits {\n threads: 1 }"), StartsWith("pool.textproto:2:2: threads"));
  EXPECT_THAT(ErrorOf("grace_ms: 600001"), StartsWith("pool.textproto:1:1: grace_ms"));
  EXPECT_THAT(ErrorOf("log {\n level: \"loud\" }"),
              HasSubstr("2:2: level \"loud\"; expected trace"));
  EXPECT_THAT(ErrorOf("run_dir: \"\""), HasSubstr("expected a folder's path"));
}

TEST(Config, PoolNamesAreChecked) {
  EXPECT_THAT(ErrorOf("pool { name: \"A/b\" }"), HasSubstr("expected 1 to 63 characters"));
  EXPECT_THAT(ErrorOf("\npool { }"), StartsWith("pool.textproto:2:1: pool name"));
  EXPECT_THAT(ErrorOf("pool { name: \"a\" }\npool { name: \"a\" }"),
              StartsWith("pool.textproto:2:8: a second pool \"a\""));
}

TEST(Config, ARuleNeedsOneSubjectAndALevel) {
  EXPECT_THAT(ErrorOf("pool { name: \"a\"\n allow { access: READ } }"),
              HasSubstr("2:2: expected exactly one of uid and gid"));
  EXPECT_THAT(ErrorOf("pool { name: \"a\"\n allow { uid: 1 gid: 1 access: READ } }"),
              HasSubstr("exactly one"));
  EXPECT_THAT(ErrorOf("pool { name: \"a\"\n allow { uid: 1 } }"), HasSubstr("expected access"));
  EXPECT_THAT(ErrorOf("pool { name: \"a\"\n allow { uid: 4294967295 access: READ } }"),
              HasSubstr("2:2: uid 4294967295 is nobody's"));
  EXPECT_THAT(ErrorOf("pool { name: \"a\"\n allow { gid: 4294967295 access: READ } }"),
              HasSubstr("2:2: gid 4294967295 is nobody's"));
}

TEST(Config, AllErrorsAreToldAtOnce) {
  const std::string error = ErrorOf("grace_ms: 600001\nlimits { sessions: 0 threads: 0 }");
  EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 2) << error;
}

TEST(Config, RandomBytesAreRefusedOrParsedButNeverCrash) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string text = "pool { name: \"a\" limit_bytes: 2000000 allow { uid: 1 access: READ } }";
    for (int change = 0; change < 3; ++change) {
      text[random() % text.size()] = static_cast<char>(random());
    }
    refused += !ParseConfig(text, "f").ok();
  }
  EXPECT_GT(refused, 0);
}

TEST(Config, AMissingFileAndAFolderAreErrorsThatNameThePath) {
  const auto missing = ReadConfig("/nonexistent/x.textproto");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("/nonexistent/x.textproto"));
  const auto folder = ReadConfig(testing::TempDir());
  EXPECT_FALSE(folder.ok());
  EXPECT_THAT(folder.status().message(), HasSubstr(testing::TempDir()));
}

TEST(Config, AnEmptyFileIsTheDefaults) {
  const std::string path = testing::TempDir() + "/empty.textproto";
  std::ofstream(path).close();
  const auto config = ReadConfig(path);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->pools.empty());
}

TEST(Config, DefaultsAreAQuarterOfTheMemoryAndTheReserveWithinIt) {
  DaemonConfig config = WithDefaults(DaemonConfig(), uint64_t{16} << 30);
  ASSERT_EQ(config.pools.size(), 1u);
  EXPECT_EQ(config.pools[0].name, "default");
  EXPECT_EQ(config.pools[0].limit_bytes, uint64_t{4} << 30);
  EXPECT_EQ(config.pools[0].reserve_bytes, kDefaultReserveBytes);
  EXPECT_EQ(config.pools[0].session_limit_bytes, uint64_t{4} << 30);

  config = WithDefaults(DaemonConfig(), 32 << 20);
  EXPECT_EQ(config.pools[0].limit_bytes, 8u << 20);
  EXPECT_EQ(config.pools[0].reserve_bytes, 8u << 20);
}

TEST(Config, HugePagesAreAllKeptReadyUnlessToldOtherwise) {
  const DaemonConfig config = WithDefaults(
      ParseConfig("pool { name: 'a' arena_kind: HUGETLB limit_bytes: 1073741824 }"
                  "pool { name: 'b' arena_kind: HUGETLB limit_bytes: 1073741824 reserve_bytes: 0 }"
                  "pool { name: 'c' limit_bytes: 1073741824 }",
                  "f")
          .value(),
      uint64_t{16} << 30);
  EXPECT_EQ(config.pools[0].arena_kind, MemfdArenaSource::Kind::kHugePages);
  EXPECT_EQ(config.pools[0].reserve_bytes, uint64_t{1} << 30);
  EXPECT_EQ(config.pools[1].reserve_bytes, 0u);
  EXPECT_EQ(config.pools[2].arena_kind, MemfdArenaSource::Kind::kPages);
  EXPECT_EQ(config.pools[2].reserve_bytes, kDefaultReserveBytes);
}

TEST(Config, HugePagesAreLimitedExpresslyAndToWholeOnes) {
  const auto refusal = [](const std::string& text) {
    return std::string(ParseConfig(text, "f").status().message());
  };
  EXPECT_THAT(refusal("pool { name: 'a' arena_kind: HUGE }"), HasSubstr("f:1:"));
  EXPECT_THAT(refusal("pool {\n name: 'a'\n arena_kind: HUGETLB }"),
              HasSubstr("f:3:2: arena_kind HUGETLB without limit_bytes"));
  EXPECT_THAT(
      refusal("pool { name: 'a' arena_kind: HUGETLB\n limit_bytes: 3145728 }"),
      HasSubstr("f:2:2: limit_bytes is 3145728; expected a multiple of 2097152 with HUGETLB"));
  EXPECT_EQ(refusal("pool { name: 'a' arena_kind: MEMFD limit_bytes: 3145728 }"), "");
}

TEST(Config, SizesArePlainBytesOrHaveABinaryUnit) {
  EXPECT_EQ(ParseBytes("123").value(), 123u);
  EXPECT_EQ(ParseBytes("64MiB").value(), 64u << 20);
  EXPECT_EQ(ParseBytes("1TiB").value(), uint64_t{1} << 40);
  EXPECT_EQ(ParseBytes("5B").value(), 5u);
  for (const char* wrong : {"", "MiB", "-1", "1.5GiB", "64MB", "64 MiB", "99999999999999999999",
                            "16777216TiB", "0x10", "+1"}) {
    EXPECT_FALSE(ParseBytes(wrong).ok()) << wrong;
  }
}

TEST(Access, TheDaemonsUidIsAdminAndTheBestMatchingRuleCountsForOthers) {
  const std::vector<AccessRule> rules = {{.uid = 7, .gid = {}, .access = AccessLevel::kRead},
                                         {.uid = {}, .gid = 44, .access = AccessLevel::kWrite}};
  EXPECT_EQ(AccessOf({.pid = 1, .uid = 5, .gids = {}}, 5, rules), AccessLevel::kAdmin);
  EXPECT_EQ(AccessOf({.pid = 1, .uid = 7, .gids = {7}}, 5, rules), AccessLevel::kRead);
  EXPECT_EQ(AccessOf({.pid = 1, .uid = 7, .gids = {7, 44}}, 5, rules), AccessLevel::kWrite);
  EXPECT_EQ(AccessOf({.pid = 1, .uid = 0, .gids = {0}}, 5, rules), AccessLevel::kNone);
}

}  // namespace
}  // namespace spanpool

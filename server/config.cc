#include "server/config.h"

#include <fcntl.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "spanpool/v1/config.pb.h"

namespace spanpool {
namespace {

using google::protobuf::Message;
using google::protobuf::TextFormat;

// Gathers "FILE:line:column: text" lines. Lines and columns count from 1 for people.
class Errors : public google::protobuf::io::ErrorCollector {
 public:
  explicit Errors(absl::string_view file) : file_(file) {}

  void AddError(int line, int column, const std::string& text) override {
    lines_.push_back(absl::StrCat(file_, ":", line + 1, ":", column + 1, ": ", text));
  }
  void AddWarning(int line, int column, const std::string& text) override {
    AddError(line, column, text);
  }
  absl::Status status() const {
    if (lines_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(lines_, "\n"));
  }

 private:
  const std::string file_;
  std::vector<std::string> lines_;
};

// One message of the file together with where its fields stand.
class Located {
 public:
  Located(const Message& message, TextFormat::ParseInfoTree* tree, Errors* errors)
      : message_(message), tree_(tree), errors_(errors) {}

  // Whether field `name` was written, be it with its default value.
  bool Given(const char* name) const { return Location(name, 0).line >= 0; }

  void Refuse(const char* name, const std::string& text, int index = 0) const {
    const TextFormat::ParseLocation at = Location(name, index);
    errors_->AddError(std::max(at.line, 0), std::max(at.column, 0), text);
  }

  // Refuses a number that was written and is out of [least, most]; true if it is usable.
  bool Check(const char* name, uint64_t value, uint64_t least, uint64_t most) const {
    if (!Given(name)) return false;
    if (value >= least && value <= most) return true;
    Refuse(name, absl::StrCat(name, " is ", value, "; expected ", least, " to ", most));
    return false;
  }

  Located Nested(const char* name, const Message& message, int index = 0) const {
    return Located(message, tree_->GetTreeForNested(Field(name), IndexOf(name, index)), errors_);
  }

 private:
  const google::protobuf::FieldDescriptor* Field(const char* name) const {
    return message_.GetDescriptor()->FindFieldByName(name);
  }
  // The tree wants -1 for fields that are not repeated.
  int IndexOf(const char* name, int index) const { return Field(name)->is_repeated() ? index : -1; }
  TextFormat::ParseLocation Location(const char* name, int index) const {
    return tree_->GetLocation(Field(name), IndexOf(name, index));
  }

  const Message& message_;
  TextFormat::ParseInfoTree* const tree_;
  Errors* const errors_;
};

bool IsPoolName(absl::string_view name) {
  return !name.empty() && name.size() <= 63 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
}

AccessLevel ToAccessLevel(v1::AccessLevel access) {
  switch (access) {
    case v1::READ:
      return AccessLevel::kRead;
    case v1::WRITE:
      return AccessLevel::kWrite;
    case v1::ADMIN:
      return AccessLevel::kAdmin;
    default:
      return AccessLevel::kNone;
  }
}

PoolConfig ConvertPool(const v1::PoolConfig& in, const Located& at, const Located& parent,
                       int index, std::set<std::string>* names) {
  PoolConfig pool;
  pool.name = in.name();
  if (!IsPoolName(in.name())) {
    const std::string text = absl::StrCat("pool name \"", Printable(in.name()),
                                          "\"; expected 1 to 63 characters of a-z, 0-9, - and _");
    if (at.Given("name")) {
      at.Refuse("name", text);
    } else {
      parent.Refuse("pool", text, index);
    }
  } else if (!names->insert(in.name()).second) {
    at.Refuse("name", absl::StrCat("a second pool \"", in.name(), "\"; expected another name"));
  }
  if (at.Check("limit_bytes", in.limit_bytes(), kMinPoolBytes, kMaxPoolBytes)) {
    pool.limit_bytes = in.limit_bytes();
  }
  const uint64_t most = pool.limit_bytes != 0 ? pool.limit_bytes : kMaxPoolBytes;
  if (at.Check("reserve_bytes", in.reserve_bytes(), 0, most)) {
    pool.reserve_bytes = in.reserve_bytes();
  }
  if (at.Check("session_limit_bytes", in.session_limit_bytes(), 8192, most)) {
    pool.session_limit_bytes = in.session_limit_bytes();
  }
  if (at.Check("transit_grace_ms", in.transit_grace_ms(), 0, 3'600'000)) {
    pool.transit_grace = absl::Milliseconds(in.transit_grace_ms());
  }
  if (in.arena_kind() == v1::HUGETLB) {
    pool.arena_kind = MemfdArenaSource::Kind::kHugePages;
    if (!at.Given("limit_bytes")) {
      at.Refuse("arena_kind", "arena_kind HUGETLB without limit_bytes; expected how much it is");
    } else if (!IsLimitOf(pool.arena_kind, pool.limit_bytes)) {
      at.Refuse("limit_bytes", absl::StrCat("limit_bytes is ", pool.limit_bytes,
                                            "; expected a multiple of 2097152 with HUGETLB"));
    }
  }
  for (int i = 0; i < in.allow_size(); ++i) {
    const v1::Allow& allow = in.allow(i);
    if (allow.has_uid() == allow.has_gid()) {
      at.Refuse("allow", "expected exactly one of uid and gid", i);
    }
    // The system calls take -1 for "no change": no process has it.
    for (const auto& [given, id, name] : {std::tuple(allow.has_uid(), allow.uid(), "uid"),
                                          std::tuple(allow.has_gid(), allow.gid(), "gid")}) {
      if (given && id == UINT32_MAX) {
        at.Refuse("allow",
                  absl::StrCat(name, " ", id, " is nobody's; expected 0 to ", UINT32_MAX - 1), i);
      }
    }
    AccessRule rule;
    if (allow.has_uid()) rule.uid = allow.uid();
    if (allow.has_gid()) rule.gid = allow.gid();
    rule.access = ToAccessLevel(allow.access());
    if (rule.access == AccessLevel::kNone) {
      at.Refuse("allow", "expected access: READ, WRITE or ADMIN", i);
    }
    pool.allow.push_back(rule);
  }
  return pool;
}

}  // namespace

bool IsLimitOf(MemfdArenaSource::Kind kind, uint64_t limit_bytes) {
  return kind == MemfdArenaSource::Kind::kPages ||
         limit_bytes % MemfdArenaSource::kHugePageBytes == 0;
}

absl::StatusOr<DaemonConfig> ParseConfig(absl::string_view text, absl::string_view file) {
  Errors errors(file);
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  parser.WriteLocationsTo(&tree);
  v1::Config in;
  if (!parser.ParseFromString(std::string(text), &in)) {
    const absl::Status status = errors.status();
    return status.ok() ? absl::InvalidArgumentError(absl::StrCat(
                             file, ":1:1: expected protobuf text format of spanpool.v1.Config"))
                       : status;
  }

  DaemonConfig config;
  const Located root(in, &tree, &errors);
  config.run_dir = in.run_dir();
  if (root.Given("run_dir") && in.run_dir().empty()) {
    root.Refuse("run_dir", "run_dir is empty; expected a folder's path");
  }
  if (root.Check("grace_ms", in.grace_ms(), 0, 600'000)) {
    config.grace = absl::Milliseconds(in.grace_ms());
  }
  if (in.has_log()) {
    const Located log = root.Nested("log", in.log());
    config.log_format =
        in.log().format() == v1::LogConfig::JSON ? LogFormat::kJson : LogFormat::kText;
    static constexpr absl::string_view kLevels[] = {"trace", "debug", "info", "warning", "error"};
    if (log.Given("level")) {
      config.log_level = in.log().level();
      if (std::find(std::begin(kLevels), std::end(kLevels), in.log().level()) ==
          std::end(kLevels)) {
        log.Refuse("level", absl::StrCat("level \"", Printable(in.log().level()),
                                         "\"; expected trace, debug, info, warning or error"));
      }
    }
  }
  if (in.has_limits()) {
    const Located limits = root.Nested("limits", in.limits());
    if (limits.Check("sessions", in.limits().sessions(), 1, 65'536)) {
      config.max_sessions = in.limits().sessions();
    }
    if (limits.Check("threads", in.limits().threads(), 4, 1'024)) {
      config.max_threads = in.limits().threads();
    }
    if (limits.Check("message_bytes", in.limits().message_bytes(), 64 << 10, 64 << 20)) {
      config.max_message_bytes = in.limits().message_bytes();
    }
    if (limits.Check("names", in.limits().names(), 1, 65'536)) {
      config.max_names = in.limits().names();
    }
  }
  std::set<std::string> names;
  for (int i = 0; i < in.pool_size(); ++i) {
    config.pools.push_back(
        ConvertPool(in.pool(i), root.Nested("pool", in.pool(i), i), root, i, &names));
  }
  if (const absl::Status status = errors.status(); !status.ok()) return status;
  return config;
}

absl::StatusOr<DaemonConfig> ReadConfig(const std::string& path) {
  // System calls rather than a stream: a folder opens like a file and fails only when read.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::string text;
  ssize_t length = fd < 0 ? -1 : 1;
  while (length > 0) {
    char buffer[4096];
    length = read(fd, buffer, sizeof(buffer));
    if (length > 0) text.append(buffer, static_cast<size_t>(length));
  }
  const int error = errno;
  if (fd >= 0) close(fd);
  if (length < 0) {
    return absl::ErrnoToStatus(error, absl::StrCat("cannot read configuration ", path));
  }
  return ParseConfig(text, path);
}

absl::StatusOr<uint64_t> ParseBytes(absl::string_view text) {
  static constexpr std::pair<absl::string_view, int> kUnits[] = {
      {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}, {"B", 0}, {"", 0}};
  absl::string_view digits = text;
  for (const auto& [unit, shift] : kUnits) {
    if (!absl::ConsumeSuffix(&digits, unit)) continue;
    uint64_t number;
    if (digits.empty() || digits.find_first_not_of("0123456789") != absl::string_view::npos ||
        !absl::SimpleAtoi(digits, &number) || number > UINT64_MAX >> shift) {
      break;
    }
    return number << shift;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", Printable(text),
                   "\" is no size; expected bytes, or a number with KiB, MiB, GiB or TiB"));
}

DaemonConfig WithDefaults(DaemonConfig config, uint64_t available_bytes) {
  if (config.pools.empty()) config.pools.emplace_back();
  for (PoolConfig& pool : config.pools) {
    if (pool.limit_bytes == 0) {
      pool.limit_bytes = std::clamp(available_bytes / 4, kMinPoolBytes, kMaxPoolBytes);
    }
    // Huge pages are set aside for this anyway, and others could take them meanwhile.
    const uint64_t reserve = pool.arena_kind == MemfdArenaSource::Kind::kHugePages
                                 ? pool.limit_bytes
                                 : kDefaultReserveBytes;
    pool.reserve_bytes = std::min(pool.reserve_bytes.value_or(reserve), pool.limit_bytes);
    if (pool.session_limit_bytes == 0) pool.session_limit_bytes = pool.limit_bytes;
    pool.session_limit_bytes = std::min(pool.session_limit_bytes, pool.limit_bytes);
    pool.max_names = config.max_names;
  }
  return config;
}

}  // namespace spanpool

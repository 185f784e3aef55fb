#include "server/log.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace spanpool {
namespace {

// One JSON object per line: {"time":"…","level":"…","thread":N,"message":"…"}.
class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const auto level = spdlog::level::to_string_view(message.level);
    std::string line =
        absl::StrCat("{\"time\":\"",
                     absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::FromChrono(message.time),
                                      absl::UTCTimeZone()),
                     "\",\"level\":\"", absl::string_view(level.data(), level.size()),
                     "\",\"thread\":", message.thread_id, ",\"message\":\"");
    for (const char c : message.payload) {
      if (c == '"' || c == '\\') {
        line += '\\';
        line += c;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        absl::StrAppendFormat(&line, "\\u%04x", c);
      } else {
        line += c;
      }
    }
    line += "\"}\n";
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

}  // namespace

absl::Status SetUpLog(LogFormat format, absl::string_view level) {
  spdlog::level::level_enum parsed = spdlog::level::info;
  if (!level.empty()) {
    static constexpr std::pair<absl::string_view, spdlog::level::level_enum> kLevels[] = {
        {"trace", spdlog::level::trace}, {"debug", spdlog::level::debug},
        {"info", spdlog::level::info},   {"warning", spdlog::level::warn},
        {"error", spdlog::level::err},
    };
    const auto* found = std::find_if(std::begin(kLevels), std::end(kLevels),
                                     [&](const auto& entry) { return entry.first == level; });
    if (found == std::end(kLevels)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "log level \"", Printable(level), "\" is none of trace, debug, info, warning, error"));
    }
    parsed = found->second;
  }
  auto logger = std::make_shared<spdlog::logger>("spanpoold",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  if (format == LogFormat::kJson) {
    logger->set_formatter(std::make_unique<JsonFormatter>());
  } else {
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %L %v");
  }
  logger->set_level(parsed);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

std::string Printable(absl::string_view text) {
  constexpr size_t kMost = 200;
  std::string escaped = absl::CHexEscape(text.substr(0, kMost));
  if (text.size() > kMost) escaped += "...";
  return escaped;
}

bool LogLimit::Allow(absl::Time now, uint64_t* suppressed) {
  RankedMutexLock lock(&mu_);
  if (now - refilled_ >= interval_) {
    // One more per interval that has passed, up to the burst.
    const double intervals = absl::FDivDuration(now - refilled_, interval_);
    used_ = intervals >= used_ ? 0 : used_ - static_cast<int>(intervals);
    refilled_ = now;
  }
  if (used_ >= burst_) {
    ++suppressed_;
    return false;
  }
  ++used_;
  *suppressed = std::exchange(suppressed_, 0);
  return true;
}

}  // namespace spanpool

// The daemon's log: lines on stderr, as text for people or JSON for collectors.
//
// `Log()` is spdlog's default logger; call it as `Log().info("pool {}: ...", name)`. Whatever came
// from a client is passed through Printable() first, so that nobody can forge a line.
//
// Thread-safe. Called under no lock of the daemon's, except leaves.

#ifndef SPANPOOL_SERVER_LOG_H_
#define SPANPOOL_SERVER_LOG_H_

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "allocator/lock_rank.h"
#include "spdlog/spdlog.h"

namespace spanpool {

enum class LogFormat { kText, kJson };

// Sets the format and the least level shown: trace, debug, info, warning or error; "" = info.
//   INVALID_ARGUMENT  another level
absl::Status SetUpLog(LogFormat format, absl::string_view level);

inline spdlog::logger& Log() { return *spdlog::default_logger_raw(); }

// At most 200 bytes of `text`, escaped as in C.
std::string Printable(absl::string_view text);

// Lets through `burst` events and then one per `interval`; for lines that a client can cause.
class LogLimit {
 public:
  LogLimit(int burst, absl::Duration interval) : burst_(burst), interval_(interval) {}

  // Whether to log now. If so, `*suppressed` is how many were not logged since the last time.
  bool Allow(absl::Time now, uint64_t* suppressed) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const int burst_;
  const absl::Duration interval_;
  RankedMutex mu_{LockRank::kLeaf};
  int used_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time refilled_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  uint64_t suppressed_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_LOG_H_

// What the daemon is told: its configuration file (spanpool/v1/config.proto, protobuf text format)
// and the flags that win over it.
//
// Everything out of range is refused with `FILE:line:column: what was expected`, before anything
// is started.

#ifndef SPANPOOL_SERVER_CONFIG_H_
#define SPANPOOL_SERVER_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "allocator/memfd_arena_source.h"
#include "server/access.h"
#include "server/log.h"

namespace spanpool {

inline constexpr uint64_t kMinPoolBytes = uint64_t{1} << 20;
inline constexpr uint64_t kMaxPoolBytes = uint64_t{1} << 44;
inline constexpr uint64_t kDefaultReserveBytes = uint64_t{64} << 20;

struct PoolConfig {
  std::string name = "default";
  uint64_t limit_bytes = 0;               // 0 until WithDefaults
  std::optional<uint64_t> reserve_bytes;  // set by WithDefaults
  uint64_t session_limit_bytes = 0;       // 0 until WithDefaults
  absl::Duration transit_grace = absl::Seconds(10);
  uint32_t max_names = 4096;  // set by WithDefaults: limits.names
  MemfdArenaSource::Kind arena_kind = MemfdArenaSource::Kind::kPages;
  std::vector<AccessRule> allow;
};

// Whether arenas of this kind can be limited so: huge pages to whole ones.
bool IsLimitOf(MemfdArenaSource::Kind kind, uint64_t limit_bytes);

struct DaemonConfig {
  std::string run_dir;  // "" = DefaultRunDirectory()
  std::vector<PoolConfig> pools;
  LogFormat log_format = LogFormat::kText;
  std::string log_level = "info";
  uint32_t max_sessions = 1024;
  uint32_t max_threads = 16;
  uint32_t max_message_bytes = 4 << 20;
  uint32_t max_names = 4096;  // of each pool
  absl::Duration grace = absl::Milliseconds(2000);
};

// Parses and checks `text`. `file` is what errors call it.
//   INVALID_ARGUMENT  `FILE:line:column: …`, one line for each error
absl::StatusOr<DaemonConfig> ParseConfig(absl::string_view text, absl::string_view file);

// The same for the contents of a file.
//   NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (also for a folder)
absl::StatusOr<DaemonConfig> ReadConfig(const std::string& path);

// A size as people write it: digits, then nothing or one of B, KiB, MiB, GiB, TiB.
//   INVALID_ARGUMENT  anything else, or more than 2^64 - 1
absl::StatusOr<uint64_t> ParseBytes(absl::string_view text);

// Fills in what was not said: one pool `default` if there is none, and each pool's sizes, given
// that `available_bytes` are available to the daemon.
DaemonConfig WithDefaults(DaemonConfig config, uint64_t available_bytes);

}  // namespace spanpool

#endif  // SPANPOOL_SERVER_CONFIG_H_

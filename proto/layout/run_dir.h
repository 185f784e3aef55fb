// Where daemon and clients meet when nobody says otherwise.

#ifndef SPANPOOL_PROTO_LAYOUT_RUN_DIR_H_
#define SPANPOOL_PROTO_LAYOUT_RUN_DIR_H_

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace spanpool::layout {

inline constexpr char kAttachSocketName[] = "attach.sock";
inline constexpr char kGrpcSocketName[] = "grpc.sock";

// $SPANPOOL_RUN_DIR, else /run/spanpool for root, else $XDG_RUNTIME_DIR/spanpool; "" if there is
// none: say so and ask for a path.
inline std::string DefaultRunDirectory() {
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (std::string path = variable("SPANPOOL_RUN_DIR"); !path.empty()) return path;
  if (geteuid() == 0) return "/run/spanpool";
  const std::string runtime = variable("XDG_RUNTIME_DIR");
  return runtime.empty() ? "" : runtime + "/spanpool";
}

}  // namespace spanpool::layout

#endif  // SPANPOOL_PROTO_LAYOUT_RUN_DIR_H_

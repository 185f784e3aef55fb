#!/usr/bin/env bash
# Gathers what the images hold from what was built: stripped binaries, and the names of the Debian packages
# whose shared libraries they load.
#
#   stage.sh BUILT OUT
#     BUILT  the folder where Bazel left its results: server/spanpoold, cli/spanpool, examples/handover/handover
#     OUT    made: bin/ for the daemon's image, example/ for the other, packages for both
set -euo pipefail
built=$1 out=$2

install -D -s -t "$out/bin" "$built/server/spanpoold" "$built/cli/spanpool"
install -D -s -t "$out/example" "$built/examples/handover/handover"
ldd "$out"/bin/* "$out"/example/* | awk '$2 == "=>" { print $3 }' | sort -u |
  while read -r library; do
    # Files of /usr/lib are listed under /lib if they were packed so: the two are one folder.
    dpkg -S "$library" 2>/dev/null || dpkg -S "/usr$library"
  done | cut -d: -f1 | sort -u >"$out/packages"

#!/usr/bin/env bash
# What a newcomer sees: clones the last commit in a container of a bare Debian 12 with git and certificates, and runs
# the README's two commands there, or the command that is given. Exits as it does.
#
#   deploy/fresh.sh [COMMAND [ARGUMENT...]]
#
# The engine that runs, else one of our own (deploy/engine); packages come from the Debian mirror of this machine.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

if [[ -z ${SPANPOOL_IN_ENGINE:-} ]]; then
  SPANPOOL_IN_ENGINE=1 exec deploy/engine run "$0" "$@"
fi
if (($# == 0)); then set -- bash -ec './dev demo && ./dev test'; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git bundle create --quiet "$work/spanpool.bundle" HEAD
base=$(deploy/image.sh --base)
docker run --rm --network host -v "$work:/bundle:ro" "$base" bash -ec '
  apt-get update -q && apt-get install -q -y --no-install-recommends git ca-certificates
  git clone --quiet /bundle/spanpool.bundle /spanpool
  cd /spanpool
  exec "$@"' fresh "$@"

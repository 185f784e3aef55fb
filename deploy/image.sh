#!/usr/bin/env bash
# Builds the images `spanpool` and `spanpool-example` with the engine of DOCKER_HOST. `./dev image` calls
# it; it runs from the root of the workspace.
#
# They are based on debian:bookworm-slim: the engine's, else its registry's, else one made here from the
# Debian mirror of this machine, called spanpool-base.
set -euo pipefail

base=debian:bookworm-slim

have() { docker image inspect "$1" >/dev/null 2>&1; }

# What the official image leaves out of packages, and why it is slim.
excludes='path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*'

make_base() {
  local tree mirror
  command -v debootstrap >/dev/null || {
    echo "there is no $base and no registry to fetch it from; install debootstrap to make one" >&2
    exit 1
  }
  tree=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$tree'" EXIT
  # The mirror that this machine uses.
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
    sed -nE 's#^(deb|URIs:) *(https?://[^ ]+/debian)/?( .*|$)#\2#p' | head -n 1) || true
  mirror=${mirror:-http://deb.debian.org/debian}
  echo "making a base image from $mirror" >&2
  debootstrap --variant=minbase bookworm "$tree" "$mirror" >"$tree.log" 2>&1 || {
    tail -n 5 "$tree.log" >&2
    exit 1
  }
  printf '%s\n' "$excludes" >"$tree/etc/dpkg/dpkg.cfg.d/docker"
  printf 'Acquire::Languages "none";\n' >"$tree/etc/apt/apt.conf.d/docker-no-languages"
  printf 'deb %s bookworm main\n' "$mirror" >"$tree/etc/apt/sources.list"
  printf 'deb %s bookworm-updates main\n' "$mirror" >>"$tree/etc/apt/sources.list"
  find "$tree/usr/share/doc" -type f ! -name copyright -delete
  rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/usr/share/{groff,info,linda,lintian,man}/* \
    "$tree"/usr/share/locale/*
  tar -C "$tree" -c . | docker import --change 'CMD ["bash"]' - spanpool-base >/dev/null
  rm -f "$tree.log"
}

if ! have "$base" && ! timeout 60 docker pull -q "$base" >/dev/null 2>&1; then
  base=spanpool-base
  have "$base" || make_base
fi

build() {  # build TARGET IMAGE
  # The host's network: an engine may have no other.
  docker build --network host --build-arg "BASE=$base" -f deploy/Dockerfile --target "$1" -t "$2" .
}
build daemon spanpool
build example spanpool-example

bytes() { docker image inspect --format '{{.Size}}' "$1"; }
for image in spanpool spanpool-example; do
  printf '%s: %d MB above its base of %d MB\n' "$image" \
    "$((($(bytes $image) - $(bytes "$base")) / 1000000))" "$(($(bytes "$base") / 1000000))"
done

#!/usr/bin/env bash
# Builds the images `spanpool` and `spanpool-example` with the engine of DOCKER_HOST. `./dev image` calls
# it; it runs from the root of the workspace.
#
#   image.sh [BUILT]
#   image.sh --base           makes or fetches the base alone, and prints its name
#     BUILT  a folder where Bazel left its results on a Debian 12: the images get these binaries, and nothing
#            is compiled. Without it all is built from the sources in a container.
#
# SPANPOOL_TAG is the images' tag, by default `latest`. Fails if an image is 60 MB or more above its base.
#
# They are based on debian:bookworm-slim: the engine's, else its registry's, else one made here from the
# Debian mirror of this machine, called spanpool-base.
set -euo pipefail

base=debian:bookworm-slim
tag=${SPANPOOL_TAG:-latest}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

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
  tree=$work/base
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
}

if ! have "$base" && ! timeout 60 docker pull -q "$base" >/dev/null 2>&1; then
  base=spanpool-base
  have "$base" || make_base
fi

if [[ ${1:-} == --base ]]; then
  echo "$base"
  exit
fi

context=. dockerfile=deploy/Dockerfile
if (($#)); then
  context=$work/context dockerfile=$work/context/Dockerfile
  deploy/stage.sh "$1" "$context/out"
  # The stages that compile are replaced by one that holds what they would leave.
  awk '/^FROM / { compiles = / AS (tools|build)$/
                  if (/ AS build$/) print "FROM scratch AS build\nCOPY out /out" }
       !compiles' deploy/Dockerfile >"$dockerfile"
fi

build() {  # build TARGET IMAGE
  # The host's network: an engine may have no other.
  docker build --network host --build-arg "BASE=$base" -f "$dockerfile" --target "$1" -t "$2:$tag" "$context"
}
build daemon spanpool
build example spanpool-example

bytes() { docker image inspect --format '{{.Size}}' "$1"; }
for image in spanpool spanpool-example; do
  above=$((($(bytes "$image:$tag") - $(bytes "$base")) / 1000000))
  printf '%s: %d MB above its base of %d MB\n' "$image:$tag" "$above" "$(($(bytes "$base") / 1000000))"
  ((above < 60)) || {
    echo "$image:$tag is larger than an image of spanpool's may be; what did it gain?" >&2
    exit 1
  }
done

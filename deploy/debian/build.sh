#!/usr/bin/env bash
# Makes Debian packages of what was built. `./dev deb` builds and calls it; it runs from the root of the
# workspace, and needs no root.
#
#   build.sh BUILT OUT
#     BUILT  the folder where Bazel left its results
#     OUT    where the packages go; those of the same version there are replaced
set -euo pipefail
built=$1 out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

version=$("$built/server/spanpoold" --version)
version=${version##* }
# The same sources make the same packages: dates are those of the last commit, if there is one.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

# What debhelper works on: debian/ with its rules, and the files to be divided among packages.
source=$work/spanpool
mkdir "$source"
cp -rL deploy/debian "$source/debian"
rm "$source/debian/build.sh"
chmod 755 "$source/debian/rules"
cat >"$source/debian/changelog" <<END
spanpool ($version-1) bookworm; urgency=medium

  * Built from the sources of $(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d).

 -- spanpool developers <spanpool@example.org>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
DESTDIR=$source/stage deploy/install/install.sh "$built" /usr \
  "lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH)"
install -D -m 644 -t "$source/stage/etc/spanpool" deploy/systemd/spanpoold.textproto
install -D -m 644 -t "$source/stage/usr/share/doc/spanpool" proto/spanpool/v1/config.proto
# debhelper takes these by name, and writes what must happen when they are installed.
install -m 644 deploy/systemd/spanpoold.service "$source/debian/spanpool.spanpoold.service"
install -m 644 -t "$source/debian" deploy/systemd/spanpool.sysusers deploy/systemd/spanpool.tmpfiles

log=$work/log
if ! (cd "$source" && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps) >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
mkdir -p "$out"
for package in "$work"/*.deb; do
  install -m 644 -t "$out" "$package"
  printf '%s\n' "$out/${package##*/}"
done

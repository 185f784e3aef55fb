#!/usr/bin/env bash
# Installs what was built: binaries, manual pages, library, headers, pkg-config and CMake files.
# `./dev install PREFIX` builds and calls it; it runs from the root of the workspace.
#
#   install.sh BUILT PREFIX [LIBDIR]
#     BUILT   the folder where Bazel left its results
#     PREFIX  absolute
#     LIBDIR  where libraries go, relative to PREFIX; default: lib
#
# DESTDIR, if it is set, stands before every path that is written, and is mentioned in no file. What is
# installed may be moved as a whole: no file holds PREFIX.
set -euo pipefail
built=$1 prefix=$2 libdir=${3:-lib}
stage=${DESTDIR:-}$prefix
templates=$(dirname "${BASH_SOURCE[0]}")

version=$("$built/server/spanpoold" --version)
version=${version##* }
abi=0

install -D -m 755 -t "$stage/bin" "$built/server/spanpoold" "$built/cli/spanpool"
strip --strip-unneeded "$stage/bin/spanpoold" "$stage/bin/spanpool"
install -D -m 644 "$built/deploy/install/libspanpool.so.$abi" "$stage/$libdir/libspanpool.so.$version"
strip --strip-unneeded "$stage/$libdir/libspanpool.so.$version"
ln -sf "libspanpool.so.$version" "$stage/$libdir/libspanpool.so.$abi"
ln -sf "libspanpool.so.$abi" "$stage/$libdir/libspanpool.so"
install -D -m 644 -t "$stage/$libdir" "$built/deploy/install/libspanpool.a"
strip --strip-debug "$stage/$libdir/libspanpool.a"
install -D -m 644 -t "$stage/$libdir" "$built/deploy/install/libspanpool_grpc.a"
strip --strip-debug "$stage/$libdir/libspanpool_grpc.a"
install -D -m 644 -t "$stage/include/spanpool" client/spanpool/*.h
install -D -m 644 -t "$stage/include/spanpool/v1" proto/spanpool/v1/payload.proto \
  "$built/proto/spanpool/v1/payload.pb.h"

# help2man makes a page of what --help says.
manual() {  # manual BINARY SECTION NAME
  install -d "$stage/share/man/man$2"
  help2man --no-info --no-discard-stderr --section="$2" --version-string="$version" --name="$3" \
    --output="$stage/share/man/man$2/$(basename "$1").$2" "$1"
}
manual "$built/cli/spanpool" 1 "look into a running spanpoold"
manual "$built/server/spanpoold" 8 "lend shared memory to processes of this machine"

# Fills in a template. Abseil's symbols carry its version, so a program must be built with the same.
up=$(sed -E 's#[^/]+#..#g' <<<"$libdir")
fill() {  # fill TEMPLATE FILE
  install -d "$(dirname "$2")"
  sed -e "s#@VERSION@#$version#g" -e "s#@ABI@#$abi#g" -e "s#@LIBDIR@#$libdir#g" -e "s#@UP@#$up#g" \
    -e "s#@ABSEIL@#$(pkg-config --modversion absl_status)#g" \
    -e "s#@NGHTTP2@#$(pkg-config --modversion libnghttp2)#g" \
    -e "s#@GRPC@#$(pkg-config --modversion grpc++)#g" \
    -e "s#@PROTOBUF@#$(pkg-config --modversion protobuf)#g" "$templates/$1" >"$2"
  chmod 644 "$2"
}
fill spanpool.pc.in "$stage/$libdir/pkgconfig/spanpool.pc"
fill spanpool-grpc.pc.in "$stage/$libdir/pkgconfig/spanpool-grpc.pc"
fill spanpoolConfig.cmake.in "$stage/$libdir/cmake/spanpool/spanpoolConfig.cmake"
fill spanpoolConfigVersion.cmake.in "$stage/$libdir/cmake/spanpool/spanpoolConfigVersion.cmake"

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Goal: the client program in README.md compiles without a warning and works.
# Method: take it out of the page, install the library into a scratch prefix, compile by pkg-config
# as the page says, run it against the fake daemon.
# usage: readme_client.sh BUILD_DIR
set -eu
build=$(cd "${1:-build}" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d /tmp/dsd-readme-XXXXXX)
trap 'rm -rf "$work"' EXIT

awk '/^```c$/ { on = 1; next } /^```$/ { if (on) exit } on' "$root/README.md" >"$work/client.c"
[ -s "$work/client.c" ] || { echo "README.md holds no C program"; exit 1; }
lines=$(grep -c . "$work/client.c")
[ "$lines" -le 30 ] || { echo "the program has grown to $lines lines"; exit 1; }

mkdir -p "$work/lib/pkgconfig" "$work/include"
cp "$build/libds.so.0" "$work/lib/"
ln -s libds.so.0 "$work/lib/libds.so"
cp "$root/client/ds.h" "$work/include/"
sed -e "s|@prefix@|$work|" -e "s|@libdir@|$work/lib|" -e "s|@includedir@|$work/include|" \
    -e "s|@version@|0|" "$root/client/libds.pc.in" >"$work/lib/pkgconfig/libds.pc"
export PKG_CONFIG_PATH="$work/lib/pkgconfig"
case $build in *asan*) sanitize=-fsanitize=address,undefined ;; *tsan*) sanitize=-fsanitize=thread ;; *) sanitize= ;; esac
# shellcheck disable=SC2046,SC2086 # flags are meant to be split
${CC:-cc} -std=c11 -Wall -Wextra -Wpedantic -Werror $sanitize -o "$work/client" "$work/client.c" \
    $(pkg-config --cflags --libs libds)
# the header is C++ too
if command -v c++ >/dev/null; then
    printf '#include <ds.h>\nint main() { return ds_fd(nullptr) == 0 && DS_NONE == 2; }\n' >"$work/cxx.cc"
    # shellcheck disable=SC2046
    c++ -std=c++11 -Wall -Wextra -Werror -fsyntax-only "$work/cxx.cc" $(pkg-config --cflags libds)
fi

mkfifo "$work/in"
"$build/tests/e2e/fake_dsd" "$work/s" <"$work/in" >"$work/ready" &
exec 9>"$work/in"
while ! grep -q ready "$work/ready"; do sleep 0.02; done # polling for a state
DSD_SOCKET="$work/s" LD_LIBRARY_PATH="$work/lib" timeout 60 "$work/client" m hello >"$work/out"
[ "$(wc -w <"$work/out")" = 65 ] || { echo "not 64 words and a dot:"; cat "$work/out"; exit 1; }
code=0
DSD_SOCKET="$work/s" LD_LIBRARY_PATH="$work/lib" "$work/client" missing 2>"$work/err" || code=$?
[ "$code" = 1 ] && grep -q 'no such model' "$work/err" || { echo "an error goes unsaid"; exit 1; }
exec 9>&-
wait
code=0
DSD_SOCKET="$work/s" LD_LIBRARY_PATH="$work/lib" "$work/client" 2>"$work/err" || code=$?
[ "$code" = 69 ] || { echo "no daemon: exit $code"; exit 1; }
